"""Finds the parts and the classes of a folder of pictures, however it is laid out."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vgg_export.core.errors import DataError
from vgg_runtime.bundle import images
from vgg_runtime.bundle.images import Folder, Found, composed, normalise
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.text import printable

from . import given_labels, tables
from .part_names import is_for_no_part, is_plain, part_of_name

_NAME_AND_NUMBER = re.compile(r"(.*?[^\W\d_])[\W_]*[0-9]+")  # cat.0.jpg, dog_12.png


# names that cameras and programs give
_NO_CLASS = frozenset(("img", "image", "dsc", "dscn", "pic", "photo", "picture", "frame", "p", "screenshot"))


SHOWN = 5


MOST, CLASSES_IN_NAMES = 0.9, 200


@dataclasses.dataclass(frozen=True)
class Layout:
    """The pictures by part: train, select and test where there is a train folder, else all under ``""``.

    ``numbers``: labels from a table that are whole numbers, class indices where they are no names;
    ``notes``: what was read and what was left out, for the log, one line each.
    """

    parts: dict[str, list[Found]]
    numbers: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        """The names of the class folders and of a table's labels, without its numbers, in alphabetical order.

        A class that is spelt otherwise in another part is the same class; train's spelling counts.
        """
        names: set[str] = set()
        for found in (self.parts[part] for part in sorted(self.parts, key=lambda part: part != "train")):
            seen = {normalise(name) for name in names}
            new = {composed(f.folder) for f in found if f.folder}
            names |= {name for name in new - self.numbers if normalise(name) not in seen}
        return tuple(sorted(names))


def read(root: Path, classes: Sequence[str] = ()) -> Layout:
    """The parts and classes of ``root``.

    Args:
        classes: the model's class names and WordNet ids, where they are known; a class may well be called
            "train" or "test".

    Raises:
        DataError: there is no such folder, it holds no pictures, its folders could be parts as well as
            classes (then the message names both readings), or a table of labels contradicts itself.
    """
    ensure_folder(root)
    try:
        return _Reading(root, classes).layout()
    except RuntimeInputError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read ({error.strerror})") from error


def ensure_folder(root: Path) -> None:
    """Make sure that there is a folder ``root``.

    Raises:
        DataError: there is none.
    """
    if root.is_file():
        raise DataError(
            f"{root} is a file; --data takes a folder: unpack an archive first, and give the folder of the"
            " pictures where this is the table of their labels"
        )
    if not root.is_dir():
        raise DataError(
            f"there is no folder {root}; --data takes imagenette, none, or a folder of pictures or class"
            " folders"
        )


class _Reading:
    """One pass over a folder; it collects what is left out and what is to be said."""

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self.root, self.classes = root, classes
        self.known = {normalise(name) for name in classes}
        self.whole = images.look(root)
        self.left_out: Counter[str] = Counter()
        self.notes: list[str] = []
        self.stray: list[Path] = []

    def layout(self) -> Layout:
        top = images.inner(self.whole, self.classes, keep=_is_a_part_itself)
        self._leave_out_stray(images.above(self.whole, top), "beside the data")
        top = dataclasses.replace(top, folders=self._without_copies(top))
        in_folders = self._parts(top)
        names = {f.folder for found in in_folders.values() for f in found}
        labels = given_labels.find(self.root, self.whole, in_folders, self.known)
        parts = labels.parts
        self.notes += labels.notes
        self.left_out += labels.left_out
        self._say_unlabelled(parts)
        self._say_left_out(sum(map(len, parts.values())), labels.read)
        numbers = labels.given - names if all(map(tables.is_number, labels.given)) else ()
        return Layout(parts, frozenset(numbers), tuple(self.notes))

    def _without_copies(self, top: Folder) -> tuple[Folder, ...]:
        """The folders without those that hold the same again, such as chest_xray/ beside train/ and test/ or
        Train/ beside train/."""
        kept: list[Folder] = []
        beside = {normalise(folder.name) for folder in top.folders}
        for folder in top.folders:
            twin = next((f for f in kept if normalise(f.name) == normalise(folder.name)), None)
            inside = images.inner(folder, self.classes, keep=_is_a_part_itself)
            if normalise(folder.name) not in self.known and (
                (twin and _all_in(inside, images.inner(twin, self.classes, keep=_is_a_part_itself)))
                or (
                    not part_of_name(folder.name)
                    and beside & {normalise(f.name) for f in inside.folders}
                    and _all_in(inside, top)
                )
            ):
                self._leave_out(f"in a second copy of the data ({folder.name})", len(folder.all_pictures))
            else:
                kept.append(folder)
        return tuple(kept)

    def _parts(self, top: Folder) -> dict[str, list[Found]]:
        folders = self._part_folders(top)
        if not folders:
            return _parts_within(top) or {"": self._by_class(top)}
        self._leave_out_stray(top.pictures, "beside the parts")
        inner = {part: _down(folder, self.classes) for part, folder in folders.items()}
        # a single folder in test/ is a class where another part has that class, else it holds all pictures
        classes = {f.name for part in inner.values() if len(part.folders) > 1 for f in part.folders}
        flat = Counter(f.name for part in folders.values() for f in part.folders if not f.folders)
        classes |= {name for name, count in flat.items() if count > 1 and not images.is_container(name)}
        known = (*self.classes, *classes)
        parts = {
            part: self._by_class(_down(folder, known, all_known=bool(classes)))
            for part, folder in folders.items()
        }
        if "train" not in parts:
            return {"": [found for part in parts.values() for found in part]}
        return parts

    def _by_class(self, folder: Folder) -> list[Found]:
        found, stray = images.by_class(folder)
        self._leave_out_stray(stray, "beside the class folders")
        return found

    def _part_folders(self, top: Folder) -> dict[str, Folder]:
        """The folder of each part; empty where the folders are classes."""
        folders = list(top.folders)
        alike = [folder for folder in folders if part_of_name(folder.name)]
        plain = [folder for folder in alike if is_plain(folder.name)]
        divided = [folder for folder in plain or alike if _down(folder, self.classes).folders]
        classes = all(normalise(folder.name) in self.known for folder in folders)
        if not classes and (plain or _same_classes(divided)) and divided:
            # seg_pred beside seg_train and seg_test
            folders = self._without_those_to_predict(folders, {part_of_name(f.name) for f in plain})
            alike = [folder for folder in alike if folder in folders]
            plain = [folder for folder in plain or alike if folder in folders]
        # no name of a part, or only one such as "valley" among landscapes
        if not alike or (len(alike) < len(folders) and not plain):
            return {}
        if len(alike) < len(folders):
            if classes:
                return {}
            raise DataError(_beside(folders, plain) if divided else _two_readings(folders, plain))
        if not divided and (classes or len(plain) < len(alike)):
            raise DataError(_two_readings(folders, alike))
        return _by_part(alike)

    def _without_those_to_predict(self, folders: Sequence[Folder], given: set[str | None]) -> list[Folder]:
        """The folders without those whose pictures have no class, such as seg_pred, or test-multiple_fruits
        beside Test. ``given``: the parts that have a folder of their plain name."""
        kept = []
        for folder in folders:
            to_predict = is_for_no_part(folder.name) or (
                not is_plain(folder.name) and part_of_name(folder.name) in given - {None}
            )
            if to_predict and not _down(folder, self.classes).folders:
                self._leave_out(f"without a class in {folder.name}", len(folder.all_pictures))
            else:
                kept.append(folder)
        return kept

    def _leave_out(self, reason: str, count: int) -> None:
        self.left_out[reason] += count

    def _leave_out_stray(self, pictures: Sequence[Path], reason: str) -> None:
        self.left_out[reason] += len(pictures)
        self.stray += pictures

    def _say_unlabelled(self, parts: Mapping[str, Sequence[Found]]) -> None:
        labelled = any(f.folder for found in parts.values() for f in found)
        bare = ([f.path for f in found if not f.folder] for found in parts.values())
        for paths in filter(None, bare):
            where = paths[0].parent
            if labelled:
                self.notes.append(f"{where}: {len(paths)} pictures without a class; they give no accuracy")
            if found := self._classes_in_names(paths):
                self.notes.append(
                    f"{where}: file names such as {paths[0].name} seem to name a class, which is not read;"
                    f" for accuracy put the pictures into folders ({found[0]}/, {found[1]}/, …), or write a"
                    " labels.csv with the columns file,label"
                )

    def _classes_in_names(self, paths: Sequence[Path]) -> list[str]:
        """The words that the file names begin with (cat.0.jpg), where they may be the classes."""
        words = Counter(m[1].strip(" ._-") for p in paths if (m := _NAME_AND_NUMBER.fullmatch(p.stem)))
        common = {word: count for word, count in words.items() if count > 1}
        if not 2 <= len(common) <= CLASSES_IN_NAMES or sum(common.values()) < MOST * len(paths):
            return []
        if all(re.fullmatch("class [0-9]+", name) for name in self.known):  # they have no names
            fits = all(normalise(word) not in _NO_CLASS and part_of_name(word) is None for word in common)
        else:
            fits = all({normalise(word), f"{normalise(word)}s"} & self.known for word in common)
        return sorted(common) if fits else []

    def _say_left_out(self, used: int, read: Sequence[Path]) -> None:
        empty = [f.name for folder in self.whole.below() if folder.folders for f in folder.empty]
        if empty:
            more = ", …" if len(empty) > SHOWN else ""
            self.notes.append(
                f"{self.root}: {len(empty)} folders without pictures are left out:"
                f" {', '.join(map(printable, empty[:SHOWN]))}{more}"
            )
        files = images.unused(self.whole, self.stray, read)
        if words := images.counted(used, self.left_out + files):
            self.notes.append(f"{self.root}: {words}")


def _all_in(folder: Folder, other: Folder) -> bool:
    """Whether each picture of ``folder`` is in ``other``, too, in the same place and as large."""
    return all(
        (twin := other.path / path.relative_to(folder.path)).is_file()
        and twin.stat().st_size == path.stat().st_size
        for path in folder.all_pictures
    )


def _is_a_part_itself(folder: Folder) -> bool:
    """Whether a folder's name is a part's, and it does not hold the parts (train_test_split/train). In
    train/, folders called train and test with only pictures in them are classes."""
    holds_parts = len(folder.folders) > 1 and all(is_plain(f.name) for f in folder.folders)
    if is_plain(folder.name):
        holds_parts = holds_parts and any(f.folders for f in folder.folders)
    return bool(part_of_name(folder.name)) and not holds_parts


def _same_classes(parts: Sequence[Folder]) -> bool:
    """Whether there are at least two, with the same class folders in them."""
    names = [{normalise(f.name) for f in _down(part, ()).folders} for part in parts]
    return len(names) > 1 and all(len(n & names[0]) > 1 for n in names)


def _parts_within(top: Folder) -> dict[str, list[Found]] | None:
    """The parts where each class folder is divided into them (cat/train, cat/test)."""
    inside = [f for one in top.folders for f in one.folders]
    if (
        top.pictures
        or any(one.pictures for one in top.folders)
        or not all(is_plain(f.name) for f in inside)
        or not any(part_of_name(f.name) == "train" for f in inside)
    ):
        return None
    parts: dict[str, list[Found]] = {}
    for one in top.folders:
        for part, folder in _by_part(one.folders).items():
            parts.setdefault(part, []).extend(Found(path, one.name) for path in folder.all_pictures)
    return parts


def _beside(folders: Sequence[Folder], parts: Sequence[Folder]) -> str:
    others = [folder.name for folder in folders if folder not in parts]
    return (
        f"{folders[0].path.parent} holds {', '.join(p.name for p in parts)} beside"
        f" {', '.join(others[:SHOWN])}; expected either train/, val/ and test/ with class folders in them, or"
        " class folders alone; move the others away"
    )


def _two_readings(folders: Sequence[Folder], parts: Sequence[Folder]) -> str:
    shown = ", ".join(folder.name for folder in folders[:8])
    return (
        f"{folders[0].path.parent} can be read in two ways: {', '.join(p.name for p in parts)} as parts of"
        " the data with unlabelled pictures,"
        f" or {shown} as classes. For parts, leave only train, val and test there; for classes, put"
        " these folders into a new one called train"
        + (", or name the classes with --labels" if len(parts) < len(folders) else "")
    )


def _by_part(folders: Sequence[Folder]) -> dict[str, Folder]:
    """The folder of each part. One for evaluation becomes the test part; the selection part, if only that is
    missing.

    Raises:
        DataError: several folders stand for the same part.
    """
    parts: dict[str, list[Folder]] = {}
    for folder in folders:
        parts.setdefault(str(part_of_name(folder.name)), []).append(folder)
    if held := parts.pop("eval", None):
        parts.setdefault("select" if "test" in parts and "select" not in parts else "test", []).extend(held)
    for part, found in parts.items():
        if len(found) > 1:
            raise DataError(
                f"{', '.join(folder.name for folder in found)} in {found[0].path.parent} all stand for the"
                f" part {part!r}; expected one folder for each part: put their pictures together or move the"
                " others away; if they are classes, put them into a new folder called train"
            )
    return {part: found[0] for part, found in parts.items()}


def _down(part: Folder, classes: Sequence[str], *, all_known: bool = False) -> Folder:
    """The first folder on the way down a part that holds pictures or several folders (seg_train/seg_train/).

    Args:
        all_known: ``classes`` are all there are; then a folder of another name is none.
    """
    inner = images.inner(part, classes)
    if inner.pictures or len(inner.folders) != 1 or (only := inner.folders[0]).folders:
        return inner
    same_part = part_of_name(only.name) == part_of_name(part.name) and is_plain(only.name)
    known = {normalise(name) for name in classes}
    return only if normalise(only.name) not in known and (same_part or all_known) else inner
