"""Reduces a picture's file to the parts that a decoder needs for its pixels. An odd value in the other parts
makes decoders refuse or misread a picture; only the orientation is read from them. This module knows JPEG,
PNG, TIFF and WebP, and decodes nothing.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Literal

JPEG, PNG, TIFF = "JPEG", "PNG", "TIFF"
_SIGNATURES = {
    b"\xff\xd8\xff": JPEG,
    b"\x89PNG\r\n\x1a\n": PNG,
    **dict.fromkeys((b"II*\0", b"II\0*", b"II+\0", b"MM\0*", b"MM*\0", b"MM\0+"), TIFF),
}

# Of the other formats that are decoded only little is known by which a file begins.
_OTHERS = re.compile(rb"RIFF.{4}WEBP|GIF8[79]a|BM|P[1-6]\s", re.DOTALL)
_WEBP = re.compile(rb"RIFF.{4}WEBP", re.DOTALL)
HEAD_BYTES = 12  # as many as ``may_be_one`` looks at

_MARKUP = rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*"  # what may stand before the first tag
# What other files begin like, in the first bytes or behind the length of an ISO media file's first box.
_FOREIGN = (
    # a brand that says only "a picture" or "pictures"; the brands behind it tell the coding
    (rb"....ftyp(avi[fs]|(miaf|mif[12]|msf1)....(....){0,12}?avi[fs])", "an AVIF picture"),
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif[12]|msf1)", "a HEIC picture, as iPhones take"),
    (rb"....ftypM4[ABP]\x20", "a sound recording"),
    (rb"....ftypcrx |FUJIFILMCCD-RAW|IIRO|IIRS|IIU\x00", "a camera's raw picture"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI\x20|\x00\x00\x01[\xb3\xba]", "a video"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%PDF-", "a PDF document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing"),
    (rb"\x00\x00[\x02\x03\x0a\x0b]\x00{5}|\x00\x01[\x01\x09]\x00\x00..[\x18\x20]", "a TGA picture"),
    (rb"\x00\x00[\x01\x02]\x00(?!\x00\x00)", "an icon"),
    (rb"qoif", "a QOI picture"),
    (rb"\x76\x2f\x31\x01|#\?R(ADIANCE|GBE)|PF\n|Pf\n", "a picture of floating-point pixels"),
    (rb"SIMPLE  =", "a FITS picture"),
    (rb".{128}DICM", "a DICOM picture"),
    (_MARKUP + rb"<(!doctype svg|svg)", "an SVG drawing"),
    (_MARKUP + rb"<(!doctype html|html|head|body)", "a web page, not the picture that it shows"),
    (rb"version https://git-lfs", "a note of Git LFS in place of the picture; run git lfs pull"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive; unpack it"),
)

_APP0, _APP1, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_SCAN, _END, _HUFFMAN, _ARITHMETIC = 0xDA, 0xD9, 0xC4, (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))  # markers without a length
# Stands for rows that may be missing. A decoder takes zeros for missing data; these bits differ from zeros,
# the first of them certainly.
_HEAD = 512  # bytes by which a foreign file is known
_BITS = b"\xaa" + hashlib.shake_128(b"rows").digest(2048).replace(b"\xff", b"\x7f")

# What an interrupted copy did not write is often zeros. They are looked for in runs of this length: the
# smallest that is lost is a sector of 512 bytes, and this many hold more than two blocks of a JPEG whose
# tables make each block of zeros 63 waves of equal strength, which no picture has.
_ZEROS = bytes(64)
NEEDED = 16  # bytes of zeros that are at least one group of plain blocks
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
# The symbols whose codes are zeros, in the tables of JPEG's Annex K: of brightness, for which a decoder takes
# them where a file has no tables, as in MJPEG, and of colour
_ZERO_SYMBOLS = {0x00: 0, 0x10: 1, 0x01: 0, 0x11: 0}

_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ANMF")
_WEBP_KEPT = (b"VP8X", b"ANIM", b"ALPH", *_WEBP_PIXELS)

_PROFILE = b"Raw profile type exif\0"  # ImageMagick's way to put EXIF into a PNG, as hexadecimal digits
_PROFILE_BYTES = 1_000_000
_INFLATED_AT_ONCE = 1 << 14  # bytes, each of which may become a thousand
# Adam7 interlacing: of each pass the first x and y, and the steps across and down
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types

_RAW, _DEFLATED, _JPEG_IN_TIFF = 1, (8, 32946), 7  # compressions of a TIFF
_DEPTH, _COLOURS, _INK, _LARGEST, _DOT_RANGE = 258, 262, 5, 281, 336
_ORIENTATION, _SAMPLES, _PLANAR = 0x112, 277, 284
# Size, depth, compression, colours and places of the pixels; 512 to 521 are the old kind of JPEG in a TIFF.
_PIXEL_TAGS = frozenset((
    254, 256, 257, 258, 259, 262, 266, 273, _SAMPLES, 278, 279, _PLANAR, 292, 293, 317, 320, 322, 323,
    324, 325, 332, 334, 338, 339, 347, *range(512, 522), 529, 530, 531, 532,
))  # fmt: skip
_INTEGERS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}  # bytes of TIFF's types
Order = Literal["little", "big"]
# A picture is used when at least this share of its rows is there; those that are missing repeat the last one.
ENOUGH_ROWS = 0.95


def kind(content: bytes) -> str | None:
    """The format that a file begins like, None for others than these."""
    return next((name for signature, name in _SIGNATURES.items() if content.startswith(signature)), None)


def may_be_one(content: bytes) -> bool:
    """Whether a file begins like a picture of any format that is decoded here."""
    return kind(content) is not None or _OTHERS.match(content) is not None


def foreign(content: bytes) -> str | None:
    """What a file is that is none of the formats read here, in words; None where that cannot be said."""
    head = content[:_HEAD]
    return next((words for begins, words in _FOREIGN if re.match(begins, head, re.DOTALL)), None)


def without_metadata(content: bytes) -> tuple[bytes, int]:
    """The file as a decoder should see it, and its EXIF orientation, 1 where none can be read.

    Raises:
        ValueError: a part of a PNG that its pixels depend on is damaged or missing, or a TIFF has a scale
            of its own.
    """
    parts = {JPEG: _jpeg, PNG: _png, TIFF: _tiff}.get(kind(content) or "")
    if _WEBP.match(content):
        parts = _webp
    found, orientation = parts(content) if parts else (content, 0)
    return found, orientation or 1


def orientation(exif: bytes) -> int:
    """An EXIF block's orientation 1..8; 0 when there is none. No other entry is looked at."""
    for _ in range(2):  # some programs write the prefix twice
        exif = exif[6:] if exif.startswith(b"Exif\0") else exif
    if not exif.startswith((b"II", b"MM")):
        return 0
    order, _, entries = _directory(exif)
    values = (_integer(entry, order) for entry in entries if _tag(entry, order) == _ORIENTATION)
    return next((value for value in values if 1 <= value <= 8), 0)


