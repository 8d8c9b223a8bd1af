"""Turns an image file into the tensor that a network takes. This is the only place where pictures are
decoded, resized, cropped and normalised: calibration, evaluation and the device all use it.

The steps are those of torchvision's evaluation presets on PIL images, as an ``InputSpec`` has them: resize
(bilinear with antialiasing), cut out the middle, scale to 0..1, subtract the mean, divide by the standard
deviation.
"""

import contextlib
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, TiffImagePlugin, UnidentifiedImageError

from vgg_runtime.errors import ImageError

from . import picture_files
from .input_spec import GREY, InputSpec

# Only these of Pillow's decoders are used: a stranger's picture should not reach the exotic ones.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Every suffix of these formats, in lower case. A stereo picture (.mpo) begins with a JPEG.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".png", ".apng", ".webp"),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# A camera sold as 50 megapixels gives up to 51.3 million pixels (8272 x 6200). The largest picture takes
# 208 MB decoded, and twice that while it is turned; a board with 512 MB must have room for it.
MAX_PIXELS = 52_000_000
# Of a JPEG that is decoded at a part of its size. A sensor of 200 megapixels has 16,320 x 12,240.
MAX_IN_PARTS = 220_000_000
# Pillow's own limit is higher and only warns; ours is checked before anything is decoded
Image.MAX_IMAGE_PIXELS = None
BACKGROUND = (255, 255, 255)  # behind transparency
# A JPEG's decoder can leave the finest waves out of each block, and so decode to 1/2, 1/4 or 1/8 of the size
# in a fraction of the time. It does where at least this many times the resized picture remains.
DRAFT_MARGIN = 2
_ROWS_MISSING = "the pixels end before the last row"
_ROWS_AT_ONCE = 256  # where a whole copy would be too large
_COMPARED_ROWS = 8  # of two pictures, at once; a block of a JPEG is as high
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF's tags
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 258, 259, 262, 277, 284
_COLORMAP, _EXTRA, _SAMPLE_FORMAT, _TABLES, _SUBSAMPLING = 320, 338, 339, 347, 530
_STRIPS, _TILES = (273, 279), (324, 325)  # the places and sizes of the pixels


def open_image(source: Path | bytes, spec: InputSpec | None = None) -> Image.Image:
    """Decode a picture to RGB, upright; its ``format`` is the file's.

    EXIF orientation is applied, transparency is laid over white, CMYK and palettes are converted, grey of
    more than 8 bit is scaled to 8 bit, and of an animation the first frame is taken. Other metadata is not
    read, a missing end marker does not matter. A JPEG or PNG may lack some of its last rows
    (``picture_files.ENOUGH_ROWS``); they repeat the last one that is there.

    Args:
        spec: what the picture is decoded for; a JPEG that is at least twice too large for it is decoded at a
            half, a quarter or an eighth of its size. None: every pixel is decoded.

    Raises:
        ImageError: the file is missing, is no picture of the allowed formats, is damaged, lacks rows, has
            samples that Pillow would decode wrongly, or has more than ``MAX_PIXELS``, or
            ``MAX_IN_PARTS`` where it is decoded at a part of its size (checked before decoding).
    """
    name = str(source) if isinstance(source, Path) else "the file"
    with _explained(name):
        return _open(source.read_bytes() if isinstance(source, Path) else source, name, spec)


def size_px(content: bytes) -> tuple[int, int]:
    """Width and height of a picture that ``open_image`` reads, upright. Nothing is decoded."""
    with _explained("the file"):
        content, orientation = picture_files.without_metadata(content)
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
    return (height, width) if orientation >= 5 else (width, height)


def from_pillow(image: Image.Image) -> Image.Image:
    """A picture that another program opened or made, as ``open_image`` gives it: RGB, upright.

    Raises:
        ImageError: it is damaged, or has samples that have no agreed brightness.
    """
    with _explained("the picture"):
        image.load()
        return _upright(_to_rgb(image, "the picture"), picture_files.orientation(image.info.get("exif", b"")))


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn every error of a decoder into an ImageError about the picture ``name``."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {name}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, expected a picture") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture this program reads ({', '.join(FORMATS)})") from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into this device's memory; make it smaller first") from error
    except ImageError:
        raise
    except Exception as error:
        # a damaged picture can make a decoder raise any error (struct.error, TypeError, ...)
        raise ImageError(
            f"{name} cannot be decoded ({_in_words(error)}); it is damaged or not what its name says"
        ) from error


