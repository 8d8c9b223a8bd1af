"""Reads the names of a checkpoint's classes, in the order of its outputs, from its file or from
``--labels``."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_export.core.errors import CheckpointError
from vgg_runtime.bundle.images import composed, normalise
from vgg_runtime.text import printable

from .pickle_machine import Stub

# Keys under which class names stand beside a state dict, in lower case. A dictionary under BY_NAME maps names
# to numbers, one under BY_NUMBER numbers to names.
BY_NAME, BY_NUMBER = ("class_to_idx", "label2id"), ("idx_to_class", "id2label")
KEYS = (*BY_NAME, *BY_NUMBER, "classes", "class_names", "labels", "label_names", "categories")
SHOWN = 10
IMAGENET_CLASSES = 1000  # ImageNet's own names have "crane" and "maillot" twice
# Lines that number the classes: "0 cat" as many tools write them, and "cat,0"
_NUMBER_FIRST = re.compile(r"(?P<number>[0-9]+)[\s,;:]+(?P<name>\S.*)")
_NUMBER_LAST = re.compile(r"(?P<name>.*\S)\s*[,;\t]\s*(?P<number>[0-9]+)")


@dataclasses.dataclass(frozen=True)
class ClassNames:
    """``names`` in the order of the outputs, and ``where`` they were found ("class_to_idx in FILE")."""

    names: tuple[str, ...]
    where: str

    def in_words(self) -> str:
        """The first names and where they come from."""
        return f"{shown(self.names)} ({self.where})"


def shown(names: Sequence[str], limit: int = SHOWN) -> str:
    """The first names, for a person."""
    more = f", … {len(names)} in all" if len(names) > limit else ""
    return ", ".join(printable(name) for name in names[:limit]) + more


def beside(data: Mapping[Any, Any], file: Path) -> ClassNames | None:
    """The class names that a checkpoint's dictionary holds, directly or in a dictionary inside it
    (Lightning's ``hyper_parameters``); None without any.

    Raises:
        CheckpointError: two entries contradict each other, or one gives its names no order.
    """
    found: list[ClassNames] = []
    arrays: list[str] = []
    inner = {
        f"{key}.{k}": v for key, value in data.items() if isinstance(value, Mapping) for k, v in value.items()
    }
    for key, value in (*((str(k), v) for k, v in data.items()), *inner.items()):
        last = key.rpartition(".")[2].lower()
        if last not in KEYS:
            continue
        where = f"{key} in {file.name}"
        strings = _strings(value)
        if strings is None and _is_array_of_names(value):
            arrays.append(where)
        elif names := _names(strings or value, where, by_name=last in BY_NAME):
            found.append(ClassNames(names, where))
        elif last in (*BY_NAME, *BY_NUMBER) and isinstance(value, Mapping) and value:
            raise CheckpointError(f"{where} holds {_kind(dict(value))}; expected names and their numbers")
    if arrays and not found:
        raise CheckpointError(
            f"{arrays[0]} is a NumPy array of a kind that is not read; expected a list of names:"
            " save it as list(...)"
        )
    for other in found[1:]:
        if not same(other.names, found[0].names):
            raise CheckpointError(f"{file} contradicts itself: {found[0].in_words()} and {other.in_words()}")
    return found[0] if found else None


def _is_array_of_names(value: Any) -> bool:
    """Whether a value is an array of NumPy, of strings or objects. Its state is version, shape, type, ..."""
    if not isinstance(value, Stub) or not value.name.endswith("multiarray._reconstruct"):
        return False
    match value.state:
        case (_, _, Stub(args=(str() as kind, *_)), *_):
            return kind.lstrip("<>|=")[:1] in ("U", "S", "O")
    return False


def _strings(value: Any) -> list[str] | None:
    """The strings [n] in an array of NumPy, of objects or of characters in 32 bits; None for other values."""
    if not _is_array_of_names(value):
        return None
    match value.state:
        case (_, (int(),), _, _, list() as strings) if all(isinstance(one, str) for one in strings):
            return strings
        case (_, (int() as count,), Stub(args=(str() as kind, *_), state=(_, "<", *_)), _, bytes() as data):
            if kind.startswith("U") and count > 0 and len(data) % (4 * count) == 0:
                step = len(data) // count
                parts = (data[k : k + step] for k in range(0, len(data), step or 1))
                return [part.decode("utf-32-le", errors="replace").rstrip("\0") for part in parts]
    return None


def difference(some: ClassNames, others: ClassNames) -> str:
    """The first class that two lists of the same length name differently."""
    pairs = enumerate(zip(some.names, others.names, strict=True))
    k, (own, other) = next((k, pair) for k, pair in pairs if normalise(pair[0]) != normalise(pair[1]))
    return f"first at class {k} ({printable(own)!r} against {printable(other)!r})"


def read(path: Path) -> ClassNames:
    """``--labels``: one name a line, perhaps numbered from 0 ("0 cat", "cat,0", with a line of headers or
    not), or JSON: a list, {"0": name} or {name: 0}, also under a key as in a checkpoint.

    Raises:
        CheckpointError: the file cannot be read, its names have no order, or two are the same.
    """
    names = _read(path)
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None and len(names) < IMAGENET_CLASSES:
        first = names.index(twice)
        raise CheckpointError(
            f"{path} names the classes {first} and {names.index(twice, first + 1)} the same:"
            f" {printable(twice)!r}; expected a name of its own for each class"
        )
    return ClassNames(names, str(path))


def _read(path: Path) -> tuple[str, ...]:
    if not path.exists():
        raise CheckpointError(f"there is no file {path}; expected one class name a line, or JSON")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as UTF-8 text ({error}); expected one class name a line, or JSON"
        ) from error
    if path.suffix.lower() == ".json" or _is_json(text) or _begins_as_json(text):
        return _from_json(text, path)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = _numbered(lines) or _numbered(lines[1:])
    return tuple(_name(line, str(path)) for line in numbered or lines)


def _begins_as_json(text: str) -> bool:
    """Whether a text that is no JSON was meant as such: it begins as an object or a list of strings does,
    which no line with a name does."""
    return re.match(r"\s*(?:\{\s*[\"'}\d]|\{\s*$|\[\s*[\"'])", text) is not None


def _numbered(lines: Sequence[str]) -> list[str] | None:
    """The names of lines that number them 0, 1, 2, ... in any order; None where they do not."""
    for form in (_NUMBER_FIRST, _NUMBER_LAST):
        found = {int(m["number"]): m["name"].strip("\"' \t") for line in lines if (m := form.fullmatch(line))}
        if sorted(found) == list(range(len(lines))) and len(set(found.values())) == len(lines) > 1:
            return [found[k] for k in range(len(lines))]
    return None


def _is_json(text: str) -> bool:
    """Whether the text is a JSON list or object. A list of lines may begin with a bracket, too."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _from_json(text: str, path: Path) -> tuple[str, ...]:
    expected = 'expected a list of names, {"0": name, …} or {name: 0, …}'
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON ({error}); {expected}, or one name a line in a text file"
        ) from error
    if isinstance(data, dict) and (found := beside(data, path)):  # under a key, as in a checkpoint
        return found.names
    names = _names(data, str(path), by_name=False)
    if names is None:
        raise CheckpointError(f"{path} holds {_kind(data)}; {expected}")
    return names