def _directory(block: bytes) -> tuple[Order, int, list[bytes]]:
    """A TIFF's byte order, the place of its first directory, and the entries of that which the file holds."""
    order: Order = "big" if block.startswith(b"MM") else "little"
    wide = _is_wide(block, order)
    start = int.from_bytes(block[8:16] if wide else block[4:8], order)
    first = start + (8 if wide else 2)
    count, size = int.from_bytes(block[start:first], order), 20 if wide else 12
    end = min(first + count * size, len(block) - size + 1)
    return order, start, [block[place : place + size] for place in range(first, end, size)]


def _is_wide(block: bytes, order: Order) -> bool:
    return int.from_bytes(block[2:4], order) == 43  # a BigTIFF


def _tag(entry: bytes, order: Order) -> int:
    return int.from_bytes(entry[:2], order)


def _integer(entry: bytes, order: Order) -> int:
    """An entry's first value if it is a whole number that stands in the entry itself, otherwise 0."""
    size = _INTEGERS.get(int.from_bytes(entry[2:4], order), 0)
    room = 8 if len(entry) == 20 else 4
    count = int.from_bytes(entry[4:-room], order)
    return int.from_bytes(entry[-room:][:size], order) if 0 < size * count <= room else 0


def _tiff(content: bytes) -> tuple[bytes, int]:
    """Keep only the tags of the pixels, in the directory's own place, so that all offsets stay valid."""
    order, start, entries = _directory(content)
    samples = next((_integer(entry, order) for entry in entries if _tag(entry, order) == _SAMPLES), 1)
    # With one sample, separate planes mean nothing, yet for them Pillow decodes as if there were 8 bits: to a
    # negative, or to nothing.
    tags = _PIXEL_TAGS - {_PLANAR} if samples == 1 else _PIXEL_TAGS
    _refuse_scales({_tag(entry, order): _integer(entry, order) for entry in entries})
    kept = [entry for entry in entries if _tag(entry, order) in tags]
    if not kept:
        return content, 0
    counted, offset = (8, 8) if _is_wide(content, order) else (2, 4)
    directory = b"".join([len(kept).to_bytes(counted, order), *kept, bytes(offset)])
    everything = memoryview(content)
    return b"".join([everything[:start], directory, everything[start + len(directory) :]]), orientation(
        content
    )


