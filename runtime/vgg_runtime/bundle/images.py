"""Finds pictures in folders and maps class folders to a model's classes."""

import collections
import dataclasses
import functools
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vgg_runtime.errors import ImageError, RuntimeInputError

from .preprocess import SUFFIXES

# What systems and programs leave in folders, in lower case: neither pictures nor classes. So is every name
# that begins with a dot (.DS_Store, ._x.jpg, .ipynb_checkpoints) or, of a folder, with two underscores
# (__MACOSX).
SYSTEM_NAMES = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    )
)
# A folder of one of these names only holds pictures or class folders; it is no class.
CONTAINERS = frozenset(
    (
        *("images", "image", "imgs", "img", "pictures", "pics", "photos", "jpg", "jpeg", "jpegs", "png"),
        *("pngs", "data", "dataset", "datasets", "classes"),
    )
)
# Folders of one of these names beside "images" hold pictures that belong to the others.
COMPANIONS = frozenset(
    (
        *("masks", "mask", "labels", "annotations", "segmentation", "segmentations", "segmentation masks"),
        *("ground truth", "groundtruth", "gt", "heatmaps", "thumbnails", "thumbs", "previews"),
    )
)
# Suffixes of pictures that are not read: of phones, browsers, cameras and scanners.
OTHER_PICTURES = frozenset(
    (
        *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".jp2", ".j2k", ".jpx", ".svg", ".psd", ".tga"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw", ".exr"),
    )
)
_OF_PICTURES = OTHER_PICTURES | frozenset(SUFFIXES)
STRAY_SHARE = 0.05  # of the pictures in class folders: so many beside them were left there by mistake
BY_SYSTEM = "left by the system"
WITHOUT_FILE = "without a file behind the name"  # a link that leads nowhere, a pipe
SHOWN_SUFFIXES = 4
UNREADABLE_SHARE = 0.05  # of pictures: so many that cannot be decoded, or a single one, are left out


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture file; ``folder`` is the class folder it lies in (or its label from a table), None without."""

    path: Path
    folder: str | None


@dataclasses.dataclass(frozen=True)
class Folder:
    """What lies in a folder: pictures, folders with a picture anywhere inside, folders without one, and other
    files. All are sorted. ``companions`` are folders such as masks beside images, ``system`` counts what the
    system left there."""

    path: Path
    pictures: tuple[Path, ...]
    folders: tuple["Folder", ...]
    empty: tuple["Folder", ...]
    companions: tuple["Folder", ...]
    others: tuple[Path, ...]
    system: int

    @property
    def name(self) -> str:
        return self.path.name

    @functools.cached_property
    def all_pictures(self) -> tuple[Path, ...]:
        """The pictures at any depth, sorted."""
        return tuple(sorted([*self.pictures, *(p for f in self.folders for p in f.all_pictures)]))

    def below(self) -> Iterator["Folder"]:
        """This folder and all folders inside it."""
        yield self
        for folder in (*self.folders, *self.empty):
            yield from folder.below()


@dataclasses.dataclass(frozen=True)
class Listing:
    """The pictures of a folder, and what was left out, by reason: counts of files."""

    found: tuple[Found, ...]
    left_out: tuple[tuple[str, int], ...] = ()

    def in_words(self) -> str | None:
        """One line, such as "1 of 11 used: 6 with unknown suffix (.heic), 4 left by the system"; None where
        every file is used."""
        return counted(len(self.found), collections.Counter(dict(self.left_out)))


def counted(used: int, left_out: collections.Counter[str]) -> str | None:
    """How many files are used and why others are not; None where all are."""
    if not (dropped := sum(left_out.values())):
        return None
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return f"{used} of {used + dropped} used: {reasons}"


def find(root: Path, classes: Sequence[str] = ()) -> Listing:
    """Every picture directly in ``root`` or in its class folders, sorted.

    A folder that only holds one other folder is gone down, unless that one is a class. A few pictures beside
    the class folders are left out.

    Args:
        classes: the model's class names and WordNet ids, where they are known.

    Raises:
        ImageError: no such folder, no pictures, or as many pictures beside class folders as inside.
    """
    whole = look(root)
    top = inner(whole, classes)
    found, stray = by_class(top)
    beside = {"beside the data": len(above(whole, top)), "beside the class folders": len(stray)}
    left_out = collections.Counter(beside) + unused(whole, (*above(whole, top), *stray))
    return Listing(tuple(found), tuple(left_out.items()))


def too_many_unreadable(unreadable: int, count: int) -> bool:
    """Whether so many of ``count`` pictures cannot be decoded that something is wrong with all of them."""
    return unreadable == count or unreadable > max(1, UNREADABLE_SHARE * count)


def look(root: Path) -> Folder:
    """All that lies in ``root``.

    Raises:
        ImageError: there is no such folder, it cannot be read, or it holds no pictures.
    """
    if not root.is_dir():
        raise ImageError(
            f"there is no folder {root}; expected a folder of pictures, or of class folders with pictures"
        )
    found = _look(root, frozenset())
    if not found.all_pictures:
        raise ImageError(
            f"{root} holds no pictures ({', '.join(SUFFIXES)}); expected at least one"
            + (f"; found {why}" if (why := _reasons(unused(found, ()))) else "")
        )
    return found


def _look(root: Path, above: frozenset[str]) -> Folder:
    """``above``: the real paths of the folders above, for links that lead back to one of them."""
    pictures, others, folders, system = [], [], [], 0
    real = os.path.realpath(root)
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise ImageError(f"{root} cannot be read ({error.strerror}); make it readable") from error
    for path in entries:
        is_folder = path.is_dir()
        if is_system(path.name, folder=is_folder):
            system += 1
        elif is_folder:
            if os.path.realpath(path) not in above | {real}:
                folders.append(_look(path, above | {real}))
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            pictures.append(path)
        else:
            others.append(path)
    filled = [f for f in folders if f.pictures or f.folders]
    empty = [f for f in folders if not (f.pictures or f.folders)]
    names = [normalise(f.name) for f in filled]
    companions = COMPANIONS if not CONTAINERS.isdisjoint(names) else frozenset()
    return Folder(
        root,
        tuple(pictures),
        tuple(f for f, name in zip(filled, names, strict=True) if name not in companions),
        tuple(empty),
        tuple(f for f, name in zip(filled, names, strict=True) if name in companions),
        tuple(others),
        system,
    )


def is_system(name: str, *, folder: bool) -> bool:
    """Whether the name is one that systems and programs give to their own files."""
    return name.startswith((".", "__") if folder else ".") or name.lower() in SYSTEM_NAMES


def inner(
    folder: Folder, classes: Sequence[str] = (), keep: Callable[[Folder], bool] = lambda _: False
) -> Folder:
    """The first folder on the way down that holds more than a single folder.

    A single folder of pictures without folders in it is gone down where its name says that it is no class
    ("images", or the name of the folder above).

    Args:
        classes: a folder of one of these names is not gone down.
        keep: nor is one for which this is true.
    """
    known = {normalise(name) for name in classes}
    while len(folder.folders) == 1:
        (only,) = folder.folders
        named_as_above = normalise(only.name) == normalise(folder.name)
        holds_data = named_as_above or is_container(only.name) if not only.folders else _holds_folders(only)
        if normalise(only.name) in known or keep(only) or not holds_data:
            break
        if _too_many(folder.pictures, only.all_pictures):
            break
        folder = only
    return folder


def above(whole: Folder, inner: Folder) -> tuple[Path, ...]:
    """The pictures of ``whole`` that are not in ``inner``, a folder inside it."""
    inside = frozenset(inner.all_pictures)
    return tuple(path for path in whole.all_pictures if path not in inside) if whole is not inner else ()


def _too_many(stray: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether these pictures beside a folder with others are not there by mistake."""
    return len(stray) > max(1, STRAY_SHARE * len(others))


