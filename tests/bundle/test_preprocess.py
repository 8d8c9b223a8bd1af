import contextlib
import io
import itertools
import json
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, command_environment
from PIL import Image, ImageFilter
from torchvision import transforms

from vgg_export.data import signs
from vgg_runtime.bundle import input_spec, preprocess
from vgg_runtime.errors import ImageError

PHOTOS = sorted((ROOT / "calibration/images").glob("*.jpg"))


@pytest.mark.parametrize("px", [160, 224])
@pytest.mark.parametrize("path", PHOTOS, ids=lambda p: p.stem)
def test_it_is_torchvisions_evaluation_preset(path: Path, px: int) -> None:
    chosen = input_spec.for_input(px)
    expected = transforms.Compose(
        [
            transforms.Resize(chosen.resize_px),
            transforms.CenterCrop(px),
            transforms.ToTensor(),
            transforms.Normalize(input_spec.IMAGENET_MEAN, input_spec.IMAGENET_STD),
        ]
    )(Image.open(path).convert("RGB"))
    found = preprocess.load(path, chosen)
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)


def test_the_field_of_view_is_kept() -> None:
    assert input_spec.for_input(224) == input_spec.InputSpec(256, 224)
    assert input_spec.for_input(160) == input_spec.InputSpec(183, 160)


def enlarged(path: Path, px: int, **options: Any) -> bytes:
    """A photograph as a JPEG whose shorter side has ``px`` pixels."""
    image = Image.open(path).convert("RGB")
    factor = px / min(image.size)
    size = round(image.width * factor), round(image.height * factor)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("shorter", "decoded"), [(3000, 375), (2928, 366), (2920, 730), (1464, 366), (1463, 732), (731, 731)]
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(shorter: int, decoded: int) -> None:
    """At 160 px pictures are resized to 183 px; twice that must remain."""
    content = enlarged(PHOTOS[0], shorter)
    assert min(preprocess.open_image(content, input_spec.for_input(160)).size) == decoded
    assert min(preprocess.open_image(content).size) == shorter
    assert min(preprocess.size_px(content)) == shorter


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resize", input_spec.RESIZES)
@pytest.mark.parametrize("path", PHOTOS, ids=lambda p: p.stem)
def test_a_part_of_the_size_gives_nearly_the_same_pixels(path: Path, resize: str, orientation: int) -> None:
    spec = input_spec.InputSpec(183, 160, resize=resize)
    block = Image.Exif()
    block[0x112] = orientation
    content = enlarged(path, 2000, exif=block)
    fast, exact = (
        preprocess.framed(preprocess.open_image(content, wanted), spec).astype(float)
        for wanted in (spec, None)
    )
    apart = np.abs(fast - exact)
    assert apart.mean() < 1.0  # of 255
    assert np.quantile(apart, 0.99) < 6


def test_only_a_jpeg_has_parts_of_its_size() -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(enlarged(PHOTOS[0], 1500))).save(buffer, "PNG", compress_level=1)
    assert min(preprocess.open_image(buffer.getvalue(), input_spec.for_input(160)).size) == 1500


