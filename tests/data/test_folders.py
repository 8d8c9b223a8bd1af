"""Folders of pictures as people have them."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from picture_folders import classes_of, laid_out

from vgg_export.core.errors import DataError
from vgg_export.data import folders
from vgg_runtime.bundle import images

BOTH = {"cat": 4, "dog": 4}
LAYOUTS: dict[str, tuple[Sequence[str], dict[str, dict[str, int]]]] = {
    "class folders": (["cat/*4", "dog/*4"], {"": BOTH}),
    "a data set in a folder": (["pets/cat/*4", "pets/dog/*4"], {"": BOTH}),
    "the same folder twice": (["Plants/Plants/cat/*4", "Plants/Plants/dog/*4"], {"": BOTH}),
    "images above the classes": (["images/cat/*4", "images/dog/*4", "README.md"], {"": BOTH}),
    "images below the classes": (["cat/images/*4", "dog/Images/*4"], {"": BOTH}),
    "images in a flat folder": (["images/*4"], {"": {"-": 4}}),
    "a flat folder in a folder of its name": (["photos/birds/birds/*4"], {"": {"-": 4}}),
    "parts one folder below": (
        [
            "chest_xray/train/cat/*4",
            "chest_xray/train/dog/*4",
            "chest_xray/test/cat/*4",
            "chest_xray/val/dog/*4",
            "__MACOSX/chest_xray/train/cat/._0.jpg",
        ],
        {"train": BOTH, "test": {"cat": 4}, "select": {"dog": 4}},
    ),
    "a second copy beside the parts": (
        ["train/cat/*4", "train/dog/*4", "test/cat/*4", "test/dog/*4"]
        + [f"chest_xray/{part}/{name}/*4" for part in ("train", "test") for name in ("cat", "dog")],
        {"train": BOTH, "test": BOTH},
    ),
    "parts below images": (
        ["data/images/train/cat/*4", "data/images/train/dog/*4", "data/images/val/cat/*4"],
        {"train": BOTH, "select": {"cat": 4}},
    ),
    "images below the parts": (
        ["train/images/cat/*4", "train/images/dog/*4", "test/images/cat/*4", "test/images/dog/*4"],
        {"train": BOTH, "test": BOTH},
    ),
    "images below parts without classes": (
        ["train/images/*4", "train/labels/0.txt", "valid/images/*4", "valid/labels/0.txt", "data.yaml"],
        {"train": {"-": 4}, "select": {"-": 4}},
    ),
    "images beside annotations": (
        ["images/train/cat/*4", "images/train/dog/*4", "images/val/cat/*4", "labels/train/0.txt"],
        {"train": BOTH, "select": {"cat": 4}},
    ),
    "each part twice, pictures to predict beside": (
        [
            "seg_train/seg_train/cat/*4",
            "seg_train/seg_train/dog/*4",
            "seg_test/seg_test/cat/*4",
            "seg_test/seg_test/dog/*4",
            "seg_pred/seg_pred/*4",
        ],
        {"train": BOTH, "test": BOTH},
    ),
    "each part in another word for it": (
        ["training_set/Training/cat/*4", "training_set/Training/dog/*4", "test_set/test_set/cat/*4"],
        {"train": BOTH, "test": {"cat": 4}},
    ),
    "flat parts twice": (
        ["train/train/*4", "test1/test1/*4", "sampleSubmission.csv"],
        {"train": {"-": 4}, "test": {"-": 4}},
    ),
    "a folder called train_test_split": (
        ["train_test_split/train/cat/*4", "train_test_split/train/dog/*4", "train_test_split/test/cat/*4"],
        {"train": BOTH, "test": {"cat": 4}},
    ),
    "numbered classes": (
        ["train/1/*2", "train/10/*2", "train/2/*2", "valid/1/*2", "valid/10/*2", "test/2/*2"],
        {"train": {"1": 2, "10": 2, "2": 2}, "select": {"1": 2, "10": 2}, "test": {"2": 2}},
    ),
    "a single class in one part": (
        ["train/cat/*4", "train/dog/*4", "val/cat/images/*4"],
        {"train": BOTH, "select": {"cat": 4}},
    ),
    "test pictures in one folder that is no class": (
        ["train/cat/*4", "train/dog/*4", "test/unknown/*4"],
        {"train": BOTH, "test": {"-": 4}},
    ),
    "parts below the classes": (
        ["cat/train/*4", "cat/test/*2", "dog/train/*4", "dog/test/images/*2"],
        {"train": BOTH, "test": {"cat": 2, "dog": 2}},
    ),
    "pictograms beside the parts": (
        ["Train/cat/*4", "Train/dog/*4", "Test/*4", "Meta/*2"],
        {"train": BOTH, "test": {"-": 4}},
    ),
    "upper and lower case of the same": (
        ["Train/cat/*4", "Train/dog/*4", "Test/cat/*4", "train/cat/*4", "train/dog/*4", "test/cat/*4"],
        {"train": BOTH, "test": {"cat": 4}},
    ),
    "what systems leave": (
        [
            "cat/*4",
            "dog/*4",
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            "cat/.DS_Store",
            "cat/Thumbs.db",
            "cat/._0.jpg",
            "dog/desktop.ini",
            "__MACOSX/cat/._0.jpg",
            "__MACOSX/x.jpg",
            "@eaDir/0.jpg",
            "cat/@eaDir/0.jpg/thumb.jpg",
            ".ipynb_checkpoints/0.jpg",
            "dog/.ipynb_checkpoints/0-checkpoint.jpg",
            "$RECYCLE.BIN/0.jpg",
            ".thumbnails/0.jpg",
            "dog/__pycache__/0.jpg",
        ],
        {"": BOTH},
    ),
    "several objects a picture beside the parts": (
        ["fruits/Training/cat/*4", "fruits/Training/dog/*4", "fruits/Test/cat/*4", "fruits/test-multiple/*3"],
        {"train": BOTH, "test": {"cat": 4}},
    ),
    "long names of parts": (
        ["Final_Training/Images/00000/*4", "Final_Training/Images/00001/*4", "Final_Test/Images/*4"],
        {"train": {"00000": 4, "00001": 4}, "test": {"-": 4}},
    ),
    "masks beside the images of each class": (
        ["cat/images/*4", "cat/masks/*4", "dog/images/*4", "dog/Masks/*4"],
        {"": BOTH},
    ),
    "masks beside the images": (["images/cat/*4", "images/dog/*4", "masks/cat/*4"], {"": BOTH}),
    "a stray picture beside a data set in a folder": (["pets/cat/*4", "pets/dog/*4", "plot.png"], {"": BOTH}),
    "empty class folders": (["cat/*4", "dog/*4", "bird/", "fish/.DS_Store", "cow/notes.txt"], {"": BOTH}),
    "an empty part": (["train/cat/*4", "train/dog/*4", "test/"], {"train": BOTH}),
    "a stray picture beside the classes": (["cat/*4", "dog/*4", "sample.jpg"], {"": BOTH}),
    "a stray picture beside the parts": (
        ["train/cat/*4", "train/dog/*4", "test/cat/*4", "sample.jpg"],
        {"train": BOTH, "test": {"cat": 4}},
    ),
    "every suffix in any case": (
        [f"cat/{k}{s}" for k, s in enumerate((".JPG", ".jpe", ".Jfif", ".PGM"))]
        + [f"dog/{k}{s}" for k, s in enumerate((".pnm", ".TIF", ".pbm", ".tiff"))],
        {"": BOTH},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_that_people_have(name: str, tmp_path: Path) -> None:
    files, expected = LAYOUTS[name]
    root = laid_out(tmp_path / "data", files)
    assert classes_of(folders.read(root)) == expected
    # the same with names that are known
    assert classes_of(folders.read(root, ("Cat", "Dog", "1", "2", "10"))) == expected


def test_what_is_left_out_is_counted_by_reason_in_one_line(tmp_path: Path) -> None:
    root = laid_out(
        tmp_path / "flat",
        ["a.jpg", ".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini"]
        + [f"{k}.heic" for k in range(4)]
        + ["b.avif", "notes"],
    )
    assert folders.read(root).notes == (
        f"{root}: 1 of 11 used: 6 with unknown suffix (.heic, .avif, none), 4 left by the system",
    )
    root = laid_out(
        tmp_path / "classes",
        ["cat/*30", "dog/*30", "stray.png", "cat/a.svg", "bird/", "cow/x.heic", "README.md", "train.log"],
    )
    assert folders.read(root).notes == (
        f"{root}: 2 folders without pictures are left out: bird, cow",
        f"{root}: 60 of 63 used: 1 beside the class folders, 2 with unknown suffix (.heic, .svg)",
    )
    root = laid_out(
        tmp_path / "parts",
        [
            "seg_train/cat/*4",
            "seg_train/dog/*4",
            "seg_test/cat/*4",
            "seg_test/dog/*4",
            "seg_pred/*5",
            "poster.png",
        ],
    )
    assert folders.read(root).notes == (
        f"{root}: 16 of 22 used: 5 without a class in seg_pred, 1 beside the parts",
    )
    root = laid_out(tmp_path / "copy", ["cat/*4", "dog/*4", "copy/cat/*4", "copy/dog/*4"])
    assert folders.read(root).notes == (f"{root}: 8 of 16 used: 8 in a second copy of the data (copy)",)
    root = laid_out(
        tmp_path / "masks", ["pets/cat/images/*9", "pets/cat/masks/*4", "pets/dog/*9", "plot.png"]
    )
    assert folders.read(root).notes == (
        f"{root}: 18 of 23 used: 1 beside the data, 4 in masks beside images",
    )
    # nothing to say
    assert folders.read(laid_out(tmp_path / "plain", ["cat/*4", "dog/*4"])).notes == ()


def test_other_pictures_are_no_copy(tmp_path: Path) -> None:
    """Neither with other names, nor with other contents."""
    root = laid_out(tmp_path / "a", ["cat/*4", "dog/*4", "more/cat/x.jpg", "more/dog/*4"])
    assert set(classes_of(folders.read(root))[""]) == {"cat", "dog", "more"}
    root = laid_out(tmp_path / "b", ["cat/*4", "dog/*4", "more/cat/*4", "more/dog/*4"])
    (root / "more" / "cat" / "0.jpg").write_bytes(b"another picture")
    assert set(classes_of(folders.read(root))[""]) == {"cat", "dog", "more"}


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train", "test1"), ("train", "VALID", "test")])
def test_classes_beside_parts_are_refused_with_what_to_do(names: Sequence[str], tmp_path: Path) -> None:
    """Whether the parts hold class folders or only pictures."""
    root = laid_out(tmp_path / "a", [*(f"{n}/cat/*4" for n in names), *(f"{n}/dog/*4" for n in names)])
    laid_out(root, ["cat/*4", "dog/*4"])
    with pytest.raises(DataError, match=rf"holds .*{names[0]}.* beside cat, dog; .* move the others away"):
        folders.read(root)
    root = laid_out(tmp_path / "b", [*(f"{n}/*4" for n in names), "cat/*4", "dog/*4"])
    with pytest.raises(DataError, match="can be read in two ways"):
        folders.read(root)


def test_a_known_class_is_not_gone_down(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "a", ["cat/day/*4", "cat/night/*4"])
    assert classes_of(folders.read(root)) == {"": {"day": 4, "night": 4}}
    assert classes_of(folders.read(root, ("Cat", "Dog"))) == {"": {"cat": 8}}
    root = laid_out(tmp_path / "b", ["images/*4"])
    assert classes_of(folders.read(root, ("images", "other"))) == {"": {"images": 4}}


Form = Literal["NFC", "NFD"]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_are_the_same_in_every_unicode_form(forms: tuple[Form, Form], tmp_path: Path) -> None:
    on_disk, known = (tuple(unicodedata.normalize(f, n) for n in ("Säge", "Öl", "élan")) for f in forms)
    root = laid_out(tmp_path / "d", [f"train/{name}/*4" for name in on_disk])
    laid_out(root, [f"test/{unicodedata.normalize('NFC', name).upper()}/*4" for name in on_disk])
    assert folders.read(root).class_names() == tuple(
        sorted(unicodedata.normalize("NFC", name) for name in on_disk)
    )
    assert data_classes(root, known) == {0: 8, 1: 8, 2: 8}


# Letters that Unicode writes in two ways, of a dozen scripts; İ and ΐ also change their form by folding case.
TWO_FORMS = (
    *(
        "Nguyễn",
        "한국어",
        "がぎぐ",
        "\u0958लम",
        "Ώρα",
        "Йод",
        "\ufb2aלום",
        "أحمد",
        "Å",
        "ệ",
        "ḍ\u0307",
        "ñandú",
    ),
    *("İzmir", "ΐώ", "ǆ\u030c\u0323", "\u0f69"),
)


@pytest.mark.parametrize("name", TWO_FORMS)
def test_letters_of_every_script_are_the_same_in_all_forms(name: str, tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    forms = list(dict.fromkeys((nfc, nfd, name)))
    assert len(forms) > 1
    for k, (on_disk, known) in enumerate([(nfc, forms[1]), (forms[1], nfc), (nfd.upper(), nfc)]):
        root = laid_out(tmp_path / str(k), [f"{on_disk}/*4", "other/*4"])
        assert data_classes(root, ("other", known)) == {0: 4, 1: 4}


def data_classes(root: Path, labels: Sequence[str]) -> dict[int, int]:
    """The number of pictures of each class index."""
    found = folders.read(root, labels)
    index = images.match_folders(
        {p.folder for part in found.parts.values() for p in part if p.folder}, labels, None
    )
    counts: dict[int, int] = {}
    for part in found.parts.values():
        for picture in part:
            counts[index[str(picture.folder)]] = counts.get(index[str(picture.folder)], 0) + 1
    return counts


def test_names_of_files_that_seem_to_be_classes_are_said_not_to_be_read(tmp_path: Path) -> None:
    names = [f"train/{animal}.{k}.jpg" for animal in ("cat", "dog") for k in range(6)]
    root = laid_out(tmp_path / "a", [*names, *(f"test1/{k}.jpg" for k in range(5))])
    for known in ((), ("cats", "dogs"), ("class 0", "class 1")):
        layout = folders.read(root, known)
        assert classes_of(layout) == {"train": {"-": 12}, "test": {"-": 5}}
        assert layout.class_names() == ()
        if known == ("class 0", "class 1"):
            continue
        assert layout.notes == (
            f"{root / 'train'}: file names such as cat.0.jpg seem to name a class, which is not read; for"
            " accuracy put the pictures into folders (cat/, dog/, …), or write a labels.csv with the columns"
            " file,label",
        )
    assert folders.read(root, ("tabby", "collie")).notes == ()
    camera = [f"IMG_{k}.jpg" for k in range(6)] + [f"DSC{k:04}.jpg" for k in range(6)]
    assert folders.read(laid_out(tmp_path / "b", camera)).notes == ()


def test_a_part_without_classes_is_said(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "d", ["train/cat/*4", "train/dog/*4", "test/*5"])
    assert folders.read(root).notes == (
        f"{root / 'test'}: 5 pictures without a class; they give no accuracy",
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["cat/*5", "dog/*5", *(f"IMG_{k}.heic" for k in range(30))], "10 of 40 used: 30 with"),
        (["cat/day/*5", "dog/*5", *(f"cat/{k}.HEIC" for k in range(30))], "10 of 40 used: 30 with"),
        (
            ["cat/*40", "dog/*40", "stray.jpg", "a.avif", "b.DNG"],
            "80 of 83 used: 1 beside the class folders, 2",
        ),
        (["train/cat/*4", "test/cat/*4", "train/x.heic", "y.cr2", "README.md"], "8 of 10 used: 2 with"),
    ],
)
def test_pictures_of_other_formats_are_counted_wherever_they_lie(
    files: list[str], said: str, tmp_path: Path
) -> None:
    root = laid_out(tmp_path / "d", files)
    notes = " ".join(folders.read(root).notes)
    assert said in notes
    assert "README" not in notes


def test_a_pipe_with_a_picture_s_name_is_no_unknown_suffix(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "d", ["*3", "a.heic"])
    os.mkfifo(root / "pipe.png")
    (root / "nowhere.jpeg").symlink_to(root / "gone")
    words = "3 of 6 used: 1 with unknown suffix (.heic), 2 without a file behind the name"
    assert folders.read(root).notes == (f"{root}: {words}",)
    assert images.find(root).in_words() == words


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "d", ["cat/*4"])
    laid_out(tmp_path / "elsewhere", ["*3"])
    (root / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "broken.jpg").symlink_to(root / "nothing.jpg")
    layout = folders.read(root)
    assert classes_of(layout) == {"": {"cat": 4, "dog": 3}}
    assert layout.notes == (f"{root}: 7 of 8 used: 1 without a file behind the name",)


def test_a_folder_of_other_files_is_refused_with_what_was_found(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "d", ["a.heic", "b.heic", "x/c.svg", ".DS_Store"])
    with pytest.raises(DataError, match=r"holds no pictures .*; found 3 files with unknown suffix \(.heic"):
        folders.read(root)
    with pytest.raises(DataError, match="there is no folder"):
        folders.read(tmp_path / "nowhere")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"photos\.zip is a file; --data takes a folder: unpack an archive"):
        folders.read(tmp_path / "photos.zip")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # a part alone with classes whose names begin like parts
        (["seg_train/valley/*4", "seg_train/bird/*4"], {"train": {"valley": 4, "bird": 4}}),
        (["train/train/*4", "train/test/*4"], {"train": {"train": 4, "test": 4}}),
        # a single class of a part's name in every part
        (["train/test/*4", "eval/test/*4"], {"train": {"test": 4}, "test": {"test": 4}}),
        # pictures beside folders of the one class
        (["cat/*4", "cat/more/*4"], {"": {"cat": 8}}),
        (["train/cat/*4", "train/cat/more/*4", "test/cat/*4"], {"train": {"cat": 8}, "test": {"cat": 4}}),
        # the parts in a folder of a part's name
        (["test/train/cat/*4", "test/test/cat/*4"], {"train": {"cat": 4}, "test": {"cat": 4}}),
    ],
)
def test_what_is_a_class_and_what_a_part(
    files: Sequence[str], expected: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    assert classes_of(folders.read(laid_out(tmp_path / "d", files))) == expected
