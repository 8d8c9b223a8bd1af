"""Pictures as every program here decodes them: from bytes to a tensor."""

import io
from typing import Any

import numpy as np
from fuzz.fuzzing import Target
from PIL import Image

from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.preprocess import open_image, size_px, to_tensor
from vgg_runtime.errors import ImageError

SPEC = for_input(16)
KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("RGB", kind, {}) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")),
    ("CMYK", "JPEG", {}),
    ("L", "JPEG", {"progressive": True}),
    ("P", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("1", "TIFF", {"compression": "group4"}),
    ("I;16", "TIFF", {}),
    ("I;16", "PNG", {}),
    ("RGB", "TIFF", {"compression": "jpeg"}),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    ("1", "PPM", {}),
)


def seeds() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "a maker"
    found = []
    for mode, kind, options in KINDS:
        image = Image.fromarray(noise)
        image = (
            Image.fromarray(noise[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
        )
        file = io.BytesIO()
        more: dict[str, Any] = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
        image.save(file, kind, **more, **options)
        found.append(file.getvalue())
    return found


def feed(data: bytes) -> None:
    image = open_image(data, SPEC)
    tensor = to_tensor(image, SPEC)
    assert tensor.shape == (3, 16, 16)
    assert np.isfinite(tensor).all()
    assert image.mode == "RGB"
    whole = open_image(data)
    assert size_px(data) == whole.size


TARGET = Target(seeds, feed, (ImageError,))
