"""An image file -> the tensor a VGG takes. The only place where pictures are decoded, resized, cropped and normalised:
calibration, evaluation and the device all use this one.

The steps are torchvision's ImageNet evaluation preset on PIL images: shorter side to ``resize_px`` (bilinear with
antialiasing), centre crop of ``crop_px``, scale to 0..1, subtract the mean, divide by the standard deviation.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of these Pillow's decoders only: a picture dropped in by a stranger should not reach the exotic ones.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MAX_PIXELS = 50_000_000  # 150 MB decoded; a 512 MB board has to live with it
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns, and lies higher; ours is checked before anything is decoded
BACKGROUND = (255, 255, 255)  # behind transparency


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Sizes in px, mean and standard deviation per RGB channel of values 0..1."""

    resize_px: int
    crop_px: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_json(self) -> dict[str, Any]:
        return {"resize_px": self.resize_px, "crop_px": self.crop_px, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(data["resize_px"], data["crop_px"], tuple(data["mean"]), tuple(data["std"]))


def for_input(input_px: int) -> Preprocessing:
    """The preset for an input size, with the field of view of 256 -> 224 kept (160 px: resize to 183)."""
    return Preprocessing(round(256 * input_px / 224), input_px)


def open_image(source: Path | bytes) -> Image.Image:
    """Decode a picture to RGB, upright.

    EXIF orientation is applied, transparency is laid over white, CMYK and palettes are converted, 16-bit grey is scaled
    to 8 bit, and of an animation the first frame is taken.

    Raises:
        ImageError: not a picture of the allowed formats, damaged, or more than ``MAX_PIXELS`` (checked before decoding).
    """
    name = str(source) if isinstance(source, Path) else "the file"
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                limit = f"{MAX_PIXELS // 1_000_000} megapixels"
                raise ImageError(f"{name} is {image.width} x {image.height} pixels, more than {limit}; make it smaller first")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), name)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {name}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, expected a picture; use --images for folders") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture this program reads ({', '.join(FORMATS)})") from error
    except ImageError:
        raise
    except Exception as error:  # a damaged picture makes a decoder fail in any way there is (struct.error, TypeError, ...)
        raise ImageError(f"{name} cannot be decoded ({_in_words(error)}); it is damaged or not what its name says") from error


def _in_words(error: Exception) -> str:
    """What a decoder complains of; some of them raise bytes."""
    reason = error.args[0] if error.args else type(error).__name__
    return reason.decode("latin-1") if isinstance(reason, bytes) else str(error)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I":
        # Pillow opens some 16-bit files as 32-bit integers; anything beyond 16 bits has no agreed brightness.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError(f"{name} holds 32-bit integers; expected at most 16 bits a channel: convert it to PNG or JPEG")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels; expected 8 or 16 bits a channel: convert it to PNG or JPEG")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        backdrop = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(backdrop, layer)
    return image.convert("RGB")


def to_tensor(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """An RGB picture as float32 [3, crop_px, crop_px]."""
    side = preprocessing.resize_px
    width, height = image.size
    # torchvision truncates the longer side; never to nothing, even of a picture one pixel high
    size = (side, max(side, int(side * height / width))) if width <= height else (max(side, int(side * width / height)), side)
    # Only the part that the crop can see is resized: the same pixels, and a 1 x 100,000 px strip does not fill the memory.
    crop = preprocessing.crop_px
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    resized = _resize_visible(image, size, (left, top, crop))
    pixels = np.asarray(resized, np.float32) / np.float32(255)
    normalised = (pixels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _resize_visible(image: Image.Image, size: tuple[int, int], window: tuple[int, int, int]) -> Image.Image:
    """``image.resize(size)`` cropped to ``(left, top, side)``."""
    left, top, side = window
    if max(size) <= 8 * side:
        return image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def load(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """``to_tensor(open_image(path))``."""
    return to_tensor(open_image(path), preprocessing)