def test_a_large_jpeg_that_lacks_rows_is_refused_as_a_small_one() -> None:
    content = enlarged(PHOTOS[0], 3000)
    with pytest.raises(ImageError, match="pixels end before the last row"):
        preprocess.open_image(content[: len(content) // 2], input_spec.for_input(160))
    whole = preprocess.open_image(content[:-2], input_spec.for_input(160))  # only the end marker is missing
    assert min(whole.size) == 375


def picture() -> Image.Image:
    return signs.draw("stop", 5, 96).filter(ImageFilter.GaussianBlur(2))  # no noise: JPEG would not keep it


def mean_difference(path: Path, reference: Image.Image) -> float:
    found = np.asarray(preprocess.open_image(path), np.float32)
    return float(np.abs(found - np.asarray(reference.convert("RGB"), np.float32)).mean())


def test_rgba_is_laid_over_white(tmp_path: Path) -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.save(tmp_path / "clear.png")
    assert np.asarray(preprocess.open_image(tmp_path / "clear.png")).min() == 255


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned clockwise by 90 degrees
    picture().rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert mean_difference(tmp_path / "turned.jpg", picture()) < 4


@pytest.mark.parametrize("mode", ["CMYK", "L", "YCbCr"])
def test_other_colour_spaces_just_work(mode: str, tmp_path: Path) -> None:
    converted = picture().convert(mode)
    converted.save(tmp_path / "image.jpg", quality=97)
    assert mean_difference(tmp_path / "image.jpg", converted.convert("RGB")) < 4


def test_palettes_and_one_bit_images_just_work(tmp_path: Path) -> None:
    picture().quantize(64).save(tmp_path / "palette.png")
    picture().convert("1").save(tmp_path / "bits.png")
    assert mean_difference(tmp_path / "palette.png", picture()) < 12
    assert set(np.unique(np.asarray(preprocess.open_image(tmp_path / "bits.png")))) == {0, 255}


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.asarray(picture().convert("L"), np.uint16)
    Image.fromarray(grey * 257).save(tmp_path / "deep.png")
    found = np.asarray(preprocess.open_image(tmp_path / "deep.png"))
    assert np.array_equal(found[..., 0], grey)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert preprocess.open_image(tmp_path / "moving.gif").getpixel((20, 20)) == (255, 0, 0)


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as error:
        preprocess.open_image(path)
    return str(error.value)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    assert "30000 x 30000 pixels" in refusal(tmp_path / "bomb.png")
    Image.new("1", (8_000, 8_000)).save(tmp_path / "large.png")
    assert "8000 x 8000 pixels, more than 52 megapixels; make it smaller" in refusal(tmp_path / "large.png")


def test_corrupt_and_foreign_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert "cannot be decoded" in refusal(tmp_path / "half.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    assert "not a picture this program reads" in refusal(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    assert "empty.jpg is empty, expected a picture; copy it again" in refusal(tmp_path / "empty.jpg")
    assert "there is no file" in refusal(tmp_path / "nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.jpg")
    Image.new("F", (10, 10)).save(tmp_path / "float.tiff")
    assert "floating-point pixels" in refusal(tmp_path / "float.tiff")


@pytest.mark.parametrize("size", [(1, 1), (1, 40_000), (40_000, 1), (3, 500)])
def test_extreme_shapes_give_a_tensor(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "strip.png")
    found = preprocess.load(tmp_path / "strip.png", input_spec.for_input(160))
    assert found.shape == (3, 160, 160)
    red = (1 - input_spec.IMAGENET_MEAN[0]) / input_spec.IMAGENET_STD[0]
    assert np.allclose(found[0], red, atol=1e-5)


def test_any_damage_is_an_image_error_or_a_picture() -> None:
    """Thousands of flipped bytes in files with EXIF and in TIFF headers: never another exception."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    originals = []
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("TIFF", {}),
        ("PNG", {"exif": exif}),
        ("GIF", {}),
        ("WEBP", {}),
    ):
        buffer = io.BytesIO()
        signs.draw("stop", 1, 32).save(buffer, kind, **options)
        originals.append(buffer.getvalue())
    refused = 0
    for k in range(3000):
        content = bytearray(originals[k % len(originals)])
        for _ in range(int(rng.integers(1, 5))):
            content[int(rng.integers(0, min(len(content), 300)))] ^= int(rng.integers(1, 256))
        try:
            preprocess.open_image(bytes(content))
        except ImageError:
            refused += 1
    assert refused > 300


# What follows is about files that are odd or damaged where the pixels are not; Pillow alone refuses most of
# them, or shows them wrong.


def pattern() -> np.ndarray:
    """Different whichever way it is turned or mirrored; its red, green and blue are not alike."""
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([x * 255 // 79, y * 255 // 59, (x // 8 + y // 8) % 2 * 160 + 40], 2).astype(np.uint8)


RGB = pattern()
GREY = np.ascontiguousarray(RGB[..., 1])
HEIGHT, WIDTH = GREY.shape


def encoded(kind: str, pixels: np.ndarray = RGB, mode: str | None = None, **options: Any) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    (image.convert(mode) if mode else image).save(
        buffer, kind, **({"quality": 95, "subsampling": 0} if kind in ("JPEG", "MPO") else {}) | options
    )
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(preprocess.open_image(content))


def shows(content: bytes, expected: np.ndarray, tolerance: float = 0) -> None:
    found = decoded(content).astype(np.float32)
    wanted = np.repeat(expected[..., None], 3, 2) if expected.ndim == 2 else expected
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() <= tolerance


def complaint(content: bytes) -> str:
    with pytest.raises(ImageError) as error:
        preprocess.open_image(content)
    return str(error.value)


# EXIF


Entry = tuple[int, int, int, bytes]  # tag, type, count, the four bytes of the value or its place


def directory(order: str, *entries: Entry) -> bytes:
    found = b"".join(
        struct.pack(order + "HHL", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in sorted(entries)
    )
    return struct.pack(order + "H", len(entries)) + found + bytes(4)


def exif(order: str, *entries: Entry) -> bytes:
    return (
        b"Exif\0\0"
        + ((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8))
        + directory(order, *entries)
        + bytes(32)
    )


def turning(order: str, value: int = 6) -> Entry:
    return 0x112, 3, 1, struct.pack(order + "H", value)


def stored(orientation: int) -> np.ndarray:
    """The pattern as a camera stores it with an orientation."""
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
    }
    return np.ascontiguousarray(turned.get(orientation, np.rot90(RGB, 3)))


# other directories, a thumbnail, a maker's note
POINTERS = (0x8769, 0x8825, 0xA005, 0x14A, 0x201, 0x202, 0x927C)
KNOWN = (
    *POINTERS,
    0x0,
    0x100,
    0x101,
    0x103,
    0x10F,
    0x110,
    0x11A,
    0x11B,
    0x128,
    0x131,
    0x132,
    0x213,
    0x2BC,
    0x8298,
    0x829A,
    0x8773,
    0xC4A5,
)


def odd_entry(rng: np.random.Generator, order: str) -> Entry:
    tag = int(rng.choice(KNOWN)) if rng.random() < 0.7 else int(rng.integers(0x10000))
    type_ = (
        int(rng.integers(1, 14))
        if rng.random() < 0.8
        else int(rng.choice([0, 14, 16, 17, 18, 19, 255, 65535]))
    )
    count = int(rng.choice([0, 1, 1, 1, 2, 3, 4, 5, 8, 100, 65535, 2**31 - 1, 2**31, 2**32 - 1]))
    place = int(rng.choice([0, 1, 8, 10, 30, 40, 60, 2**16, 2**31, 2**32 - 1]))
    return tag, type_, count, rng.bytes(4) if rng.random() < 0.5 else struct.pack(order + "L", place)


def test_a_thousand_odd_exif_tags_leave_the_picture_upright() -> None:
    rng, pixels = np.random.default_rng(7), stored(6)
    plain = encoded("JPEG", pixels)
    upright = decoded(plain[:2] + segment(0xE1, exif("<", turning("<"))) + plain[2:])
    assert np.abs(upright.astype(np.float32) - RGB).mean() < 4
    for k in range(1000):
        order = "<>"[k % 2]
        entry = odd_entry(rng, order)
        while entry[0] == 0x112:
            entry = odd_entry(rng, order)
        block = exif(order, turning(order), entry)
        assert np.array_equal(decoded(plain[:2] + segment(0xE1, block) + plain[2:]), upright), (order, entry)
        if k % 4 == 0:
            shows(encoded("PNG", pixels, exif=block), RGB)
            shows(encoded("WEBP", pixels, exif=block, lossless=True), RGB)
            if entry[0] not in TIFF_PIXELS:
                shows(tiff(8, 2, pixels, order=order, entries=(turning(order), entry)), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_in_every_format(orientation: int) -> None:
    pixels = stored(orientation)
    for order in "<>":
        block = exif(order, turning(order, orientation))
        shows(encoded("JPEG", pixels, exif=block), RGB, 4)
        shows(
            encoded("MPO", pixels, exif=block, save_all=True, append_images=[Image.fromarray(255 - pixels)]),
            RGB,
            4,
        )
        shows(encoded("PNG", pixels, exif=block), RGB)
        shows(encoded("WEBP", pixels, exif=block, lossless=True), RGB)
        for compression, tag in itertools.product(
            (1, 8), (turning(order, orientation), (0x112, 4, 1, struct.pack(order + "L", orientation)))
        ):
            shows(tiff(8, 2, pixels, order=order, compression=compression, entries=(tag,)), RGB)
    shows(encoded("TIFF", pixels, exif=block, big_tiff=True), RGB)
    text = b"Raw profile type exif\0"
    profile = f"\nexif\n{len(block):8}\n".encode() + b"\n".join(
        block.hex().encode()[k : k + 72] for k in range(0, len(block) * 2, 72)
    )
    png = encoded("PNG", pixels)
    shows(with_chunks(png, ("zTXt", text + b"\0" + zlib.compress(profile))), RGB)
    shows(with_chunks(png, ("tEXt", text + profile)), RGB)
    shows(png[:-12] + chunk("eXIf", block[6:]) + png[-12:], RGB)


ORIENTATIONS = {
    "a byte": ("<", (0x112, 1, 1, b"\6"), True),
    "a byte, big endian": (">", (0x112, 1, 1, b"\6"), True),
    "a long": ("<", (0x112, 4, 1, struct.pack("<L", 6)), True),
    "a long, big endian": (">", (0x112, 4, 1, struct.pack(">L", 6)), True),
    "0": ("<", turning("<", 0), False),
    "9": (">", turning(">", 9), False),
    "65535": ("<", turning("<", 65535), False),
    "a rational": ("<", (0x112, 5, 1, struct.pack("<L", 6)), False),
    "a text": ("<", (0x112, 2, 2, b"6\0"), False),
    "none": ("<", (0x112, 3, 0, b"\6"), False),
    "three of them elsewhere": ("<", (0x112, 3, 3, b"\6"), False),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_an_orientation_is_a_whole_number_from_1_to_8_or_none(name: str) -> None:
    order, entry, turns = ORIENTATIONS[name]
    shows(encoded("PNG", exif=exif(order, entry)), np.rot90(RGB, 3) if turns else RGB)


def test_what_can_be_read_of_a_damaged_exif_block_is() -> None:
    block, pixels = exif("<", turning("<"), (0x10F, 2, 500, struct.pack("<L", 60))), stored(6)
    whole = encoded("PNG", pixels)
    cut = {n: with_chunks(whole, ("eXIf", block[6:n])) for n in range(6, len(block))}
    readable = 6 + 10 + 2 * 12  # up to the end of the second entry, the orientation
    for n, content in cut.items():
        shows(content, RGB if n >= readable else pixels)
    many = block[:14] + struct.pack("<H", 60_000) + block[16:]  # more entries than there are bytes
    endless = block[:40] + struct.pack("<L", 8) + block[44:]  # the next directory is this one
    for damaged in (many, endless, b"Exif\0\0" + block):
        shows(with_chunks(whole, ("eXIf", damaged[6:])), RGB)
        shows(encoded("WEBP", pixels, exif=damaged, lossless=True), RGB)


# PNG


def chunk(name: str, data: bytes, spoil: int = 0) -> bytes:
    body = name.encode() + data
    return struct.pack(">L", len(data)) + body + struct.pack(">L", zlib.crc32(body) ^ spoil)


def with_chunks(png: bytes, *chunks: tuple[str, bytes], spoil: int = 0) -> bytes:
    return png[:33] + b"".join(chunk(name, data, spoil) for name, data in chunks) + png[33:]


def png_of(
    depth: int, colours: int, rows: Sequence[bytes], *chunks: tuple[str, bytes], interlaced: int = 0
) -> bytes:
    header = struct.pack(">LLBBBBB", WIDTH, HEIGHT, depth, colours, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    made = b"\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + chunk("IDAT", pixels) + chunk("IEND", b"")
    return with_chunks(made, *chunks)


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples of 1 to 16 bits, big endian, each row from a whole byte."""
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(
        (values[..., None].astype(np.uint16) >> shifts & 1).astype(np.uint8).reshape(len(values), -1), axis=1
    ).tobytes()


ANCILLARY = {
    "long text": ("zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)),
    "long international text": ("iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)),
    "long profile": ("iCCP", b"name\0\0" + zlib.compress(b"a" * 2_000_000)),
    "unknown compression": ("zTXt", b"Comment\0\7abc"),
    "unknown compression of a profile": ("iCCP", b"name\0\7abc"),
    "short gamma": ("gAMA", b"\1"),
    "short size": ("pHYs", b""),
    "short colours": ("cHRM", b"abc"),
    "no intent": ("sRGB", b""),
    "short transparency": ("tRNS", b"\1"),
    "EXIF that is none": ("eXIf", b"junk"),
    "EXIF in text": ("tEXt", b"Raw profile type exif\0\nexif\n 4\nzz"),
    "text named like what Pillow knows of the rows": ("tEXt", b"interlace\x001"),
    "text named like what Pillow knows of the frame": ("tEXt", b"bbox\x001"),
    "text named like what Pillow knows of the colours": ("tEXt", b"transparency\x001"),
    "text named like EXIF": ("zTXt", b"exif\0\0" + zlib.compress(b"x")),
    "short animation": ("acTL", b"\1"),
    "a frame that is none": ("fcTL", b"\1" * 26),
    "pixels of no frame": ("fdAT", b"\1"),
    "private": ("abCd", bytes(3_000_000)),
    "time": ("tIME", b""),
    "a palette beside colours": ("PLTE", b"\1\2\3"),
}


@pytest.mark.parametrize("name", ANCILLARY)
@pytest.mark.parametrize("spoil", [0, 1], ids=["", "wrong checksum"])
def test_no_ancillary_chunk_of_a_png_refuses_or_changes_it(name: str, spoil: int) -> None:
    png = encoded("PNG")
    shows(with_chunks(png, ANCILLARY[name], spoil=spoil), RGB)
    shows(png[:-12] + chunk(*ANCILLARY[name], spoil) + png[-12:], RGB)


def test_the_pixels_of_a_png_may_lie_in_many_chunks_and_need_no_end() -> None:
    png = encoded("PNG")
    for cut in (1, 4, 11, 12, 13, 16):  # of the end and of the checksum of the pixels
        shows(png[:-cut], RGB)
    shows(png + b"junk" * 1000, RGB)
    shows(png[:-12] + b"junk \xff\xff\xff\xff", RGB)
    place = png.index(b"IDAT")
    pixels = png[place + 4 : -16]
    half = len(pixels) // 2
    parts = (
        chunk("IDAT", pixels[:half]),
        chunk("IDAT", b""),
        chunk("tEXt", b"a\0b"),
        chunk("IDAT", pixels[half:]),
    )
    shows(png[: place - 4] + b"".join(parts) + png[-12:], RGB)
    moving: dict[str, Any] = {
        "save_all": True,
        "append_images": [Image.fromarray(255 - RGB)],
        "duration": 100,
    }
    shows(encoded("PNG", **moving), RGB)
    shows(encoded("PNG", **moving, default_image=True), RGB)


def interlaced(values: np.ndarray) -> list[bytes]:
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    return [row.tobytes() for x, y, across, down in passes for row in values[y::down, x::across]]


def test_a_png_is_refused_for_its_pixels() -> None:
    png = encoded("PNG")
    for name in (b"IHDR", b"IDAT"):
        spoiled = bytearray(png)
        spoiled[png.index(name) + 4 + int.from_bytes(png[png.index(name) - 4 : png.index(name)], "big")] ^= 1
        assert f"the checksum of a chunk {name.decode()} is wrong" in complaint(bytes(spoiled))
    assert "the checksum of a chunk IDAT is wrong" in complaint(
        with_chunks(png, ("IDAT", zlib.compress(bytes(100))), spoil=1)
    )
    assert "the pixels end before the last row" in complaint(png[: -len(png) // 2])
    rows = list(RGB)
    shows(png_of(8, 2, [row.tobytes() for row in rows]), RGB)
    shows(png_of(8, 2, interlaced(RGB), interlaced=1), RGB)
    for missing in (4, 30):
        assert "the pixels end before the last row" in complaint(
            png_of(8, 2, [row.tobytes() for row in rows[:-missing]])
        )
        assert "the pixels end before the last row" in complaint(
            png_of(8, 2, interlaced(RGB)[:-missing], interlaced=1)
        )
    black = np.concatenate([RGB[:50], np.zeros_like(RGB[:10])])
    shows(png_of(8, 2, [row.tobytes() for row in black]), black)
    shows(png_of(16, 0, [bytes(WIDTH * 2)] * HEIGHT), np.zeros_like(GREY))
    assert "the palette is missing" in complaint(png_of(8, 3, [bytes(WIDTH)] * HEIGHT))
    assert "IHDR is missing" in complaint(png[:8] + png[33:])
    assert "begins like a PNG file, but cannot be decoded" in complaint(png_of(8, 7, [bytes(WIDTH)] * HEIGHT))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_its_own(depth: int) -> None:
    values = (GREY.astype(np.uint32) * 257) >> 16 - depth
    key = int(values[30, 0])
    rows = packed(values, depth)
    width = len(rows) // HEIGHT
    content = png_of(
        depth, 0, [rows[k : k + width] for k in range(0, len(rows), width)], ("tRNS", struct.pack(">H", key))
    )
    shows(content, np.where(values == key, 255, values * 255 // ((1 << depth) - 1)))


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_is_its_own(depth: int) -> None:
    scale = 257 if depth == 16 else 1
    rows = [(row.astype(np.uint16) * scale).astype(f">u{depth // 8}").tobytes() for row in RGB]
    content = png_of(depth, 2, rows, ("tRNS", struct.pack(">3H", *(int(v) * scale for v in RGB[30, 30]))))
    shows(content, np.where((RGB[30, 30] == RGB).all(-1, keepdims=True), 255, RGB))


def test_the_transparency_of_a_palette_is_as_long_as_it_at_most() -> None:
    image = Image.fromarray(RGB).quantize(16)
    indices, palette = np.asarray(image), np.array(image.getpalette(), np.uint8)[:48].reshape(16, 3)
    rows = [row.tobytes() for row in indices]
    for alphas in (b"\0", b"\xff\0", bytes(16)):
        opaque = np.isin(indices, [k for k in range(16) if alphas[k : k + 1] != b"\0"])[..., None]
        shows(
            png_of(8, 3, rows, ("PLTE", palette.tobytes()), ("tRNS", alphas)),
            np.where(opaque, palette[indices], 255),
        )
    for alphas in (bytes(17), bytes(300)):  # no transparency, as in browsers
        shows(png_of(8, 3, rows, ("PLTE", palette.tobytes()), ("tRNS", alphas)), palette[indices])


# JPEG


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarting": {"restart_marker_blocks": 1},
    "full colour": {},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize(
    "pixels", [RGB, np.full_like(RGB, 128), np.zeros_like(RGB)], ids=["pattern", "grey", "black"]
)
def test_a_jpeg_needs_all_its_rows_but_no_end_marker(name: str, pixels: np.ndarray) -> None:
    jpeg = encoded("JPEG", pixels, **JPEGS[name])
    expected = decoded(jpeg)
    for content in (
        jpeg[:-1],
        jpeg[:-2],
        jpeg[:-2] + bytes(50),
        jpeg + b"junk",
        jpeg[:-2] + b"\xff\xff\xff\xd9",
    ):
        assert np.array_equal(decoded(content), expected)
    start = jpeg.index(b"\xff\xda") + 20
    for end in range(start, len(jpeg) - 2, 7):
        # otherwise what was cut off says nothing, or, progressive and between scans, only refines
        with contextlib.suppress(ImageError):
            assert np.array_equal(decoded(jpeg[:end]), expected) or name == "progressive"
    if name != "progressive" and pixels is RGB:
        for end in (start + 50, (start + len(jpeg)) // 2):
            assert "the pixels end before the last row" in complaint(jpeg[:end])
            assert "the pixels end before the last row" in complaint(jpeg[:end] + b"\xff\xd9")


TALL = np.ascontiguousarray(np.kron(RGB, np.ones((8, 1, 1), np.uint8)))  # 480 rows


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["", "with an end marker"])
@pytest.mark.parametrize("name", [name for name in JPEGS if name != "progressive"])
def test_a_jpeg_that_lacks_a_few_rows_repeats_the_last_one(name: str, end: bytes) -> None:
    jpeg = encoded("JPEG", TALL, **JPEGS[name])
    expected, used = decoded(jpeg), 0
    for share in (0.99, 0.98, 0.97, 0.94, 0.9, 0.5):
        content = jpeg[: int(len(jpeg) * share)] + end
        try:
            found = decoded(content)
        except ImageError:
            assert share < 0.98
            assert "the pixels end before the last row" in complaint(content)
            continue
        whole = int((found == expected).all((1, 2)).argmin())  # the first row that differs
        assert whole >= 0.95 * 480 - 8  # a block's rows look at the next ones
        assert (found[464:] == found[-1]).mean() > 0.3
        assert np.abs(found.astype(float) - expected).mean() < 4
        used += 1
    assert used >= 2


@pytest.mark.parametrize("scheme", [0, 1], ids=["", "interlaced"])
@pytest.mark.parametrize("missing", [1, 3, 24, 25, 240])
def test_a_png_that_lacks_a_few_rows_repeats_the_last_one(missing: int, scheme: int) -> None:
    header = struct.pack(">LLBBBBB", WIDTH, 480, 8, 2, 0, 0, scheme)
    rows = interlaced(TALL) if scheme else [row.tobytes() for row in TALL]
    data = b"".join(b"\0" + row for row in rows[:-missing])
    pixels = zlib.compress(data)
    for kept in (pixels, pixels[:-4]):  # ended, and cut off
        content = b"\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + chunk("IDAT", kept) + chunk("IEND", b"")
        # an interlaced picture has half of its rows, which are half of its pixels, in its last pass
        if missing > (12 if scheme else 24) * (2 if scheme else 1):
            assert "the pixels end before the last row" in complaint(content)
            continue
        expected = TALL.copy()
        if scheme:
            for y in range(480 - 2 * missing + 1, 480, 2):
                expected[y] = expected[480 - 2 * missing - 1]
        else:
            expected[-missing:] = expected[-missing - 1]
        shows(content, expected)


SEGMENTS = {
    "short JFIF": (0xE0, b"JFIF\0"),
    "short EXIF": (0xE1, b"Exif\0\0II*\0"),
    "no EXIF": (0xE1, b"Exif\0\0junk"),
    "short profile": (0xE2, b"ICC_PROFILE\0"),
    "short index": (0xE2, b"MPF\0II*\0\x08\0\0\0\0\0"),
    "odd index": (0xE2, b"MPF\0" + exif("<", (0xB001, 4, 1, b"\2"), (0xB002, 7, 4, b"abcd"))[6:]),
    "short resources": (0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "short Adobe": (0xEE, b"Adobe"),
    "long comment": (0xFE, bytes(65_000)),
    "empty": (0xEB, b""),
    "an end within": (0xEC, b"\xff\xd9\xff\xda\0\1"),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_no_segment_of_a_jpeg_refuses_or_changes_it(name: str) -> None:
    jpeg = encoded("JPEG")
    assert np.array_equal(decoded(jpeg[:2] + segment(*SEGMENTS[name]) + jpeg[2:]), decoded(jpeg))
    assert np.array_equal(decoded(jpeg[:2] + segment(*SEGMENTS[name]) + b"junk" + jpeg[2:]), decoded(jpeg))


def without_segment(jpeg: bytes, marker: bytes) -> bytes:
    place = jpeg.index(marker)
    return jpeg[:place] + jpeg[place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big") :]


def test_ink_is_never_shown_as_a_negative() -> None:
    ink = np.dstack([255 - RGB, np.zeros_like(GREY)])
    buffers = [io.BytesIO(), io.BytesIO()]
    for buffer, values in zip(buffers, (ink, 255 - ink), strict=True):  # Pillow inverts what it writes
        Image.fromarray(values, "CMYK").save(buffer, "JPEG", quality=95)
    adobe, plain = (buffer.getvalue() for buffer in buffers)
    shows(adobe, RGB, 4)
    shows(without_segment(plain, b"\xff\xee"), RGB, 4)
    place = adobe.index(b"\xff\xee") + 15
    assert adobe[place] == 0  # no transform
    luma = np.dstack([np.asarray(Image.fromarray(255 - RGB).convert("YCbCr")), np.full_like(GREY, 255)])
    buffer = io.BytesIO()
    Image.fromarray(255 - luma, "CMYK").save(buffer, "JPEG", quality=95)
    transformed = bytearray(buffer.getvalue())
    transformed[place] = 2
    shows(bytes(transformed), RGB, 5)
    for compression in (1, 8):
        shows(tiff(8, 5, ink, compression=compression), RGB)
        shows(tiff(16, 5, ink.astype(np.uint16) * 257, compression=compression), RGB)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "PPM", "TIFF"])
def test_what_follows_the_pixels_does_not_matter_but_rows_do(kind: str) -> None:
    content = encoded(kind, lossless=True) if kind == "WEBP" else encoded(kind)
    expected = decoded(content)
    assert np.array_equal(decoded(content + b"junk" * 100), expected)
    if kind == "GIF":
        assert np.array_equal(decoded(content[:-1]), expected)
    half = content[: len(content) // 2]
    assert "the file" in complaint(half)


# Depth and colours


TIFF_PIXELS = {
    254,
    255,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    277,
    278,
    279,
    284,
    292,
    293,
    317,
    *range(320, 326),
    *range(330, 348),
    *range(512, 533),
}


def tiff(
    depth: int,
    colours: int,
    pixels: np.ndarray | Sequence[np.ndarray] | Sequence[bytes],
    *,
    order: str = "<",
    compression: int = 1,
    entries: Sequence[Entry] = (),
    **tags: list[int],
) -> bytes:
    """One strip, or one a channel when they are given; ``t284=[2]`` sets tag 284 to a short."""
    strips: list[Any] = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
    height, width = strips[0].shape[:2] if isinstance(pixels, np.ndarray) else (HEIGHT, WIDTH)
    samples = (pixels.shape[2] if pixels.ndim == 3 else 1) if isinstance(pixels, np.ndarray) else len(strips)
    samples = tags.pop("samples", [samples])[0]
    blocks = []
    for strip in strips:
        if isinstance(strip, bytes):
            block = strip
        else:
            block = (
                strip.astype(f"{order}u{depth // 8}").tobytes()
                if depth in (8, 16, 32)
                else packed(strip, depth)
            )
        blocks.append(zlib.compress(block) if compression == 8 else block)
    shorts = {
        256: [width],
        257: [height],
        258: [depth] * samples,
        259: [compression],
        262: [colours],
        277: [samples],
        278: [height],
    }
    shorts |= {int(name[1:]): values for name, values in tags.items()}
    places = list(itertools.accumulate(map(len, blocks), initial=8))
    longs = {273: places[:-1], 279: [len(block) for block in blocks]}
    extra, found = b"", list(entries)
    end = places[-1] + places[-1] % 2
    behind = end + 2 + 12 * (sum(bool(v) for v in shorts.values()) + 2 + len(entries)) + 4
    for type_, letter, table in ((3, "H", shorts), (4, "L", longs)):
        for tag, values in table.items():
            value = struct.pack(f"{order}{len(values)}{letter}", *values)
            if len(value) > 4:
                extra, value = extra + value, struct.pack(order + "L", behind + len(extra))
            if values:
                found.append((tag, type_, len(values), value))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", end)
    return (head + b"".join(blocks)).ljust(end, b"\0") + directory(order, *found) + extra


@pytest.mark.parametrize("compression", [1, 8], ids=["raw", "deflated"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("white_is_zero", [False, True], ids=["", "white is zero"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 12, 16])
def test_grey_of_any_depth_is_right_or_refused(
    depth: int, white_is_zero: bool, order: str, compression: int
) -> None:
    values = (GREY.astype(np.uint32) * 257 >> 16 - depth).astype(np.uint16)
    expected = values * 255.0 // ((1 << depth) - 1)
    written = (1 << depth) - 1 - values if white_is_zero else values
    for plain in ([1], [2]):  # how the channels lie, of which there is one
        content = tiff(
            depth, int(not white_is_zero), written, order=order, compression=compression, t284=plain
        )
        if depth > 8 and (depth == 12 or white_is_zero) and (order == ">" or (depth == 12 and white_is_zero)):
            assert "begins like a TIFF file, but cannot be decoded" in complaint(content)
        else:
            shows(content, expected, 0.5)


def channels(values: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(values[..., k]) for k in range(values.shape[2])]


ALPHA = np.ascontiguousarray(RGB[..., 0])
FADED = (RGB * (ALPHA[..., None] / 255)).round().astype(np.uint8)
SHADE = (GREY * (ALPHA / 255)).round().astype(np.uint8)
ON_WHITE = FADED + (255 - ALPHA[..., None])


def palette_tags(scale: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    image = Image.fromarray(RGB).quantize(16)
    palette = np.array(image.getpalette(), np.uint8)[:48].reshape(16, 3)
    table = np.zeros((256, 3), int)
    table[:16] = palette
    return np.asarray(image), palette[np.asarray(image)], [int(v) for v in (table.T * scale).ravel()]


@pytest.mark.parametrize("compression", [1, 8], ids=["raw", "deflated"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_colours_of_a_tiff_are_right(order: str, compression: int) -> None:
    how: dict[str, Any] = {"order": order, "compression": compression}
    shows(tiff(8, 2, RGB, **how), RGB)
    shows(tiff(16, 2, RGB.astype(np.uint16) * 257, **how), RGB)
    shows(tiff(8, 2, channels(RGB), **how, t284=[2]), RGB)
    shows(tiff(8, 2, np.dstack([RGB, ALPHA]), **how, t338=[2]), ON_WHITE, 1)
    shows(tiff(8, 2, np.dstack([FADED, ALPHA]), **how, t338=[1]), ON_WHITE, 1)
    shows(tiff(16, 2, np.dstack([FADED, ALPHA]).astype(np.uint16) * 257, **how, t338=[1]), ON_WHITE, 1)
    shows(tiff(8, 1, np.dstack([SHADE, ALPHA]), **how, t338=[1]), SHADE + (255 - ALPHA), 1)
    shows(tiff(8, 2, np.dstack([RGB, ALPHA]), **how, t338=[0]), RGB)
    shows(tiff(8, 6, np.asarray(Image.fromarray(RGB).convert("YCbCr")), **how, t530=[1, 1]), RGB, 2)
    for scale in (257, 1):
        indices, expected, table = palette_tags(scale)
        shows(tiff(8, 3, indices, **how, t320=table), expected)


def test_samples_that_pillow_shows_wrong_are_refused() -> None:
    wide = RGB.astype(np.uint16) * 257
    luma = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    blocks = [luma[y::2, x::2, 0] for y in (0, 1) for x in (0, 1)] + [luma[::2, ::2, 1], luma[::2, ::2, 2]]
    halved = np.stack(blocks, -1).tobytes() + bytes(10_000)
    for compression in (1, 8):
        assert "a TIFF with signed numbers" in complaint(
            tiff(8, 1, GREY ^ 128, compression=compression, t339=[2])
        )
        assert "a TIFF with signed numbers" in complaint(
            tiff(16, 1, GREY.astype(np.uint16) * 128, compression=compression, t339=[2])
        )
        assert "a TIFF with 32 bits a channel" in complaint(
            tiff(32, 1, GREY.astype(np.uint32) * 257, compression=compression)
        )
        assert "cannot be decoded" in complaint(
            tiff(14, 1, GREY.astype(np.uint16) << 6, compression=compression)
        )
        assert "whether zero is black" in complaint(tiff(8, 1, GREY, compression=compression, t262=[]))
        shade = channels(np.dstack([SHADE, ALPHA]))
        assert (
            "convert it"
            in (found := complaint(tiff(8, 1, shade, compression=compression, t338=[2], t284=[2])))
            or "mode" in found
        )
    assert "each channel in a separate plane" in complaint(tiff(16, 2, channels(wide), t284=[2]))
    shows(tiff(16, 2, channels(wide), compression=8, t284=[2]), RGB)
    for subsampling in ([2, 2], []):
        content = tiff(8, 6, [halved], samples=[3], t530=subsampling)
        assert "subsampled colours" in complaint(content)
    assert "a TIFF with rows missing" in complaint(tiff(8, 2, RGB, t278=[HEIGHT // 2]))
    assert "floating-point pixels" in complaint(tiff(32, 1, GREY.astype(np.uint32), t339=[3]))


@pytest.mark.parametrize("most", [1, 15, 100, 255, 1000, 4095, 65535])
def test_the_largest_value_of_a_ppm_is_white(most: int) -> None:
    values = np.round(RGB / 255 * most).astype(">u2" if most > 255 else np.uint8)
    shown = np.round(values / most * 255)
    shows(b"P6 80 60 %d\n" % most + values.tobytes(), shown)
    shows(b"P5 80 60 %d\n" % most + values[..., 1].tobytes(), shown[..., 1], 0.5)
    assert "the file cannot be decoded" in complaint(b"P5 80 60 %d\n" % most + values[..., 1].tobytes()[:-1])


# Size, names


PHONE = (8192, 6144)


@pytest.mark.release
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "RGBA"])
def test_a_phones_fifty_megapixels_fit_into_the_memory_of_a_decoder(kind: str) -> None:
    block = exif("<", turning("<"))
    buffer = io.BytesIO()
    image = Image.new("RGBA" if kind == "RGBA" else "RGB", PHONE, (90, 120, 40))
    image.save(buffer, "JPEG" if kind == "JPEG" else "PNG", exif=block)
    request = {"bytes": len(buffer.getvalue()), "preprocessings": [input_spec.for_input(160).to_json()]}
    done = subprocess.run(
        [sys.executable, "-m", "vgg_runtime.web.decode"],
        input=json.dumps(request).encode() + b"\n" + buffer.getvalue(),
        env=command_environment(),
        capture_output=True,
        check=True,
    )
    line, _, tensor = done.stdout.partition(b"\n")
    answer = json.loads(line)
    assert answer == {
        "event": "decoded",
        "width": 6144,
        "height": 8192,
        "format": "JPEG" if kind == "JPEG" else "PNG",
        "tensor_bytes": [3 * 160 * 160 * 4],
    }
    found = (
        np.frombuffer(tensor, np.float32).reshape(3, -1).mean(1) * input_spec.IMAGENET_STD
        + input_spec.IMAGENET_MEAN
    )
    assert np.allclose(found * 255, (90, 120, 40), atol=2)


def test_sensors_of_108_megapixels_are_decoded_at_a_part_of_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = input_spec.for_input(160)
    buffer = io.BytesIO()
    Image.new("RGB", (12_000, 9_000), (90, 120, 40)).save(buffer, "JPEG")
    found = preprocess.open_image(buffer.getvalue(), spec)
    assert found.size == (1500, 1125)
    assert np.allclose(np.asarray(found)[500, 700], (90, 120, 40), atol=2)
    with pytest.raises(ImageError, match="12000 x 9000 pixels, more than 52 megapixels"):
        preprocess.open_image(buffer.getvalue())
    progressive = io.BytesIO()
    Image.new("L", (8_000, 8_000), 90).save(progressive, "JPEG", progressive=True)
    with pytest.raises(ImageError, match="8000 x 8000 pixels, more than 52 megapixels"):
        preprocess.open_image(progressive.getvalue(), spec)  # all of it would be in memory
    monkeypatch.setattr(preprocess, "MAX_IN_PARTS", 100_000_000)
    with pytest.raises(ImageError, match="12000 x 9000 pixels, more than 100 megapixels"):
        preprocess.open_image(buffer.getvalue(), spec)


SENSORS = (
    *((8064, 6048), (8160, 6144), (6144, 8160), (9248, 6936), (9280, 6944), (11648, 8736)),
    *((12_032, 9024), (9024, 12_032), (16_320, 12_240), (16_384, 12_288)),
)


@pytest.mark.release
@pytest.mark.parametrize("size", SENSORS)
def test_pictures_of_todays_sensors_are_read(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("L", size, 90).save(buffer, "JPEG")
    found = preprocess.open_image(buffer.getvalue(), input_spec.for_input(160))
    assert found.size == (-(-size[0] // 8), -(-size[1] // 8))
    assert np.allclose(np.asarray(found)[::50, ::50], 90, atol=2)


def test_a_name_is_found_in_the_form_it_has(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        path = tmp_path / (unicodedata.normalize(form, "\u00e9") + ".png")
        path.write_bytes(encoded("PNG"))
        assert np.array_equal(np.asarray(preprocess.open_image(path)), RGB)


FOREIGN = {
    "a HEIC picture": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "a HEIC picture, as iPhones take": b"\0\0\0\x18ftypmif1",
    "an AVIF picture": b"\0\0\0\x1cftypavif",
    "a camera's raw picture": b"FUJIFILMCCD-RAW 0201",
    "a video": b"\0\0\0\x18ftypmp42",
    "a video;": b"\x1aE\xdf\xa3\x01",
    "a JPEG XL picture": b"\0\0\0\x0cJXL \r\n\x87\n",
    "a JPEG XL picture;": b"\xff\x0a\xfa",
    "a JPEG 2000 picture": b"\0\0\0\x0cjP  \r\n\x87\n",
    "a Photoshop file": b"8BPS\0\1",
    "a PDF document": b"%PDF-1.7",
    "an icon": b"\0\0\1\0\1\0",
    "an SVG drawing": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="x">',
    "a web page": b"\n<!DOCTYPE html><html>",
    "a note of Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "an archive": b"PK\3\4\x14\0",
    "floating-point pixels": b"#?RADIANCE\n",
    "a DICOM picture": bytes(127) + b"\1DICM",
}


@pytest.mark.parametrize("words", FOREIGN)
def test_a_file_of_another_kind_is_called_by_its_name(words: str) -> None:
    said = complaint(FOREIGN[words])
    assert words.rstrip(";") in said
    assert "convert it to PNG or JPEG" in said


def test_a_file_without_content_is_to_be_copied_again() -> None:
    assert complaint(b"") == "the file is empty, expected a picture; copy it again"
    zeros = "the file holds only zeros, as an interrupted copy leaves, expected a picture; copy it again"
    assert complaint(bytes(3000)) == zeros
