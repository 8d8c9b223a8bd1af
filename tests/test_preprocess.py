import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from vgg_export import signs
from vgg_runtime import preprocess
from vgg_runtime.errors import ImageError

PHOTOS = sorted((Path(__file__).parent.parent / "calibration" / "images").glob("*.jpg"))


@pytest.mark.parametrize("px", [160, 224])
@pytest.mark.parametrize("path", PHOTOS, ids=lambda p: p.stem)
def test_it_is_torchvisions_evaluation_preset(path: Path, px: int) -> None:
    chosen = preprocess.for_input(px)
    expected = transforms.Compose(
        [
            transforms.Resize(chosen.resize_px),
            transforms.CenterCrop(px),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD),
        ]
    )(Image.open(path).convert("RGB"))
    found = preprocess.load(path, chosen)
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)


def test_the_field_of_view_is_kept() -> None:
    assert preprocess.for_input(224) == preprocess.Preprocessing(256, 224)
    assert preprocess.for_input(160) == preprocess.Preprocessing(183, 160)


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
    assert "more than 50 megapixels" in refusal(tmp_path / "large.png")


def test_corrupt_and_foreign_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert "cannot be decoded" in refusal(tmp_path / "half.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    assert "not a picture this program reads" in refusal(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    assert "not a picture" in refusal(tmp_path / "empty.jpg")
    assert "there is no file" in refusal(tmp_path / "nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.jpg")
    Image.new("F", (10, 10)).save(tmp_path / "float.tiff")
    assert "floating-point pixels" in refusal(tmp_path / "float.tiff")


@pytest.mark.parametrize("size", [(1, 1), (1, 40_000), (40_000, 1), (3, 500)])
def test_extreme_shapes_give_a_tensor(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "strip.png")
    found = preprocess.load(tmp_path / "strip.png", preprocess.for_input(160))
    assert found.shape == (3, 160, 160)
    red = (1 - preprocess.IMAGENET_MEAN[0]) / preprocess.IMAGENET_STD[0]
    assert np.allclose(found[0], red, atol=1e-5)


def test_any_damage_is_an_image_error_or_a_picture() -> None:
    """Thousands of flipped bytes in files with EXIF and in TIFF headers: never another exception."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    originals = []
    for kind, options in (("JPEG", {"exif": exif}), ("TIFF", {}), ("PNG", {"exif": exif}), ("GIF", {}), ("WEBP", {})):
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
