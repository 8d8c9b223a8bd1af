"""Labels of pictures in flat folders, out of CSV and TSV files as people have them."""

import logging
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import CLASSES, small_torchvision_vgg
from picture_folders import classes_of, laid_out

from vgg_export.core.errors import DataError
from vgg_export.core.progress import Quiet
from vgg_export.data import folders, signs, splits
from vgg_export.data import tables as data_tables
from vgg_export.network import weights
from vgg_export.options import DataOptions, WeightsOptions

ANIMALS = {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": "cat", "d.jpg": "dog", "e.jpg": "cat"}
READ = {"": {"cat": 3, "dog": 2}}


def lines(separator: str = ",", name: Callable[[str], str] = str, header: str | None = "file,label") -> str:
    rows = [separator.join((name(file), label)) for file, label in ANIMALS.items()]
    return "\n".join([*([header.replace(",", separator)] if header else []), *rows]) + "\n"


def with_table(root: Path, table: str, content: str | bytes, folder: str = "") -> Path:
    laid_out(root / folder, ANIMALS)
    path = root / table
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def stem(name: str) -> str:
    return name.partition(".")[0]


TABLES: dict[str, tuple[str, str | bytes, str]] = {
    "labels.csv inside": ("labels.csv", lines(), ""),
    "above a folder of images": ("labels.csv", lines(), "images"),
    "of any name": ("my_notes_2024.csv", lines(), ""),
    "train.csv": ("train.csv", lines(), ""),
    "no header": ("labels.csv", lines(header=None), ""),
    "semicolons": ("labels.csv", lines(";"), ""),
    "tabs": ("labels.tsv", lines("\t"), ""),
    "tabs in a .csv": ("labels.csv", lines("\t"), ""),
    "commas in a .tsv": ("labels.tsv", lines(), ""),
    "from a spreadsheet": ("Labels.CSV", b"\xef\xbb\xbf" + lines(";").replace("\n", "\r\n").encode(), ""),
    "UTF-16": ("labels.csv", lines("\t").encode("utf-16"), ""),
    "no suffix in the names": ("labels.csv", lines(name=stem, header="id,breed"), ""),
    "another suffix": ("labels.csv", lines(name=lambda f: f"{stem(f)}.png"), ""),
    "upper case": ("labels.csv", lines(name=str.upper), ""),
    "with the folder": ("labels.csv", lines(name=lambda f: f"images/{f}"), "images"),
    "with a folder that is not there": ("labels.csv", lines(name=lambda f: f"/kaggle/input/x/{f}"), ""),
    "from Windows": ("labels.csv", lines(name=lambda f: f"C:\\data\\images\\{f}"), "images"),
    "the label first": ("labels.csv", "label,file\n" + "".join(f"{v},{k}\n" for k, v in ANIMALS.items()), ""),
    "numbered rows": (
        "labels.csv",
        ",filename,label\n" + "".join(f"{n},{k},{v}\n" for n, (k, v) in enumerate(ANIMALS.items())),
        "",
    ),
    "a name and a number": (
        "labels.csv",
        "class id,filepaths,labels\n" + "".join(f"{v == 'dog':d},{k},{v}\n" for k, v in ANIMALS.items()),
        "",
    ),
    "other columns": (
        "meta.csv",
        "lesion_id,image_id,dx,age,sex\n"
        + "".join(f"L{n % 2},{stem(k)},{v},{50 + n},male\n" for n, (k, v) in enumerate(ANIMALS.items())),
        "",
    ),
    "one column per class": (
        "train.csv",
        "image_id,cat,dog\n"
        + "".join(f"{stem(k)},{v == 'cat':.1f},{v == 'dog':d}\n" for k, v in ANIMALS.items()),
        "",
    ),
    "boxes": (
        "annotations.csv",
        "filename,width,height,class,xmin\n"
        + "".join(f"{k},640,480,{v},{n}\n" for k, v in ANIMALS.items() for n in (1, 2)),
        "",
    ),
    "a part, an address and a label": (
        "automl.csv",
        "".join(f"UNASSIGNED,gs://bucket/{k},{v}\n" for k, v in ANIMALS.items()),
        "",
    ),
    "quoted": ("labels.csv", "".join(f'"{k}","{v}"\n' for k, v in ANIMALS.items()), ""),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_people_have(name: str, tmp_path: Path) -> None:
    table, content, folder = TABLES[name]
    root = with_table(tmp_path / "data", table, content, folder)
    for known in ((), ("Dog", "Cat"), ("class 0", "class 1")):
        layout = folders.read(root, known)
        assert classes_of(layout) == READ
        labels = {f.path.name: f.folder for f in layout.parts[""]}
        assert labels == ANIMALS
        assert layout.class_names() == ("cat", "dog")
    assert f"{root / table}: 5 labels read, file names from " in layout.notes[0]


def test_a_table_beside_the_folder_that_was_named(tmp_path: Path) -> None:
    root = with_table(tmp_path, "labels.csv", lines(), "photos") / "photos"
    (tmp_path / "budget.csv").write_text("what,cost\nbread,3\n")
    layout = folders.read(root)
    assert classes_of(layout) == READ
    assert len(layout.notes) == 1  # nothing about the other one
    # one that names few of the pictures is not meant
    laid_out(root, [f"x{k}.jpg" for k in range(6)])
    assert classes_of(folders.read(root)) == {"": {"-": 11}}


def test_pictures_without_a_row_or_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    text = lines().replace("e.jpg,cat", "e.jpg,") + "gone.jpg,cat\n"
    root = laid_out(with_table(tmp_path / "d", "labels.csv", text), ["x.jpg", "y.jpg"])
    layout = folders.read(root)
    assert classes_of(layout) == {"": {"cat": 2, "dog": 2}}
    assert layout.notes == (
        f"{root / 'labels.csv'}: 4 labels read, file names from 'file', labels from 'label' (1 rows name no"
        " picture here)",
        f"{root}: 4 of 7 used: 2 without a row in labels.csv, 1 without a label in labels.csv",
    )


def test_a_part_has_its_own_table(tmp_path: Path) -> None:
    """Also where pictures of several parts have the same names."""
    root = tmp_path / "d"
    for part in ("train", "test"):
        laid_out(root / part, ANIMALS)
    (root / "train.csv").write_text(lines())
    (root / "sample_submission.csv").write_text(lines().replace("dog", "cat"))
    layout = folders.read(root)
    assert classes_of(layout) == {"train": {"cat": 3, "dog": 2}, "test": {"-": 5}}
    assert f"{root / 'test'}: 5 pictures without a class; they give no accuracy" in layout.notes
    (root / "test.csv").write_text(lines().replace("cat", "bird"))
    assert classes_of(folders.read(root))["test"] == {"bird": 3, "dog": 2}
    (root / "test.csv").unlink()
    (root / "test" / "labels.csv").write_text(lines().replace("cat", "fish"))
    assert classes_of(folders.read(root))["test"] == {"fish": 3, "dog": 2}


def test_a_table_only_for_the_test_part_with_numbers_as_the_folders(tmp_path: Path) -> None:
    """As of traffic signs: Train/ has class folders called by numbers, Test/ has a table."""
    root = laid_out(tmp_path / "d", ["Train/0/*4", "Train/1/*4", "Train/10/*4", "Test/*3", "Meta/0.png"])
    (root / "Train.csv").write_text("ClassId,Path\n" + "".join(f"{c},Train/{c}/0.jpg\n" for c in (0, 1, 10)))
    (root / "Test.csv").write_text(
        "Width,Height,ClassId,Path\n" + "".join(f"9,9,{c},Test/{k}.jpg\n" for k, c in enumerate((10, 0, 1)))
    )
    (root / "Meta.csv").write_text("Path,ClassId\nMeta/0.png,0\n")
    layout = folders.read(root)
    assert classes_of(layout) == {"train": {"0": 4, "1": 4, "10": 4}, "test": {"0": 1, "1": 1, "10": 1}}
    assert layout.class_names() == ("0", "1", "10")
    assert layout.numbers == frozenset()


def test_tables_divide_a_folder_into_parts(tmp_path: Path) -> None:
    def some(names: Sequence[str], header: str = "file,label") -> str:
        return "\n".join([header, *(f"{n},{ANIMALS[n]}" for n in names)])

    root = laid_out(tmp_path / "a", [f"images/{name}" for name in ANIMALS])
    (root / "train.csv").write_text(some(["a.jpg", "b.jpg"]))
    (root / "valid.csv").write_text(some(["c.jpg"]))
    (root / "test.csv").write_text(some(["b.jpg", "d.jpg", "e.jpg"]))  # b is also trained on
    expected = {"train": {"cat": 1, "dog": 1}, "select": {"cat": 1}, "test": {"cat": 1, "dog": 1}}
    assert classes_of(folders.read(root)) == expected
    # test.csv without labels
    (root / "test.csv").write_text("file\nd.jpg\ne.jpg\n")
    layout = folders.read(root)
    assert classes_of(layout) == {"train": {"cat": 1, "dog": 1}, "select": {"cat": 1}}
    assert f"{root / 'test.csv'}: not used, since it has no column beside the file names" in layout.notes
    rows = "".join(
        f"{n},{ANIMALS[n]},{part}\n"
        for n, part in zip(ANIMALS, ("train", "train", "Validation", "test", "test"), strict=True)
    )
    root = with_table(tmp_path / "b", "all.csv", "file,label,split\n" + rows)
    assert classes_of(folders.read(root)) == expected
    rows = "".join(
        f"{row.split(',')[2].upper()},gs://x/{','.join(row.split(',')[:2])}\n" for row in rows.split()
    )
    root = with_table(tmp_path / "c", "all.csv", rows)
    assert classes_of(folders.read(root)) == expected


def test_a_table_in_each_part(tmp_path: Path) -> None:
    """As annotation tools export them."""
    text = "filename, cat, dog\n" + "".join(
        f"{k}, {v == 'cat':d}, {v == 'dog':d}\n" for k, v in ANIMALS.items()
    )
    for part in ("train", "valid", "test"):
        with_table(tmp_path / "d" / part, "_classes.csv", text)
    (tmp_path / "d" / "README.txt").write_text("x")
    assert classes_of(folders.read(tmp_path / "d")) == {
        part: {"cat": 3, "dog": 2} for part in ("train", "select", "test")
    }


def test_images_and_tables_of_a_competition(tmp_path: Path) -> None:
    root = tmp_path / "d"
    laid_out(root / "train_images", ANIMALS)
    laid_out(root, ["test_images/x.png", "test_images/y.png", "train_tfrecords/0.tfrec"])
    codes = {"cat": "0", "dog": "1"}
    (root / "train.csv").write_text(
        "id_code,diagnosis\n" + "".join(f"{stem(k)},{codes[v]}\n" for k, v in ANIMALS.items())
    )
    (root / "test.csv").write_text("id_code\nx\ny\n")
    (root / "sample_submission.csv").write_text("id_code,diagnosis\nx,0\ny,0\n")
    layout = folders.read(root)
    assert classes_of(layout) == {"train": {"0": 3, "1": 2}, "test": {"-": 2}}
    assert layout.class_names() == ()
    assert layout.numbers == frozenset("01")


def test_pieces_of_a_large_folder_are_no_classes(tmp_path: Path) -> None:
    root = tmp_path / "d"
    laid_out(root / "HAM_images_part_1", list(ANIMALS)[:3])
    laid_out(root / "HAM_images_part_2", list(ANIMALS)[3:])
    assert classes_of(folders.read(root))[""].keys() == {"HAM_images_part_1", "HAM_images_part_2"}
    (root / "metadata.csv").write_text(lines(name=stem))
    for known in ((), ("cat", "dog")):
        assert classes_of(folders.read(root, known)) == READ


def test_class_folders_win_over_a_table(tmp_path: Path) -> None:
    """A table beside class folders says something else, such as the photographer."""
    root = laid_out(tmp_path / "d", ["cat/a.jpg", "cat/c.jpg", "cat/e.jpg", "dog/b.jpg", "dog/d.jpg"])
    (root / "meta.csv").write_text(lines().replace("cat", "Ann").replace("dog", "Bob"))
    assert classes_of(folders.read(root)) == READ
    assert classes_of(folders.read(root, ("dog", "cat"))) == READ
    assert classes_of(folders.read(root, ("Ann", "Bob"))) == {"": {"Ann": 3, "Bob": 2}}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"labels.csv": lines() + "a.jpg,dog\n"}, "contradicts itself: a.jpg is 'cat' and 'dog'"),
        (
            {"labels.csv": lines(), "other.csv": lines().replace("cat", "fox")},
            "contradict each other: a.jpg is 'cat' and 'fox'",
        ),
        (
            {
                "x.csv": "file,colour,size\n"
                + "".join(f"{k},{n % 2},{n % 3}\n" for n, k in enumerate(ANIMALS))
            },
            "has several columns that could be the labels: colour, size; call the right one 'label'",
        ),
        (
            {
                "x.csv": "file,fine_label,coarse_label\n"
                + "".join(f"{k},{n % 4},{n % 3}\n" for n, k in enumerate(ANIMALS))
            },
            "has several columns that could be the labels: fine_label, coarse_label",
        ),
        (
            {"x.csv": "file,wet,red\n" + "".join(f"{k},{n < 3:d},{n % 2}\n" for n, k in enumerate(ANIMALS))},
            "gives some pictures several labels (among wet, red, …)",
        ),
    ],
)
def test_tables_that_do_not_say_one_thing_are_refused(
    tables: dict[str, str], words: str, tmp_path: Path
) -> None:
    root = laid_out(tmp_path / "d", ANIMALS)
    for name, text in tables.items():
        (root / name).write_text(text)
    with pytest.raises(DataError) as error:
        folders.read(root)
    assert words in str(error.value)