def _in_words(error: Exception) -> str:
    """A decoder's error as text; some decoders raise bytes."""
    reason = error.args[0] if error.args else type(error).__name__
    return reason.decode("latin-1") if isinstance(reason, bytes) else str(error)


def _open(content: bytes, name: str, spec: InputSpec | None) -> Image.Image:
    kind = picture_files.kind(content)
    content, orientation = picture_files.without_metadata(content)
    try:
        image = _decode_whole(content, name, spec)
    except UnidentifiedImageError as error:
        if kind is None:
            if not any(content):
                what = "holds only zeros, as an interrupted copy leaves" if content else "is empty"
                raise ImageError(f"{name} {what}, expected a picture; copy it again") from error
            if words := picture_files.foreign(content):
                raise ImageError(
                    f"{name} is {words}; expected a picture of {', '.join(FORMATS)}: convert it to PNG or"
                    " JPEG"
                ) from error
            raise
        reason = f"begins like a {kind} file, but cannot be decoded: it is damaged or of a rare kind"
        raise ImageError(f"{name} {reason}; save it again as a PNG or JPEG of 8 bits a channel") from error
    kind = image.format
    image = _upright(_to_rgb(image, name), orientation)
    image.format = kind
    return image


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _decode_whole(content: bytes, name: str, spec: InputSpec | None) -> Image.Image:
    """Decode, and make sure that no rows are missing where the decoder does not check that."""
    kind = picture_files.kind(content)
    if kind == picture_files.JPEG:
        return _decode_jpeg(content, name, spec)
    if kind == picture_files.PNG:
        return _decode_png(content, name, spec)
    # Zeros at the end of raw pixels (BMP, PPM, some TIFF) are not looked for: black is nothing else.
    image = _decode(content, name, spec)
    shorter = picture_files.with_fewer_zeros(content) if image.format == "WEBP" else None
    if shorter is not None and _can_be_decoded(shorter, name):
        raise OSError(_ROWS_MISSING)
    return image


def _can_be_decoded(content: bytes, name: str) -> bool:
    try:
        _decode(content, name, None)
    except OSError:
        return False
    return True


def _decode_png(content: bytes, name: str, spec: InputSpec | None) -> Image.Image:
    try:
        image = _decode(content, name, spec)
    except UnidentifiedImageError:
        raise
    except OSError:
        image = None
    if image is not None and not _may_lack_rows(image):
        return image
    whole = picture_files.with_all_rows(content)
    if whole is None:
        raise OSError(_ROWS_MISSING)
    return image if image is not None and whole is content else _decode(whole, name, spec)


def _decode_jpeg(content: bytes, name: str, spec: InputSpec | None) -> Image.Image:
    zeros = picture_files.zeros_in_scan(content)
    if zeros is not None:
        first, end, is_certain = zeros
        if is_certain or _are_alike(content[: end - picture_files.NEEDED], name, spec):
            return _decode_with_end(content[:first], name, spec)
    try:
        image = _decode(content, name, spec)
    except UnidentifiedImageError:
        raise
    except OSError:
        return _decode_with_end(content, name, spec)
    # the end marker or rows may be missing
    return _decode_with_end(content, name, spec) if _ends_in_filling_grey(image) else image


def _decode(content: bytes, name: str, spec: InputSpec | None) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    whole = image.size
    if spec is not None and image.format == "JPEG":
        width, height = _resized(image.size, spec)
        image.draft(None, (DRAFT_MARGIN * width, DRAFT_MARGIN * height))
    # all coefficients of a progressive JPEG are in memory before the first pixel is
    in_parts = image.size != whole and "progressive" not in image.info
    limit = MAX_IN_PARTS if in_parts else MAX_PIXELS
    if math.prod(whole) > limit or math.prod(image.size) > MAX_PIXELS:
        most = f"{limit // 1_000_000} megapixels"
        raise ImageError(f"{name} is {whole[0]} x {whole[1]} pixels, more than {most}; make it smaller first")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        problem = _misread(image)
        if problem is not None:
            raise ImageError(
                f"{name} is a TIFF with {problem}, which this program does not read: convert it to PNG or"
                " JPEG"
            )
        if _lacks_rows(image, content):
            raise OSError(_ROWS_MISSING)
    image.load()
    return image


