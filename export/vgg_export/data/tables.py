"""Reads which label a CSV or TSV file gives to each picture, whatever its columns are called."""

import csv
import dataclasses
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from vgg_export.core.errors import DataError
from vgg_runtime.bundle import preprocess
from vgg_runtime.bundle.images import composed, normalise
from vgg_runtime.text import printable

from . import part_names

SUFFIXES = (".csv", ".tsv")
MAX_BYTES = 64_000_000
DELIMITERS = ",;\t|"
SAMPLED = 1000
SHOWN = 8
LEAST_DISTINCT = 10  # so many rows, each with a value of its own, are no labels
# headers of a column of labels, as ``normalise`` writes them
_LABEL_HEADER = re.compile(
    r"(.* )?(labels?|class(es)?|categor(y|ies)|targets?|species|breed|diagnosis|dx|level|tags?|choice)"
    r"( ?(names?|ids?|idx|index|no|number|code))?"
)
# headers of columns that say where in a picture something is
_PLACE = re.compile(
    r"width|height|depth|area|(roi|bbox|box)\b.*|[xywh](min|max|[0-9])?|left|top|right|bottom"
)
_WHOLE = re.compile(r"-?[0-9]+(\.0*)?")


@dataclasses.dataclass(frozen=True)
class Table:
    """The ``labels`` of pictures and, where a column tells them apart, their ``parts``; ``unlabelled``: those
    whose label is empty; ``columns``: the headers of file and label; ``elsewhere``: the number of rows that
    name no picture here."""

    path: Path
    labels: dict[Path, str]
    parts: dict[Path, str]
    unlabelled: frozenset[Path]
    columns: tuple[str, str]
    elsewhere: int

    def in_words(self) -> str:
        """What was read, for the log."""
        file, label = map(printable, self.columns)
        more = f" ({self.elsewhere} rows name no picture here)" if self.elsewhere else ""
        return (
            f"{self.path}: {len(self.labels)} labels read, file names from {file!r}, labels from {label!r}"
            + more
        )


class Names:
    """Finds a picture by what a table calls it: with or without folders and suffix, in any case, in Unicode
    NFC or NFD."""

    def __init__(self, root: Path, pictures: Iterable[Path]) -> None:
        self._exact: dict[str, list[Path]] = {}
        self._folded: dict[str, list[Path]] = {}
        self._parts: dict[Path, set[str]] = {}
        for path in pictures:
            words = _words(path.relative_to(root).as_posix())
            self._parts[path] = _parts([root.name, *words[:-1]])
            for k in range(len(words)):
                tail = "/".join(words[k:])
                for key in (tail, tail[: -len(path.suffix)]):
                    self._exact.setdefault(key, []).append(path)
                    self._folded.setdefault(key.casefold(), []).append(path)

    def find(self, name: str, among: Collection[Path] | None = None) -> tuple[Path, ...]:
        """The pictures ``among`` these (all by default) that ``name`` can mean: none, one, or several. It
        means a picture elsewhere where it has more folders in common with that one."""
        words = _words(name.strip().replace("\\", "/"))
        for k in range(len(words)):
            tail = "/".join(words[k:])
            stem, dot, suffix = tail.rpartition(".")
            for key in (tail, stem) if dot and f".{suffix.lower()}" in preprocess.SUFFIXES else (tail,):
                if found := self._exact.get(key) or self._folded.get(key.casefold()):
                    # train/1.jpg is not test/1.jpg
                    parts = _parts(words[:k])
                    return tuple(
                        path
                        for path in found
                        if (among is None or path in among)
                        and not (parts and self._parts[path].isdisjoint(parts))
                    )
        return ()


def _words(name: str) -> list[str]:
    return [word for word in composed(name).split("/") if word not in ("", ".")]