def test_a_name_that_fits_two_pictures_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for part in ("train", "test"):
        laid_out(root / part, ANIMALS)
    (root / "labels.csv").write_text(lines())
    with pytest.raises(
        DataError, match=r"names 'a.jpg', which can be .*/test/a.jpg or .*/train/a.jpg; write"
    ):
        folders.read(root)
    (root / "labels.csv").write_text(lines(name=lambda f: f"train/{f}"))
    assert classes_of(folders.read(root)) == {"train": {"cat": 3, "dog": 2}, "test": {"-": 5}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("what,cost\nbread,3\n", "names none of the pictures"),
        ("a.jpg\nb.jpg\n", "has no column beside the file names"),
        ("Filename;Width;Height;Roi.X1\na.jpg;40;41;5\nb.jpg;40;40;6\n", "has no column of labels"),
        ("", "names none of the pictures"),
        (
            "file,caption\n" + "".join(f"p{k}.jpg,picture {k}\n" for k in range(12)),
            "each row has a value of its own",
        ),
        ('"' + "x" * 200_000, "names none of the pictures"),
    ],
)
def test_a_table_without_labels_is_said_and_not_used(text: str, why: str, tmp_path: Path) -> None:
    root = laid_out(tmp_path / "d", [*ANIMALS, *(f"p{k}.jpg" for k in range(12))])
    (root / "x.csv").write_text(text)
    layout = folders.read(root)
    assert classes_of(layout) == {"": {"-": 17}}
    assert why in layout.notes[0]