def _decode_with_end(content: bytes, name: str, spec: InputSpec | None) -> Image.Image:
    """Decode a JPEG that may lack its end marker or rows.

    It is decoded with two different endings. From where the two pictures differ, rows are missing.
    """
    ended, followed = picture_files.with_other_endings(content)
    other = _fingerprints(_decode(followed, name, spec))
    return _without_differing(_decode(ended, name, spec), other)


def _are_alike(content: bytes, name: str, spec: InputSpec | None) -> bool:
    """Whether a JPEG is the same picture with two different endings, and so needs nothing behind it."""
    ended, followed = picture_files.with_other_endings(content)
    return _fingerprints(_decode(ended, name, spec)) == _fingerprints(_decode(followed, name, spec))


def _without_differing(image: Image.Image, other: list[int]) -> Image.Image:
    """The picture; where it differs from the fingerprints ``other``, its last row before is repeated.

    Raises:
        OSError: that is more than the rows that may be missing.
    """
    same = (one == two for one, two in zip(_fingerprints(image), other, strict=True))
    differing = next((k for k, alike in enumerate(same) if not alike), None)
    if differing is None:
        return image
    there = differing * _COMPARED_ROWS
    if there < picture_files.ENOUGH_ROWS * image.height:
        raise OSError(_ROWS_MISSING)
    last = image.crop((0, there - 1, image.width, there))
    image.paste(last.resize((image.width, image.height - there)), (0, there))
    return image


def _fingerprints(image: Image.Image) -> list[int]:
    """A checksum of each few rows, from the top."""
    bands = ((top, min(top + _COMPARED_ROWS, image.height)) for top in range(0, image.height, _COMPARED_ROWS))
    return [zlib.crc32(image.crop((0, top, image.width, end)).tobytes()) for top, end in bands]


def _ends_in_filling_grey(image: Image.Image) -> bool:
    """Whether the last pixel of a JPEG is the grey with which libjpeg fills missing rows."""
    value = image.getpixel((image.width - 1, image.height - 1))
    return all(v in (127, 128) for v in (value if isinstance(value, tuple) else (value,)))


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether a PNG's last row is as empty as one that was never decoded."""
    return (
        "interlace" in image.info
        or image.crop((0, image.height - 1, image.width, image.height)).getbbox() is None
    )


def _misread(image: TiffImagePlugin.TiffImageFile) -> str | None:
    """What Pillow would decode to wrong pixels without an error; None where there is nothing."""
    tags = image.tag_v2
    bits, formats = max(tags.get(_BITS, (1,))), tags.get(_SAMPLE_FORMAT, (1,))
    colours, compression = tags.get(_PHOTOMETRIC), tags.get(_COMPRESSION, 1)
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANAR, 1) == 2 else 1
    tiled = sum((box[2] - box[0]) * (box[3] - box[1]) for _, box, *_ in image.tile if box is not None)
    raw = compression == 1
    problems = {
        "floating-point pixels": max(formats) == 3,
        "signed numbers": max(formats) == 2,
        f"{bits} bits a channel": bits > 16,
        "each channel in a separate plane": planes > 1
        and ((raw and bits != 8) or image.mode in ("LA", "La", "PA")),
        "subsampled colours": raw and colours == 6 and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1),
        # zero is white in a fax (compressions 2, 3 and 4)
        "no tag that says whether zero is black": colours is None and compression not in (2, 3, 4),
        "rows missing": raw and tiled < image.width * image.height * planes,
    }
    return next((problem for problem, found in problems.items() if found), None)


