"""Pictures whose end was lost in a copy, files of other kinds, and tags that change what numbers mean."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from vgg_runtime.bundle import picture_files, preprocess
from vgg_runtime.errors import ImageError
from vgg_runtime.web import uploads

ROWS, COLUMNS = 160, 240
END = b"\xff\xd9"
Y, X = np.mgrid[0:ROWS, 0:COLUMNS]
SHADES = np.stack([X * 255 // COLUMNS, Y * 255 // ROWS, (X // 8 + Y // 8) % 2 * 160 + 40], 2)
NOISY = np.clip(SHADES + np.random.default_rng(0).normal(0, 12, SHADES.shape), 0, 255).astype(np.uint8)


def encoded(kind: str, pixels: np.ndarray = NOISY, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(preprocess.open_image(content))


def complaint(content: bytes) -> str:
    with pytest.raises(ImageError) as error:
        preprocess.open_image(content)
    return str(error.value)


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarting": {"restart_marker_blocks": 20},
    "full colour": {"subsampling": 0},
}


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("quality", [20, 90])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_whose_end_is_zeros_lacks_rows(name: str, quality: int, share: float) -> None:
    jpeg = encoded("JPEG", quality=quality, **JPEGS[name])
    lost = int(len(jpeg) * share)
    for end in (bytes(lost), bytes(lost) + END, bytes(lost - 2) + END):
        assert "the pixels end before the last row" in complaint(jpeg[:-lost] + end)


def test_a_jpeg_with_zeros_in_the_middle_lacks_rows() -> None:
    jpeg = encoded("JPEG", quality=90)
    half = len(jpeg) // 2
    assert "the pixels end before the last row" in complaint(jpeg[:half] + bytes(512) + jpeg[half + 512 :])


def test_zeros_in_place_of_the_last_rows_repeat_the_row_before() -> None:
    jpeg = encoded("JPEG", np.tile(NOISY, (4, 1, 1)), quality=90)
    lost = len(jpeg) // 50
    found, expected = decoded(jpeg[:-lost] + bytes(lost)), decoded(jpeg)
    whole = int((found == expected).all((1, 2)).argmin())
    assert whole >= 0.95 * 4 * ROWS - 8
    assert np.array_equal(found[-1], found[-2])


def plain(height: int, width: int) -> dict[str, np.ndarray]:
    """Pictures of few waves, for which optimised tables make long runs of zeros."""
    y, x = np.mgrid[0:height, 0:width]
    grey = {
        "black": 0 * x,
        "white": 0 * x + 255,
        "across": 255 - x * 255 // max(width - 1, 1),
        "down": y * 255 // max(height - 1, 1),
        "half white": np.where(y > height // 2, 255, np.resize(NOISY, (height, width))),
    }
    red = np.zeros((height, width, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    return {name: np.repeat(v[..., None], 3, 2).astype(np.uint8) for name, v in grey.items()} | {"red": red}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (240, 320), (64, 2000)])
def test_a_plain_jpeg_is_not_taken_for_one_that_lacks_rows(size: tuple[int, int], name: str) -> None:
    for pixels in plain(*size).values():
        for quality in (5, 75, 95, 100):
            jpeg = encoded("JPEG", pixels, quality=quality, **JPEGS[name])
            expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
            assert np.array_equal(decoded(jpeg + bytes(4096)), expected)


WEBPS: dict[str, dict[str, Any]] = {
    "lossy": {"quality": 80},
    "lossless": {"lossless": True},
    "quick": {"lossless": True, "method": 0, "quality": 0},
}


@pytest.mark.parametrize("name", WEBPS)
def test_a_webp_whose_end_is_zeros_lacks_rows_and_a_plain_one_does_not(name: str) -> None:
    webp = encoded("WEBP", **WEBPS[name])
    for share in (0.1, 0.4, 0.9):
        lost = int(len(webp) * share)
        assert "the pixels end before the last row" in complaint(webp[:-lost] + bytes(lost))
    for pixels in plain(240, 320).values():
        content = encoded("WEBP", pixels, **WEBPS[name])
        assert np.array_equal(decoded(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_a_webp_needs_nothing_behind_its_pixels() -> None:
    turned = Image.Exif()
    turned[0x112] = 6
    written: list[dict[str, Any]] = [{"xmp": b"x" * 300}, {"xmp": b"x" * 300, "exif": turned}]
    for options in written:
        webp = encoded("WEBP", lossless=True, **options)
        expected = np.rot90(NOISY, -1) if "exif" in options else NOISY
        for cut in (0, 1, 100, 299):
            assert np.array_equal(decoded(webp[: len(webp) - cut]), expected)
    frames: dict[str, Any] = {
        "save_all": True,
        "append_images": [Image.fromarray(255 - NOISY)],
        "duration": 100,
    }
    assert np.array_equal(decoded(encoded("WEBP", lossless=True, **frames)[:-100]), NOISY)


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw", "jpeg", "group3", "group4"])
def test_a_strip_of_a_tiff_whose_end_is_zeros_lacks_rows(compression: str) -> None:
    image, buffer = Image.fromarray(NOISY), io.BytesIO()
    (image.convert("1") if compression.startswith("group") else image).save(
        buffer, "TIFF", compression=compression
    )
    content = buffer.getvalue()
    assert decoded(content).shape == NOISY.shape
    opened = Image.open(io.BytesIO(content))
    assert isinstance(opened, TiffImagePlugin.TiffImageFile)
    tags = opened.tag_v2
    end = tags[273][-1] + tags[279][-1]
    lost = tags[279][-1] // 2
    assert "the pixels end before the last row" in complaint(
        content[: end - lost] + bytes(lost) + content[end:]
    )


def tiff(pixels: np.ndarray, colours: int, **tags: tuple[int, ...]) -> bytes:
    """One raw strip; ``t281=(4095,)`` adds tag 281."""
    height, width, samples = pixels.shape
    shorts = {
        256: (width,),
        257: (height,),
        258: (8 * pixels.itemsize,) * samples,
        259: (1,),
        262: (colours,),
    }
    shorts |= {273: (8,), 277: (samples,), 278: (height,), 279: (pixels.nbytes,)}
    shorts |= {int(name[1:]): values for name, values in tags.items()}
    start, extra, entries = 8 + pixels.nbytes, b"", b""
    behind = start + 2 + 12 * len(shorts) + 4
    for tag, values in sorted(shorts.items()):
        kind = "L" if tag == 279 else "H"
        data = struct.pack(f"<{len(values)}{kind}", *values)
        if len(data) > 4:
            extra, data = extra + data, struct.pack("<L", behind + len(extra))
        entries += struct.pack("<HHL", tag, 4 if kind == "L" else 3, len(values)) + data.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<L", start) + pixels.tobytes()
    return head + struct.pack("<H", len(shorts)) + entries + bytes(4) + extra


def test_a_fourth_channel_of_a_tiff_is_alpha_only_where_it_says_so() -> None:
    pixels = np.dstack([NOISY, np.zeros((ROWS, COLUMNS), np.uint8)])
    assert np.array_equal(decoded(tiff(pixels, 2)), NOISY)
    assert decoded(tiff(pixels, 2, t338=(2,))).min() == 255


def test_a_tiff_with_a_scale_of_its_own_is_refused() -> None:
    ink = np.dstack([NOISY, np.zeros((ROWS, COLUMNS), np.uint8)])
    assert "DotRange, makes it a negative" in complaint(tiff(ink, 5, t336=(255, 0)))
    assert np.array_equal(decoded(tiff(ink, 5, t336=(0, 255))), 255 - NOISY)
    deep = NOISY[..., :1].astype(np.uint16) * 16
    assert "makes 4095 the largest of 16 bits" in complaint(tiff(deep, 1, t281=(4095,)))
    assert np.array_equal(decoded(tiff(deep * 16, 1, t281=(65535,)))[..., :1], NOISY[..., :1])


def test_a_row_of_a_png_that_is_there_in_part_is_missing() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in NOISY)
    width = 1 + 3 * COLUMNS
    parts = ((b"IHDR", struct.pack(">LLBBBBB", COLUMNS, ROWS, 8, 2, 0, 0, 0)),)
    for missing in (width // 2, 3 * width + width // 2):
        pixels = zlib.compress(rows[:-missing])
        chunks = (*parts, (b"IDAT", pixels), (b"IEND", b""))
        png = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))
            for name, data in chunks
        )
        whole = ROWS - missing // width - 1
        expected = NOISY.copy()
        expected[whole:] = expected[whole - 1]
        assert np.array_equal(decoded(png), expected)


BOX = b"\0\0\0\x20ftyp"
FOREIGN = {
    BOX + b"mif1\0\0\0\0mif1avifmiaf": "an AVIF picture",
    BOX + b"mif1\0\0\0\0mif1heic": "a HEIC picture, as iPhones take",
    BOX + b"mif2\0\0\0\0mif1heic": "a HEIC picture, as iPhones take",
    BOX + b"M4A \0\0\0\0isommp42": "a sound recording",
    BOX + b"isom\0\0\0\0isommp42": "a video",
    b"\0\0\2" + bytes(9) + b"\x40\1\xf0\0\x18\0": "a TGA picture",
    b"\0\0\1\0\1\0\x10\x10\0\0\1\0": "an icon",
    b"%!PS-Adobe-3.0 EPSF-3.0": "a PostScript drawing",
    b'<?xml version="1.0"?><!DOCTYPE svg PUBLIC "a" [<!ENTITY b "c">]><svg>': "an SVG drawing",
    b"<!-- saved --><!DOCTYPE html>": "a web page, not the picture that it shows",
    b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "">': "a web page, not the picture that it shows",
    b"%PDF-1.7 more": "a PDF document",
}  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=lambda content: FOREIGN[content])
def test_a_file_of_another_kind_is_named_also_when_it_is_uploaded(content: bytes) -> None:
    assert picture_files.foreign(content) == FOREIGN[content]
    upload = uploads.Upload(uploads.Intake())
    with pytest.raises(uploads.Refused) as refused:
        upload.take(content)
    assert refused.value.status == 415
    assert str(refused.value).startswith(f"this is {FOREIGN[content]}; expected JPEG, ")