def _refuse_scales(tags: Mapping[int, int]) -> None:
    """Pillow takes 0 for no ink and the largest number of 16 bits for white, whatever these tags say."""
    if tags.get(_COLOURS) == _INK and tags.get(_DOT_RANGE, 0) > 127:
        raise ValueError("its tag 336, DotRange, makes it a negative; save it again as a PNG or JPEG")
    if tags.get(_DEPTH) == 16 and 0 < tags.get(_LARGEST, 0) < 1 << 15:
        raise ValueError(
            f"its tag 281, MaxSampleValue, makes {tags[_LARGEST]} the largest of 16 bits; save it again as a"
            " PNG or JPEG"
        )


def ends_early(strip: memoryview, compression: int, tables: bytes) -> bool:
    """Whether a strip or tile of a TIFF, in the compression that its tag 259 says, surely lacks its end:
    libtiff then shows rows wrong with a warning at most.

    Args:
        tables: the JPEG (tag 347) with the tables of all strips, empty without.
    """
    if compression == _RAW:
        return False
    if compression in _DEFLATED:
        return not _is_inflated_whole(strip)
    if compression == _JPEG_IN_TIFF:
        alone = bytes(strip)
        zeros = zeros_in_scan(tables.removesuffix(b"\xff\xd9") + alone[2:] if tables else alone)
        return b"\xff\xd9" not in alone or (zeros is not None and zeros[2])
    return bytes(strip[-len(_ZEROS) :]) == _ZEROS


def _is_inflated_whole(data: memoryview) -> bool:
    inflater = zlib.decompressobj()
    try:
        for place in range(0, len(data), _INFLATED_AT_ONCE):
            inflater.decompress(data[place : place + _INFLATED_AT_ONCE])
    except zlib.error:
        return False
    return inflater.eof


def _segments(content: bytes, place: int = 2) -> Iterator[tuple[int, int, bytes]]:
    """Marker, place and payload of a JPEG's segments from a place up to the next scan."""
    while 0 <= (place := content.find(b"\xff", place)) < len(content) - 3:
        marker = content[place + 1]
        if marker == 0xFF:  # a filling byte
            place += 1
        elif marker in _ALONE:
            place += 2
        else:
            size = int.from_bytes(content[place + 2 : place + 4], "big")
            yield marker, place, content[place + 4 : place + 2 + size]
            if marker in (_SCAN, _END):
                return
            place += 2 + max(size, 2)


