"""Pictures in folders, as the device finds them."""

import io
from pathlib import Path

import pytest
from picture_folders import laid_out
from PIL import Image

from vgg_runtime.bundle import images, preprocess
from vgg_runtime.errors import ImageError


def found(root: Path, *classes: str) -> set[tuple[str, str | None]]:
    return {(f.path.name, f.folder) for f in images.find(root, classes).found}


def test_every_suffix_of_the_formats_is_a_picture_in_any_case(tmp_path: Path) -> None:
    Image.init()
    registered = {s for s, kind in Image.registered_extensions().items() if kind in preprocess.FORMATS}
    # floating-point pixels are refused
    assert registered - {".pfm"} <= set(preprocess.SUFFIXES)
    assert all(suffix == suffix.lower() for suffix in preprocess.SUFFIXES)
    kinds = Image.registered_extensions() | {".jif": "JPEG", ".jfi": "JPEG"}
    colours = Image.new("RGB", (8, 6), (200, 30, 60))
    for suffix in preprocess.SUFFIXES:
        buffer = io.BytesIO()
        extra = {"save_all": True, "append_images": [colours]} if kinds[suffix] == "MPO" else {}
        colours.save(buffer, kinds[suffix], **extra)
        path = tmp_path / f"x{suffix.upper()}"
        path.write_bytes(buffer.getvalue())
        assert preprocess.open_image(path).size == (8, 6)
    assert found(tmp_path) == {(f"x{suffix.upper()}", None) for suffix in preprocess.SUFFIXES}


def test_what_systems_leave_is_no_picture_and_no_class(tmp_path: Path) -> None:
    left = [".DS_Store", "Thumbs.db", "cat/._a.jpg", "cat/THUMBS.DB", "__MACOSX/cat/._a.jpg", "@eaDir/a.jpg"]
    left += ["cat/@eaDir/a.jpg", ".ipynb_checkpoints/a.jpg", "dog/.ipynb_checkpoints/b.jpg"]
    root = laid_out(tmp_path / "d", ["cat/a.jpg", "dog/b.jpg", *left])
    assert found(root) == {("a.jpg", "cat"), ("b.jpg", "dog")}
    assert images.find(root).in_words() == "2 of 6 used: 4 left by the system"
    # only as whole names
    laid_out(root, ["_cat/c.jpg", "dog/__d.jpg"])
    assert found(root) >= {("c.jpg", "_cat"), ("__d.jpg", "dog")}


def test_single_folders_are_gone_down_unless_they_are_classes(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "a", ["pets/pets/cat/a.jpg", "pets/pets/dog/b.jpg", "readme.txt"])
    assert found(root) == {("a.jpg", "cat"), ("b.jpg", "dog")}
    assert images.find(root).in_words() is None
    root = laid_out(tmp_path / "b", ["cat/day/a.jpg", "cat/night/b.jpg"])
    assert found(root, "Cat") == {("a.jpg", "cat"), ("b.jpg", "cat")}
    assert found(laid_out(tmp_path / "c", ["cat/a.jpg"])) == {("a.jpg", "cat")}
    assert found(laid_out(tmp_path / "d", ["images/a.jpg"])) == {("a.jpg", None)}


def test_a_few_pictures_beside_class_folders_are_left_out_and_many_are_an_error(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "d", ["cat/*30", "dog/*30", *(f"{k}.png" for k in range(3))])
    assert images.find(root).in_words() == "60 of 63 used: 3 beside the class folders"
    laid_out(root, ["3.png"])
    with pytest.raises(ImageError, match="has 4 pictures beside its class folders and 60 inside them"):
        images.find(root)


@pytest.mark.parametrize("names", [("\u00e9", "e\u0301"), ("e\u0301", "\u00e9"), ("E\u0301", "\u00e9")])
def test_a_class_folder_in_another_unicode_form_is_the_same_class(names: tuple[str, str]) -> None:
    folder, label = (f"s{name}al" for name in names)
    assert images.match_folders([folder], ["other", label], None) == {folder: 1}
    assert images.composed("e\u0301") == "\u00e9"


@pytest.mark.parametrize(
    ("unreadable", "count", "too_many"),
    [(1, 1, True), (1, 2, False), (1, 20, False), (2, 39, True), (2, 40, False), (3, 40, True), (0, 0, True)],
)
def test_up_to_5_percent_or_one_may_be_unreadable(unreadable: int, count: int, too_many: bool) -> None:
    assert images.too_many_unreadable(unreadable, count) == too_many
