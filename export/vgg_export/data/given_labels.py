"""Finds the labels that tables (CSV, TSV) give to pictures which lie in no class folders."""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vgg_export.core.errors import DataError
from vgg_runtime.bundle.images import Folder, Found, normalise
from vgg_runtime.text import printable

from . import part_names, tables

MOST_TABLES = 20
HALF = 0.5
# A table for a competition's answers: its labels are placeholders.
_ANSWERS = re.compile(r"submission|sample_?sub", re.IGNORECASE)
# Pieces of one large folder (images_001, HAM10000_images_part_1): their pictures' labels are in a table.
_PIECE = re.compile(r".*(images?|imgs?|pictures?|photos?|parts?|batch|chunk|fold|folder)[ _.-]*[0-9]+")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The pictures by part with the labels of tables; ``given``: these labels; ``read``: the tables."""

    parts: dict[str, list[Found]]
    given: frozenset[str] = frozenset()
    read: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)


def find(root: Path, whole: Folder, parts: Mapping[str, list[Found]], known: Collection[str]) -> Labels:
    """The labels of pictures without a class folder, from the tables inside ``root``, else from those beside
    it. Where a table labels some pictures of a part, the others are left out.

    Args:
        known: class names and WordNet ids as ``normalise`` writes them, where they are known.

    Raises:
        DataError: a table contradicts itself or another one, or several columns could be the labels.
    """
    open_parts = {part: found for part, found in parts.items() if _may_need_a_table(found, known)}
    if not open_parts:
        return Labels(dict(parts))
    inside = [path for one in whole.below() for path in one.others if path.suffix.lower() in tables.SUFFIXES]
    inside.sort(key=lambda path: (len(path.parts), path))
    beside = _beside(root)
    if not inside and not beside:
        return Labels(dict(parts))
    names = tables.Names(root, whole.all_pictures)
    read, unread = _read(names, inside[:MOST_TABLES], parts, open_parts, known, least=0)
    if not read:
        read, _ = _read(names, beside, parts, open_parts, known, least=HALF)
    if not read:
        return Labels(dict(parts), notes=tuple(unread))
    return _applied(parts, open_parts, read, [*(table.in_words() for table in read), *unread])


def _may_need_a_table(found: Sequence[Found], known: Collection[str]) -> bool:
    folders = {f.folder for f in found if f.folder}
    if any(f.folder is None for f in found):
        return True
    if known:
        return not all(normalise(folder) in known for folder in folders)
    return all(_PIECE.fullmatch(folder.lower()) for folder in folders)


def _beside(root: Path) -> list[Path]:
    """The tables in the folder above."""
    try:
        found = [p for p in root.resolve().parent.iterdir() if p.suffix.lower() in tables.SUFFIXES]
        return sorted(p for p in found if p.is_file())[:MOST_TABLES]
    except OSError:
        return []


def _read(
    names: tables.Names,
    paths: Sequence[Path],
    parts: Collection[str],
    open_parts: Mapping[str, Sequence[Found]],
    known: Collection[str],
    least: float,
) -> tuple[list[tables.Table], list[str]]:
    """The tables that give labels, and a line for each that gives none.

    A table of a part's name (train.csv) is for that part, one in a folder of pictures for those.
    """
    read: list[tables.Table] = []
    unread = []
    for path in paths:
        part = part_names.part_of_name(path.stem)
        if _ANSWERS.search(path.stem) or (part in parts and part not in open_parts):
            continue
        scope = [one for one in open_parts if one == part] or list(open_parts)
        pictures = {f.path for one in scope for f in open_parts[one]}
        below = {picture for picture in pictures if picture.is_relative_to(path.parent)}
        table = tables.read(path, names, below or pictures, known, least)
        if isinstance(table, str):
            unread.append(f"{path}: not used, since it {table}")
        else:
            read.append(table)
    return read, unread


def _applied(
    parts: Mapping[str, list[Found]],
    open_parts: Mapping[str, list[Found]],
    read: Sequence[tables.Table],
    notes: Sequence[str],
) -> Labels:
    labels = _together(read)
    empty = {path for table in read for path in table.unlabelled} - labels.keys()
    names = ", ".join(table.path.name for table in read)
    left_out: Counter[str] = Counter()
    labelled: dict[str, list[Found]] = {}
    for part, found in parts.items():
        rows = [f for f in found if f.path in labels or f.path in empty]
        in_folders = any(f.folder for f in found)
        if part not in open_parts or not rows or (in_folders and len(rows) < HALF * len(found)):
            labelled[part] = found
            continue
        labelled[part] = [Found(f.path, labels[f.path]) for f in found if f.path in labels]
        left_out[f"without a row in {names}"] += len(found) - len(rows)
        left_out[f"without a label in {names}"] += len(rows) - len(labelled[part])
    given = frozenset(labels[f.path] for part in open_parts for f in labelled[part] if f.path in labels)
    if not any(labelled.values()):
        raise DataError(f"{names} gives no picture a label; expected file names and labels")
    return Labels(
        _divided(labelled, read), given, tuple(table.path for table in read), tuple(notes), left_out
    )


def _together(read: Sequence[tables.Table]) -> dict[Path, str]:
    """The labels of several tables.

    Raises:
        DataError: two of them contradict each other.
    """
    labels: dict[Path, tuple[str, Path]] = {}
    for table in read:
        for picture, label in table.labels.items():
            other, where = labels.setdefault(picture, (label, table.path))
            if normalise(other) != normalise(label):
                raise DataError(
                    f"{where} and {table.path} contradict each other: {picture.name} is {printable(other)!r}"
                    f" and {printable(label)!r}; correct one of them or move it away"
                )
    return {picture: label for picture, (label, _) in labels.items()}


def _divided(parts: dict[str, list[Found]], read: Sequence[tables.Table]) -> dict[str, list[Found]]:
    """The parts that the tables tell apart in a folder without parts: by a column (train, val, test), or by
    their names (train.csv, val.csv)."""
    part_of: dict[Path, str] = {}
    # a picture in several is one that was trained on
    for table in sorted(read, key=lambda table: part_names.part_of_name(table.path.stem) == "train"):
        named = part_names.part_of_name(table.path.stem)
        named = "test" if named == "eval" else named
        part_of |= table.parts or (dict.fromkeys(table.labels, named) if named else {})
    pictures = [f.path for f in parts.get("", ())]
    if not {"train"} < set(part_of.values()) or not part_of.keys() >= set(pictures):
        return parts
    found: dict[str, list[Found]] = {}
    for f in parts.get("", ()):
        found.setdefault(part_of[f.path], []).append(f)
    return found or parts