def same(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order; case, hyphens and underscores do not
    matter."""
    return [normalise(name) for name in some] == [normalise(name) for name in others]


def _names(value: Any, where: str, *, by_name: bool) -> tuple[str, ...] | None:
    """Names in order; None for a value without names (a number of classes, the labels of a data set)."""
    if isinstance(value, list | tuple):
        if not value or not all(isinstance(name, str) for name in value):
            return None
        return tuple(_name(name, where) for name in value)
    if not isinstance(value, Mapping) or not value:
        return None
    numbers = [_number(key) for key in value]
    values = [_number(v) for v in value.values()]
    if (
        not (by_name and None not in values)
        and None not in numbers
        and all(isinstance(v, str) for v in value.values())
    ):
        return _in_order(dict(zip(map(int, map(str, value)), value.values(), strict=True)), len(value), where)
    if None not in values and all(isinstance(key, str) for key in value):
        return _in_order(
            {v: key for v, key in zip(values, value, strict=True) if v is not None}, len(value), where
        )
    return None


def _number(value: Any) -> int | None:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a tensor of one number
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return int(value) if isinstance(value, int) or (value.isascii() and value.isdigit()) else None


def _in_order(by_number: dict[int, str], count: int, where: str) -> tuple[str, ...]:
    if sorted(by_number) != list(range(count)):
        found = ", ".join(map(str, sorted(by_number)[:SHOWN]))
        raise CheckpointError(
            f"{where} numbers its {count} classes {found}{', …' if len(by_number) > SHOWN else ''};"
            f" expected each of 0 to {count - 1} once"
        )
    return tuple(_name(by_number[k], where) for k in range(count))


def _name(text: str, where: str) -> str:
    """One name, stripped. It must be one line: a bundle's labels.txt holds one name a line."""
    name = composed(text.strip())
    if not name or len(name.splitlines()) > 1:
        raise CheckpointError(
            f"{where} has the class name {printable(text)!r}; expected a name of one line, not empty"
        )
    return name


def _kind(data: Any) -> str:
    if isinstance(data, dict):
        key, value = next(iter(data.items()), ("", ""))
        return (
            f"an object with entries such as {printable(str(key))!r}: {printable(str(value))}"
            if data
            else "an empty object"
        )
    return (
        f"a list with entries such as {printable(str(data[0]))}"
        if isinstance(data, list) and data
        else printable(str(data))
    )