def _jpeg(content: bytes) -> tuple[bytes, int]:
    kept, upright = [content[:2]], 0
    for marker, place, payload in _segments(content):
        if marker == _SCAN:
            return b"".join([*kept, memoryview(content)[place:]]), upright
        if marker == _APP1 and payload.startswith(b"Exif\0"):
            upright = upright or orientation(payload)
        elif _is_for_pixels(marker, payload):
            kept.append(content[place : place + 4 + len(payload)])
    return content, upright


def _is_for_pixels(marker: int, payload: bytes) -> bool:
    """Whether a segment matters for the pixels. JFIF's and Adobe's segments tell the colour space, if they
    are as long as libjpeg requires."""
    if marker == _APP0:
        return payload.startswith(b"JFIF\0") and len(payload) >= 14
    if marker == _APP14:
        return payload.startswith(b"Adobe") and len(payload) >= 12
    return not (_APP0 <= marker <= _APP15 or marker == _COM)


def with_other_endings(content: bytes) -> tuple[bytes, bytes]:
    """A JPEG with an end marker after its pixels, and with random rows and an end marker there. If both
    decode to the same picture, no row was missing; otherwise the decoder made the missing rows up.
    """
    scan = next((place for marker, place, _ in _segments(content) if marker == _SCAN), len(content))
    end = content.find(b"\xff\xd9", scan)
    pixels = content[: end if end >= 0 else len(content)].rstrip(b"\xff")
    # The rows begin with the next of the eight restart markers, which go round: after another one a decoder
    # may skip what follows.
    scan = max(pixels.rfind(b"\xff\xda"), 0)
    _, last = max((pixels.rfind(b"\xff%c" % marker, scan), marker) for marker in range(0xD0, 0xD8))
    rows = b"".join(b"\xff%c%b" % (0xD0 + (last + k) % 8, _BITS) for k in range(1, 9))
    return pixels + b"\xff\xd9", b"".join([pixels, _BITS, rows, b"\xff\xd9"])


def _webp(content: bytes) -> tuple[bytes, int]:
    """Keep the chunks up to the pixels, of an animation those of the first frame."""
    kept: list[tuple[bytes, bytes]] = []
    is_whole, upright = False, 0
    for name, data, is_there in _webp_chunks(content):
        if name == b"EXIF":
            upright = upright or orientation(data)
        elif is_there and not is_whole and name in _WEBP_KEPT:
            # the flags of a profile, EXIF and XMP, which are left out
            kept.append((name, bytes([data[0] & ~0x2C]) + data[1:] if name == b"VP8X" and data else data))
            is_whole = name in _WEBP_PIXELS
    return _as_webp(kept) if is_whole else content, upright


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name and data of a WebP's chunks, and whether the file holds all of it."""
    place = 12
    while place + 8 <= len(content):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        data = content[place + 8 : place + 8 + size]
        yield content[place : place + 4], data, len(data) == size
        place += 8 + size + size % 2