def _lacks_rows(image: TiffImagePlugin.TiffImageFile, content: bytes) -> bool:
    """Whether the pixels of a compressed TIFF end early where libtiff does not refuse that."""
    tags, everything = image.tag_v2, memoryview(content)
    places, sizes = _STRIPS if _STRIPS[0] in tags else _TILES
    return any(
        picture_files.ends_early(
            everything[place : place + size], tags.get(_COMPRESSION, 1), tags.get(_TABLES, b"")
        )
        for place, size in zip(tags.get(places, ()), tags.get(sizes, ()), strict=False)
    )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif image.mode == "I":
        # Pillow opens some 16-bit files as 32-bit integers; anything beyond 16 bits has no agreed brightness.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError(
                f"{name} holds 32-bit integers; expected at most 16 bits a channel: convert it to PNG or JPEG"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError(
            f"{name} holds floating-point pixels; expected 8 or 16 bits a channel: convert it to PNG or JPEG"
        )
    elif image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for a negative, as Adobe writes them
    elif isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode in ("P", "PA"):
        _mend_palette(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _says_no_alpha(image):
        image = image.convert("RGB")
    if image.has_transparency_data:
        return _over_white(image)
    # A copy takes memory that a small board lacks. Only a WEBP is copied: it would keep its decoder, which is
    # larger.
    return image if image.mode == "RGB" and image.format != "WEBP" else image.convert("RGB")


def _says_no_alpha(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow takes a channel for alpha of which the file does not say what it is."""
    return image.mode == "RGBA" and image.tag_v2.get(_EXTRA, (0,))[0] not in (1, 2)


def _eight_bits(image: Image.Image) -> Image.Image:
    values, depth = np.asarray(image, np.uint16), 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        depth = image.tag_v2[_BITS][0]
        if image.tag_v2.get(_PHOTOMETRIC) == 0:  # zero is white; Pillow heeds this up to 8 bits only
            values = ((1 << depth) - 1) - values
    elif "transparency" in image.info:
        values = np.where(values == image.info["transparency"], np.uint16(0xFFFF), values)
    return Image.fromarray((values >> depth - 8).astype(np.uint8))


def _mend_palette(image: TiffImagePlugin.TiffImageFile) -> None:
    table = image.tag_v2[_COLORMAP]
    if max(table) < 256:  # entries of 8 bits, where 16 are the rule
        image.putpalette(np.array(table, np.uint8).reshape(3, -1).T.tobytes())


def _over_white(image: Image.Image) -> Image.Image:
    found = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS_AT_ONCE):
        layer = image.crop((0, top, image.width, min(top + _ROWS_AT_ONCE, image.height)))
        layer = (layer.convert("LA") if layer.mode == "La" else layer).convert("RGBA")
        backdrop = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        found.paste(Image.alpha_composite(backdrop, layer).convert("RGB"), (0, top))
    return found


def to_tensor(image: Image.Image, spec: InputSpec) -> npt.NDArray[np.float32]:
    """An RGB picture as float32 [channels, px, px]."""
    return scaled(framed(image, spec), spec)


def framed(image: Image.Image, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """The part of an RGB picture that the network sees: bytes [px, px, channels], red first."""
    pixels = np.asarray(_framed(image, spec))
    return pixels[..., None] if spec.channels == GREY else pixels


def scaled(frame: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.float32]:
    """What ``framed`` gave, as the network takes it: float32 [channels, px, px], in the order of its
    channels, normalised."""
    pixels = frame.astype(np.float32) / np.float32(255)
    if spec.bgr:
        pixels = pixels[..., ::-1]
    normalised = (pixels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _framed(image: Image.Image, spec: InputSpec) -> Image.Image:
    """The part of the picture that the network sees, px x px, in grey where the network takes grey."""
    if spec.channels == GREY:
        image = image.convert("L")  # before it is resized, as torchvision and Keras do
    # Only the part inside the crop is resized. The pixels are the same, and a strip of 1 x 100,000 px does
    # not fill the memory.
    size, crop = _resized(image.size, spec), spec.px
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return _resize_visible(image, size, (left, top, crop))


def _resized(size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    """Width and height in px that a picture is resized to, before the middle is cut out."""
    side = spec.resize_px
    shorter, longer = sorted(size)
    if spec.resize == "crop":
        # the longer side is truncated, as in torchvision, but never below ``side``
        scaled = max(side, int(side * longer / shorter))
    elif spec.resize == "pad":
        scaled, side = side, max(1, round(side * shorter / longer))
    else:
        scaled = side
    return (side, scaled) if size[0] <= size[1] else (scaled, side)


def _resize_visible(image: Image.Image, size: tuple[int, int], window: tuple[int, int, int]) -> Image.Image:
    """``image.resize(size)`` cropped to ``(left, top, side)``; black outside the picture."""
    left, top, side = window
    if max(size) <= 8 * side:
        return image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def load(path: Path, spec: InputSpec) -> npt.NDArray[np.float32]:
    """``to_tensor(open_image(path, spec))``."""
    return to_tensor(open_image(path, spec), spec)
