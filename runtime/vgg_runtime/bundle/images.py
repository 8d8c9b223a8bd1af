"""Finds pictures in folders and maps class folders to a model's classes."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from vgg_runtime.errors import ImageError, RuntimeInputError

from .preprocess import SUFFIXES


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture file; ``folder`` is the class folder it lies in, None in a flat folder."""

    path: Path
    folder: str | None


def find(root: Path) -> list[Found]:
    """Every picture directly in ``root`` or in its class folders, sorted; a mixture of both is an error.

    Raises:
        ImageError: no such folder, no pictures, or pictures both beside and inside class folders.
    """
    if not root.is_dir():
        raise ImageError(
            f"there is no folder {root}; expected a folder of pictures, or of class folders with pictures"
        )
    flat = [Found(path, None) for path in _pictures(root, recursive=False)]
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    inside = [Found(path, folder.name) for folder in folders for path in _pictures(folder, recursive=True)]
    if flat and inside:
        raise ImageError(
            f"{root} has {len(flat)} pictures beside its class folders and {len(inside)} inside them;"
            " expected one or the other"
        )
    if not flat and not inside:
        raise ImageError(f"{root} holds no pictures ({', '.join(SUFFIXES)}); expected at least one")
    return flat or inside


def _pictures(folder: Path, *, recursive: bool) -> list[Path]:
    entries = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        p for p in entries if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def normalise(name: str) -> str:
    """A label as it is compared: case and the choice between blank, hyphen and underscore do not matter."""
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


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