def _as_webp(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [name + struct.pack("<L", len(data)) + data + bytes(len(data) % 2) for name, data in chunks]
    body = b"".join([b"WEBP", *parts])
    return b"".join([b"RIFF", struct.pack("<L", len(body)), body])


def with_fewer_zeros(content: bytes) -> bytes | None:
    """A WebP, as ``without_metadata`` gives it, with its pixels cut by some of the zeros that they end in;
    None where these are few. If it can be decoded, the zeros stood in place of pixels: those of a plain area
    are all needed.
    """
    chunks = [(name, data) for name, data, _ in _webp_chunks(content)]
    if not chunks or chunks[-1][0] not in (b"VP8 ", b"VP8L"):
        return None
    name, data = chunks.pop()
    # A decoder reads some bytes ahead, but not as many as a half of these.
    return _as_webp([*chunks, (name, data[: -len(_ZEROS) // 2])]) if data.endswith(_ZEROS) else None


def zeros_in_scan(content: bytes) -> tuple[int, int, bool] | None:
    """Where a JPEG may hold zeros in place of pixels: the place of the first and behind the last, and whether
    that is certain. In optimised tables zeros are often the code of a plain block, so that they may be a
    plain area; then only those at the end are told, which are wrong if the picture does not need the last
    NEEDED of them.
    """
    if _ZEROS not in content:
        return None
    for start, end, are_plain, is_part in _scans(content):
        if not (are_plain or is_part) and (place := content.find(_ZEROS, start, end)) >= 0:
            return place, end, True
        place = start + len(content[start:end].rstrip(b"\0"))
        if end - place >= len(_ZEROS) and content[end + 1 : end + 2] in (b"\xd9", b""):
            return place, end, not are_plain
    return None


def _scans(content: bytes) -> Iterator[tuple[int, int, bool, bool]]:
    """Start and end of the data of a JPEG's scans, whether zeros in them make plain blocks, and whether a
    scan has only some waves or only some bits of them, which may be equal in many blocks of a shade."""
    symbols, end, is_more = dict(_ZERO_SYMBOLS), 2, True
    while is_more:
        is_more = False
        for marker, place, payload in _segments(content, end):
            if marker in _ARITHMETIC:
                return  # there zeros may be anything
            if marker == _HUFFMAN:
                symbols |= _zero_symbols(payload)
            elif marker == _SCAN:
                start = place + 4 + len(payload)
                found = _AFTER_SCAN.search(content, start)
                end, is_more = found.start() if found else len(content), True
                is_part = payload[-2:-1] != b"\x3f" or payload[-1] >= 16
                yield start, end, _are_zeros_plain(payload, symbols), is_part


def _zero_symbols(tables: bytes) -> Iterator[tuple[int, int]]:
    """Class and number of Huffman tables, and the symbol of each whose code is all zeros: the first."""
    place = 0
    while place + 17 < len(tables):
        yield tables[place], tables[place + 17]
        place += 17 + sum(tables[place + 1 : place + 17])


def _are_zeros_plain(scan: bytes, symbols: Mapping[int, int]) -> bool:
    """Whether zeros say that no wave follows in a block (a symbol without bits of a value), or lie in a scan
    of a progressive JPEG that has no waves."""
    if len(scan) < 4 or scan[-2] == 0:
        return True
    used = (0x10 | scan[k] & 0x0F for k in range(2, len(scan) - 3, 2))
    return all(symbols.get(table, 0) & 0x0F == 0 for table in used)


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview, bool | None]]:
    """Name, data and whether the checksum is right (None: the file ends before it) of a PNG's chunks."""
    everything, place = memoryview(content), 8
    while place + 8 <= len(content):
        name = content[place + 4 : place + 8]
        end = place + 8 + int.from_bytes(everything[place : place + 4], "big")
        if name == b"IEND" or not name.isalpha():
            return
        data, checksum = everything[place + 8 : end], everything[end : end + 4]
        yield (
            name,
            data,
            zlib.crc32(data, zlib.crc32(name)) == int.from_bytes(checksum, "big")
            if len(checksum) == 4
            else None,
        )
        place = end + 4


def _png(content: bytes) -> tuple[bytes, int]:
    kept: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    upright = 0
    for name, data, right in _chunks(content):
        if right is False and name in (b"IHDR", b"IDAT"):
            raise ValueError(f"the checksum of a chunk {name.decode()} is wrong")
        if name == b"IDAT":
            pixels.append(data)
        elif right and name in (b"eXIf", b"tEXt", b"zTXt"):
            upright = upright or _png_orientation(name, data)
        elif right and not pixels and name in (b"IHDR", b"PLTE", b"tRNS"):
            kept.setdefault(name, bytes(data))
    size = sum(map(len, pixels)).to_bytes(4, "big")
    return b"".join(
        [content[:8], *_png_header(kept), size, b"IDAT", *pixels, bytes(4), _chunk(b"IEND", b"")]
    ), upright


def _chunk(name: bytes, data: bytes) -> bytes:
    return b"".join(
        [len(data).to_bytes(4, "big"), name, data, zlib.crc32(data, zlib.crc32(name)).to_bytes(4, "big")]
    )


def _png_header(kept: Mapping[bytes, bytes]) -> Iterator[bytes]:
    header = kept.get(b"IHDR", b"")
    if len(header) != 13:
        raise ValueError("the chunk IHDR is missing or damaged")
    depth, colours = header[8], header[9]
    yield _chunk(b"IHDR", header)
    transparency = kept.get(b"tRNS", b"")
    if colours == 3:
        palette = kept.get(b"PLTE")
        if palette is None:
            raise ValueError("the palette is missing or damaged")
        yield _chunk(b"PLTE", palette)
        if 0 < len(transparency) <= len(palette) // 3:
            yield _chunk(b"tRNS", transparency)
    elif len(transparency) == {0: 2, 2: 6}.get(colours) and depth in (1, 2, 4, 8, 16):
        yield _chunk(b"tRNS", _as_decoded(transparency, depth, colours))


def _as_decoded(transparency: bytes, depth: int, colours: int) -> bytes:
    """The transparent colour in the values that Pillow decodes to. Pillow scales grey of 2 and 4 bits and RGB
    of 16 bits to 8 bits."""
    values = [
        value & (1 << depth) - 1 for value in struct.unpack(f">{len(transparency) // 2}H", transparency)
    ]
    if colours == 2:
        values = [value >> depth - 8 for value in values] if depth > 8 else values
    else:
        values = [value * {2: 85, 4: 17}.get(depth, 1) for value in values]
    return struct.pack(f">{len(values)}H", *values)


def _png_orientation(name: bytes, data: memoryview) -> int:
    if name == b"eXIf":
        return orientation(bytes(data))
    key, text = bytes(data[: len(_PROFILE)]), data[len(_PROFILE) :]
    if key != _PROFILE:
        return 0
    try:
        profile = (
            zlib.decompressobj().decompress(text[1:], _PROFILE_BYTES)
            if name == b"zTXt"
            else bytes(text[:_PROFILE_BYTES])
        )
        return orientation(bytes.fromhex("".join(profile.decode("latin-1").split("\n")[3:])))
    except (zlib.error, ValueError):
        return 0


def with_all_rows(content: bytes) -> bytes | None:
    """A PNG with as many rows as its header says, of what ``without_metadata`` gave. Where the stream ends
    too early, Pillow leaves rows black or gives up; here each of them repeats the one above it. None: fewer
    than ENOUGH_ROWS are there.

    Raises:
        zlib.error: the pixels are damaged.
    """
    header = content[16:29]
    needed, last_pass, row = _inflated_bytes(header)
    found = sum(map(len, _inflated(content)))
    if found >= needed:
        return content
    # Of a row that is there in part the rest would be black, so that it counts as missing.
    kept = found - (last_pass - needed + found) % row
    if kept < max(ENOUGH_ROWS * needed, needed - last_pass):
        return None
    packed, above = zlib.compressobj(1), b"\2" + bytes(row - 1)  # filter 2: as above
    made, left = [], kept
    for rows in _inflated(content):
        made.append(packed.compress(rows[:left]))
        left -= min(left, len(rows))
    made += [packed.compress(above) for _ in range((needed - kept) // row)]
    pixels = b"".join([*made, packed.flush()])
    return b"".join([content[: content.index(b"IDAT") - 4], _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")])


def _inflated(content: bytes) -> Iterator[bytes]:
    """The pixels of a PNG as far as they are there, piece by piece."""
    inflater = zlib.decompressobj()
    for name, data, _ in _chunks(content):
        if name == b"IDAT":
            for place in range(0, len(data), _INFLATED_AT_ONCE):
                yield inflater.decompress(data[place : place + _INFLATED_AT_ONCE])


def _inflated_bytes(header: bytes) -> tuple[int, int, int]:
    """The bytes of the pixels of a PNG, those of them in the last pass, and those of a row there."""
    width, height, depth, colours, _, _, interlaced = struct.unpack(">LLBBBBB", header)
    total, last, row = 0, 0, 1
    for x, y, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            row = 1 + (columns * depth * _CHANNELS.get(colours, 1) + 7) // 8
            last = rows * row
            total += last
    return total, last, row