def _holds_folders(folder: Folder) -> bool:
    """Whether a folder holds only folders, or several and a stray picture."""
    inside = [path for one in folder.folders for path in one.all_pictures]
    return not folder.pictures or (len(folder.folders) > 1 and not _too_many(folder.pictures, inside))


def is_container(name: str) -> bool:
    """Whether the name of a folder says that it is no class."""
    return normalise(name) in CONTAINERS


def by_class(folder: Folder) -> tuple[list[Found], tuple[Path, ...]]:
    """The pictures of a folder, with class folders where there are some, and the stray ones beside those.

    Raises:
        ImageError: there are about as many pictures beside the class folders as inside.
    """
    flat = folder.pictures
    inside = [Found(path, one.name) for one in folder.folders for path in one.all_pictures]
    if not inside:
        return [Found(path, None) for path in flat], ()
    if _too_many(flat, [f.path for f in inside]):
        raise ImageError(
            f"{folder.path} has {len(flat)} pictures beside its class folders and {len(inside)} inside them;"
            " expected one or the other"
        )
    return inside, flat


def unused(folder: Folder, stray: Sequence[Path], read: Sequence[Path] = ()) -> collections.Counter[str]:
    """The number of files by the reason why they are not used. Files beside parts and class folders, such as
    a README, are not counted, unless they are pictures of a format that is not read.

    Args:
        stray: pictures beside parts or class folders.
        read: files that were read, though they are no pictures.
    """
    beside = {path.parent for path in stray}
    every = list(folder.below())
    below = [one for one in every if one.path not in beside and (one.pictures or not one.folders)]
    counted_here = {one.path for one in below}
    others = [
        path
        for one in every
        for path in one.others
        if path not in read and (one.path in counted_here or path.suffix.lower() in _OF_PICTURES)
    ]
    nothing = [path for path in others if path.suffix.lower() in SUFFIXES]
    others = [path for path in others if path.suffix.lower() not in SUFFIXES]
    companions = [one for each in every for one in each.companions]
    names = ", ".join(sorted({one.name for one in companions}))
    return collections.Counter(
        {
            f"in {names} beside images": sum(len(one.all_pictures) for one in companions),
            with_unknown_suffix(others): len(others),
            WITHOUT_FILE: len(nothing),
            BY_SYSTEM: sum(one.system for one in below),
        }
    )