def _parts(folders: Iterable[str]) -> set[str]:
    return {part for folder in folders if (part := part_names.of_word(folder))}


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Rows of equal length; ``headers`` of the columns, "column 1" and so on where there are none; ``file``:
    the column that names pictures."""

    headers: tuple[str, ...]
    rows: list[list[str]]
    file: int
    has_header: bool

    def column(self, k: int) -> list[str]:
        return [row[k].strip() for row in self.rows]


def read(
    path: Path, names: Names, pictures: Collection[Path], known: Collection[str], least: float = 0
) -> Table | str:
    """The labels that a table gives to ``pictures``, or why it gives none.

    Args:
        names: of all pictures of the data, so that a name which means another one is not misread.
        known: the class names and ids, as ``normalise`` writes them, where they are known; they tell which
            column holds the labels.
        least: share of the pictures that it must name.

    Raises:
        DataError: it names pictures, but contradicts itself, or several columns could be the labels.
    """
    grid = _grid(path, names)
    if isinstance(grid, str):
        return grid
    named = [(row, names.find(row[grid.file], pictures)) for row in grid.rows]
    grid = dataclasses.replace(grid, rows=[row for row, found in named if found])
    found_in_rows = [found for _, found in named if found]
    if not found_in_rows:
        return "names none of these pictures"
    if len({path for found in found_in_rows for path in found}) < least * len(pictures):
        return "names few of these pictures"
    _ensure_one_each(path, grid, found_in_rows)
    split = _split_column(grid)
    chosen = _labels(path, grid, known, {grid.file, split})
    if isinstance(chosen, str):
        return chosen
    header, labels = chosen
    by_picture = _by_picture(path, found_in_rows, labels)
    cells = [] if split is None else zip(found_in_rows, grid.column(split), strict=True)
    return Table(
        path,
        {picture: label for picture, label in by_picture.items() if label},
        {picture: str(part_names.of_word(cell)) for (picture, *_), cell in cells},
        frozenset(picture for picture, label in by_picture.items() if not label),
        (grid.headers[grid.file], header),
        len(named) - len(found_in_rows),
    )


def _by_picture(path: Path, rows: Sequence[tuple[Path, ...]], labels: Sequence[str]) -> dict[Path, str]:
    """The label of each picture.

    Raises:
        DataError: one has two labels.
    """
    found: dict[Path, str] = {}
    for (picture, *_), label in zip(rows, labels, strict=True):
        if found.setdefault(picture, label) != label:
            raise DataError(
                f"{path} contradicts itself: {picture.name} is {printable(found[picture])!r} and"
                f" {printable(label)!r}; expected one label a picture: correct it, or move it away to use the"
                " pictures without labels"
            )
    return found


def _ensure_one_each(path: Path, grid: _Grid, pictures: Sequence[tuple[Path, ...]]) -> None:
    for row, found in zip(grid.rows, pictures, strict=True):
        if len(found) > 1:
            raise DataError(
                f"{path} names {printable(row[grid.file])!r}, which can be {found[0]} or {found[1]}; write"
                " the folder and the suffix in the table, too"
            )


def _grid(path: Path, names: Names) -> _Grid | str:
    """The table's cells with the column that names most pictures, or why there is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return f"is larger than {MAX_BYTES // 1_000_000} MB"
        text = _text(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    first = next((line for line in text.splitlines() if line.strip()), "")
    tried = [_rows(text, delimiter) for delimiter in DELIMITERS if delimiter in first] or [_rows(text, ",")]
    # a few rows tell which column it is, unless the table is mostly about other pictures
    best = _best_column([rows[:: 1 + len(rows) // SAMPLED] for rows in tried], names) or _best_column(
        tried, names
    )
    if best is None:
        return "names none of the pictures"
    which, file = best
    rows = tried[which]
    if len(rows[0]) < 2:
        return "has no column beside the file names"
    has_header = not names.find(rows[0][file])
    headers = rows[0] if has_header else [f"column {k + 1}" for k in range(len(rows[0]))]
    return _Grid(tuple(headers), rows[has_header:], file, has_header)


def _text(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _rows(text: str, delimiter: str) -> list[list[str]]:
    """The rows that are as long as most; empty where the text is no table."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except csv.Error:
        return []
    if not rows:
        return []
    width = Counter(map(len, rows)).most_common(1)[0][0]
    return [row for row in rows if len(row) == width]


def _best_column(tried: Sequence[Sequence[Sequence[str]]], names: Names) -> tuple[int, int] | None:
    """Which of several readings of a table names most pictures, and in which column; None where none does.

    A cell with a suffix counts more: a column of row numbers should not win against one of file names.
    """
    best, most = None, 0
    for which, rows in enumerate(tried):
        for k in range(len(rows[0]) if rows else 0):
            found = sum(bool(names.find(cell)) for cell in {row[k] for row in rows})
            with_suffix = sum(row[k].strip().lower().endswith(preprocess.SUFFIXES) for row in rows)
            if found and 2 * found + with_suffix > most:
                best, most = (which, k), 2 * found + with_suffix
    return best


def _split_column(grid: _Grid) -> int | None:
    """The column that says to which part of the data each picture belongs."""
    for k in range(len(grid.headers)):
        values = set(grid.column(k))
        parts = {part_names.of_word(value) for value in values}
        if k != grid.file and None not in parts and "train" in parts and len(parts) > 1 and len(values) <= 4:
            return k
    return None


def _labels(
    path: Path, grid: _Grid, known: Collection[str], not_these: Collection[int | None]
) -> tuple[str, list[str]] | str:
    """The header and the cells of the labels, or why there are none."""
    columns = _candidates(grid, not_these)
    if not columns:
        return "has no column of labels"
    by_name = [k for k, cells in columns.items() if known and all(normalise(c) in known for c in cells if c)]
    headed = [k for k in columns if grid.has_header and _LABEL_HEADER.fullmatch(normalise(grid.headers[k]))]
    for fitting in (by_name, headed):
        if fitting and _same_division([columns[k] for k in fitting]):
            best = min(fitting, key=lambda k: (_are_numbers(columns[k]), k))
            return grid.headers[best], columns[best]
    if not headed and (ticked := _one_hot(path, grid, columns)):
        return ticked
    if len(columns) == 1 and not headed:
        ((only, cells),) = columns.items()
        if len(set(cells)) == len(cells) >= LEAST_DISTINCT:
            return f"has no labels: each row has a value of its own in {grid.headers[only]!r}"
        return grid.headers[only], cells
    shown = ", ".join(printable(grid.headers[k]) for k in list(columns)[:SHOWN])
    raise DataError(
        f"{path} has several columns that could be the labels: {shown}; call the right one 'label', or leave"
        " only file and label in it"
    )


def _candidates(grid: _Grid, not_these: Collection[int | None]) -> dict[int, list[str]]:
    """The columns that could be the labels: they say more than one thing, and not where something is."""
    columns = {k: _whole(grid.column(k)) for k in range(len(grid.headers)) if k not in not_these}
    columns = {k: cells for k, cells in columns.items() if any(cells)}
    places = [k for k in columns if _PLACE.fullmatch(normalise(grid.headers[k]))]
    if len(places) > 1:
        columns = {k: cells for k, cells in columns.items() if k not in places}
    varied = {k: cells for k, cells in columns.items() if len(set(cells)) > 1}
    return varied or columns


def _whole(cells: list[str]) -> list[str]:
    """Numbers as they are written without a decimal point: a missing label makes pandas write 3.0."""
    return [cell.partition(".")[0] for cell in cells] if _are_numbers(cells) else cells


def _are_numbers(cells: Iterable[str]) -> bool:
    return all(is_number(cell) for cell in cells if cell)


def is_number(text: str) -> bool:
    """Whether a cell holds a whole number, perhaps with a decimal point and zeros."""
    return bool(_WHOLE.fullmatch(text))


def _same_division(columns: Sequence[Sequence[str]]) -> bool:
    """Whether all columns divide the rows alike, such as a class's name and its number."""
    pairs = set(zip(*columns, strict=True))
    return all(len(pairs) == len(set(cells)) for cells in columns)


def _one_hot(path: Path, grid: _Grid, columns: dict[int, list[str]]) -> tuple[str, list[str]] | None:
    """Labels from a table with a column of zeros and ones per class."""
    ticks = {k: cells for k, cells in columns.items() if set(cells) <= {"0", "1"}}
    if len(ticks) < 2 or not grid.has_header:
        return None
    order = list(ticks)
    labels = []
    for row in zip(*ticks.values(), strict=True):
        if row.count("1") > 1:
            raise DataError(
                f"{path} gives some pictures several labels (among {printable(grid.headers[order[0]])},"
                f" {printable(grid.headers[order[1]])}, …); expected one label a picture: move it away to use"
                " the pictures without labels"
            )
        labels.append(grid.headers[order[row.index("1")]].strip() if "1" in row else "")
    return f"{len(ticks)} columns of 0 and 1", labels
