"""Reads the names of a checkpoint's classes, in the order of its outputs, from its file or from
``--labels``."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_export.core.errors import CheckpointError
from vgg_runtime.bundle.images import normalise
from vgg_runtime.text import printable

# Keys under which class names stand beside a state dict, in lower case. A dictionary under BY_NAME maps names
# to numbers, one under BY_NUMBER numbers to names.
BY_NAME, BY_NUMBER = ("class_to_idx", "label2id"), ("idx_to_class", "id2label")
KEYS = (*BY_NAME, *BY_NUMBER, "classes", "class_names", "labels", "label_names", "categories")
SHOWN = 10


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
    inner = {
        f"{key}.{k}": v for key, value in data.items() if isinstance(value, Mapping) for k, v in value.items()
    }
    for key, value in (*((str(k), v) for k, v in data.items()), *inner.items()):
        last = key.rpartition(".")[2].lower()
        if last not in KEYS:
            continue
        where = f"{key} in {file.name}"
        if names := _names(value, where, by_name=last in BY_NAME):
            found.append(ClassNames(names, where))
        elif last in (*BY_NAME, *BY_NUMBER) and isinstance(value, Mapping) and value:
            raise CheckpointError(f"{where} holds {_kind(dict(value))}; expected names and their numbers")
    for other in found[1:]:
        if not same(other.names, found[0].names):
            raise CheckpointError(f"{file} contradicts itself: {found[0].in_words()} and {other.in_words()}")
    return found[0] if found else None


def difference(some: ClassNames, others: ClassNames) -> str:
    """The first class that two lists of the same length name differently."""
    pairs = enumerate(zip(some.names, others.names, strict=True))
    k, (own, other) = next((k, pair) for k, pair in pairs if normalise(pair[0]) != normalise(pair[1]))
    return f"first at class {k} ({printable(own)!r} against {printable(other)!r})"


def read(path: Path) -> ClassNames:
    """``--labels``: one name a line, or JSON: a list, {"0": name} or {name: 0}.

    Raises:
        CheckpointError: the file cannot be read, or its names have no order.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as UTF-8 text ({error}); expected one class name a line, or JSON"
        ) from error
    if path.suffix.lower() == ".json" or _is_json(text):
        return ClassNames(_from_json(text, path), str(path))
    return ClassNames(tuple(_name(line, str(path)) for line in text.splitlines() if line.strip()), str(path))


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
    for key in KEYS:  # the names may stand under a key, as in a checkpoint
        if isinstance(data, dict) and isinstance(data.get(key), dict | list):
            return _names(data[key], f"{key} in {path}", by_name=key in BY_NAME) or ()
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
    name = text.strip()
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