def with_unknown_suffix(paths: Sequence[Path]) -> str:
    """The reason why these files are not used; it names the most frequent suffixes."""
    suffixes = collections.Counter(path.suffix.lower() or "none" for path in paths)
    shown = ", ".join(sorted(suffixes, key=lambda s: (-suffixes[s], s))[:SHOWN_SUFFIXES])
    return f"with unknown suffix ({shown}{', …' if len(suffixes) > SHOWN_SUFFIXES else ''})"


def _reasons(left_out: collections.Counter[str]) -> str:
    return ", ".join(f"{count} files {reason}" for reason, count in left_out.items() if count)


def normalise(name: str) -> str:
    """A label as it is compared: case, the choice between blank, hyphen and underscore, and the way in which
    accents are encoded (Unicode NFC or NFD) do not matter."""
    plain = composed(name).replace("_", " ").replace("-", " ").casefold()
    return " ".join(composed(plain).split())


def composed(text: str) -> str:
    """Text in Unicode NFC: an accented letter is one character. macOS writes file names otherwise."""
    return unicodedata.normalize("NFC", text)


def match_folders(folders: Iterable[str], labels: Sequence[str], ids: Sequence[str] | None) -> dict[str, int]:
    """Class folder -> class index, by WordNet id or by label name.

    Raises:
        RuntimeInputError: a folder that is no class, or a name that two classes share; both sides are listed.
    """
    by_name: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        by_name.setdefault(normalise(label), []).append(index)
    by_id = {wordnet: index for index, wordnet in enumerate(ids or ())}
    wanted = sorted(set(folders))
    matched, unknown = {}, []
    for folder in wanted:
        indices = by_name.get(normalise(folder), [])
        if folder in by_id:
            matched[folder] = by_id[folder]
        elif len(indices) == 1:
            matched[folder] = indices[0]
        elif indices:
            raise RuntimeInputError(
                f"the class folder {folder!r} fits {len(indices)} classes of the same name; name it by its"
                " WordNet id"
            )
        else:
            unknown.append(folder)
    if unknown:
        raise RuntimeInputError(
            f"{len(unknown)} of {len(wanted)} class folders are no class of the model: {_some(unknown)};"
            f" the model's classes are: {_some(labels)}."
            " Rename the folders"
        )
    return matched


def _some(names: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