def test_a_table_that_cannot_be_read_or_is_too_large_is_said_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = with_table(tmp_path / "d", "labels.csv", lines())
    (root / "broken.csv").symlink_to(tmp_path / "nothing")
    assert classes_of(folders.read(root)) == READ
    assert f"{root / 'broken.csv'}: not used, since it cannot be read (No such file or directory)" in (
        folders.read(root).notes
    )
    monkeypatch.setattr(data_tables, "MAX_BYTES", 20)
    layout = folders.read(root)
    assert classes_of(layout) == {"": {"-": 5}}
    assert f"{root / 'labels.csv'}: not used, since it is larger than 0 MB" in layout.notes


def test_names_of_files_in_every_unicode_form(tmp_path: Path) -> None:
    def form(kind: Literal["NFC", "NFD"], text: str) -> str:
        return unicodedata.normalize(kind, text)

    forms: list[tuple[Literal["NFC", "NFD"], Literal["NFC", "NFD"]]] = [("NFC", "NFD"), ("NFD", "NFC")]
    for k, (disk, table) in enumerate(forms):
        root = laid_out(tmp_path / str(k), [form(disk, f"{n}é.jpg") for n in range(4)])
        rows = [form(table, f"{n}é.jpg,{'Säge' if n % 2 else 'Öl'}") for n in range(4)]
        (root / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
        assert folders.read(root).class_names() == ("Säge", "Öl")


def resolved(root: Path, labels: tuple[str, ...]) -> dict[str, int | None]:
    found = splits.resolve(DataOptions(str(root)), "file", labels, None, Path("unused"), Quiet())
    return {i.path.name: i.label for i in (*found.fit, *found.select, *found.test)}


def drawn(root: Path, count: int) -> Path:
    root.mkdir()
    for k in range(count):
        signs.draw(signs.CLASSES[k % 20], k, 40).save(root / f"{k}.png")
    return root


def test_labels_reach_the_pictures_as_class_indices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = drawn(tmp_path / "d", 14)
    names = ("stop", "yield", "ahead only")
    table = root / "labels.csv"
    table.write_text("id,label\n" + "".join(f"{k},{names[k % 3].upper()}\n" for k in range(14)))
    assert splits.class_folders(DataOptions(str(root))) == ("AHEAD ONLY", "STOP", "YIELD")
    with caplog.at_level(logging.INFO):
        assert resolved(root, names) == {f"{k}.png": k % 3 for k in range(14)}
    assert "14 labels read, file names from 'id', labels from 'label'" in caplog.text
    # numbers are the classes' numbers, never names in the order of the alphabet
    table.write_text("id,label\n" + "".join(f"{k},{k % 3}.0\n" for k in range(14)))
    assert splits.class_folders(DataOptions(str(root))) is None
    with caplog.at_level(logging.INFO):
        assert resolved(root, names) == {f"{k}.png": k % 3 for k in range(14)}
    assert "the table's numbers are taken as those of the classes (0: stop)" in caplog.text
    # unless the classes are called so
    assert resolved(root, ("2", "1", "0"))["0.png"] == 2
    with pytest.raises(
        DataError, match="gives the number 2 as a label, the model has 2 classes; expected 0 to 1"
    ):
        resolved(root, ("a", "b"))
    table.write_text("id,label\n" + "".join(f"{k},moose\n" for k in range(14)))
    with pytest.raises(DataError, match="moose"):
        resolved(root, names)


def test_a_checkpoint_without_names_takes_those_of_the_table(tmp_path: Path) -> None:
    """In the order of the alphabet; numbers stay the numbers of its outputs."""
    torch.save(small_torchvision_vgg("vgg11", False).state_dict(), tmp_path / "mine.pth")
    root = drawn(tmp_path / "d", 14)
    given = WeightsOptions(str(tmp_path / "mine.pth"))
    (root / "labels.csv").write_text("".join(f"{k}.png,{CLASSES[k % 7]}\n" for k in range(14)))
    named = weights.resolve(given, lambda: splits.class_folders(DataOptions(str(root))))
    assert named.labels == tuple(sorted(CLASSES))
    found = resolved(root, named.labels)
    assert found == {f"{k}.png": named.labels.index(CLASSES[k % 7]) for k in range(14)}
    (root / "labels.csv").write_text("".join(f"{k}.png,{k % 7}\n" for k in range(14)))
    numbered = weights.resolve(given, lambda: splits.class_folders(DataOptions(str(root))))
    assert numbered.labels == tuple(f"class {k}" for k in range(7))
    assert resolved(root, numbered.labels) == {f"{k}.png": k % 7 for k in range(14)}
