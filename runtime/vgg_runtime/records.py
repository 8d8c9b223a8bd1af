"""Records: dataclasses that are read from JSON with every field checked, and written as JSON.

A record is a frozen dataclass; its fields are the keys, in this order. A field with a default may be missing,
because older documents lack it. Unknown keys are ignored, because newer documents have more.
"""

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

EXPECTED = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a list",
    Sequence: "a list",
    dict: "an object",
}
MOST_DIGITS = 400  # of a whole number; the largest float has 309
MOST_INT = 2**63 - 1  # of a field that is a whole number: sums of such ones still fit into a float
MOST_BYTES = 64_000_000  # of a document; a bundle made with a million pictures has a third of it
DEEPEST = 100  # lists and objects within each other; ours have ten, and Python recurses a thousand times
_NOT_NEGATIVE_ENDS = ("_ms", "_bytes", "_px", "_mhz")  # of the names of fields that are never negative
_NOT_NEGATIVE_NAMES = frozenset(  # of such fields, whole
    (
        *("n", "threads", "cores", "runs", "parameters", "macs", "halved_by", "speedup"),
        "self_check_deviation",
    )
)
NOTHING = object()  # stands for a missing key
AnyFloat = Annotated[float, "may be infinite or not a number"]  # a field of this kind may hold those, too


class FieldError(ValueError):
    """A field of a document is wrong. The message gives its path, what was expected, and what was found."""

    def __init__(self, path: str, expected: str, found: object) -> None:
        self.path, self.expected, self.found = path, expected, found
        where = f"{path}: " if path else ""
        super().__init__(f"{where}expected {expected}, found {_in_words(found)}")


def text_of(path: Path) -> str:
    """The text of a file from outside, in UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than MOST_BYTES, or is not UTF-8.
    """
    content = bytearray()
    with path.open("rb") as file:
        while part := file.read(1 << 20):  # a pipe or a sparse file may have no end
            content += part
            if len(content) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES // 1_000_000} MB")
    return content.decode("utf-8")


def parse(text: str) -> Any:
    """The value of a JSON text from outside.

    Raises:
        FieldError: a text in it has half a surrogate pair, which no file and no terminal can hold.
        ValueError: it is no JSON, or JSON that programs read differently or not at all: an object with a key
            twice, a number that is none or too large, values nested deeper than DEEPEST.
    """
    try:
        found = json.loads(
            text, object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_float
        )
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    _ensure_can_be_written(found, "")
    return found


def _ensure_can_be_written(value: object, path: str, depth: int = 1) -> None:
    """Raise for what ``json.loads`` reads and nothing writes: half a surrogate pair, values nested too
    deeply."""
    if isinstance(value, list | dict) and depth > DEEPEST:
        raise ValueError(f"its values are nested too deeply, more than {DEEPEST} within each other")
    if isinstance(value, str) and not _is_unicode(value):
        raise FieldError(path, "a text in Unicode", value)
    if isinstance(value, list):
        for k, one in enumerate(value):
            if not _is_plain(one):  # a list may have a million hashes, whose paths nobody asks for
                _ensure_can_be_written(one, f"{path}[{k}]", depth + 1)
    elif isinstance(value, dict):
        for key, one in value.items():
            if not _is_unicode(key):
                raise FieldError(path, "keys in Unicode", key)
            _ensure_can_be_written(one, f"{path}.{key}" if path else key, depth + 1)


def _is_plain(value: object) -> bool:
    return value.isascii() if isinstance(value, str) else not isinstance(value, list | dict)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for k, key in enumerate(keys) if key in keys[:k])
        raise ValueError(f"an object has the key {twice[:40]!r} twice")
    return found


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is no number of JSON")
    return value


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


@dataclasses.dataclass(frozen=True)
class Record:
    """The base of all records. A field is a text, a number, true or false, another record, a list of one type
    (``tuple[X, ...]``, or ``Sequence[X]`` where something else may stand for the tuple), a list of a fixed
    length (``tuple[X, X]``), an object (``dict[str, X]``) or anything (``Any``). Each may also allow null
    (``X | None``)."""

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, with its fields in their order."""
        return {name: _plain(value) for name, value in self._fields()}

    def pieces(self) -> Iterator[str]:
        """The record as JSON text, in pieces: what ``json.dumps(self.to_json(), indent=1)`` has as a whole,
        and without its memory.

        Raises:
            ValueError: a number is infinite or none.
        """
        return _pieces(self, "\n")

    def _fields(self) -> Iterator[tuple[str, Any]]:
        """The name and the value of each field."""
        for field in dataclasses.fields(self):
            yield field.name, getattr(self, field.name)

    @classmethod
    def from_json(cls, document: object, path: str = "") -> Self:
        """Read the record from what ``json.loads`` returned. ``path`` is its path in the whole document, for
        errors.

        Raises:
            FieldError: ``document`` is no object, or a field is missing or of another type; the first such
                field is named.
        """
        if not isinstance(document, dict):
            raise FieldError(path, EXPECTED[dict], document)
        kinds, found = _kinds(cls), {}  # type: ignore[arg-type]  # classes are hashable
        for field in dataclasses.fields(cls):
            value = document.get(field.name, NOTHING)
            if value is not NOTHING or _is_required(field):
                where = f"{path}.{field.name}" if path else field.name
                found[field.name] = read(kinds[field.name], value, where)
                _ensure_measurable(field.name, found[field.name], where)
        try:
            return cls(**found)
        except FieldError as error:  # of __post_init__, which does not know where the record stands
            where = f"{path}.{error.path}" if path else error.path
            raise FieldError(where, error.expected, error.found) from error


def _ensure_measurable(name: str, value: object, where: str) -> None:
    """Raise for a negative number in a field whose name says that it is a time, a size, a count or a
    ratio."""
    if not name.endswith(_NOT_NEGATIVE_ENDS) and name not in _NOT_NEGATIVE_NAMES:
        return
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, int | float) and one < 0:
            raise FieldError(where, "a number that is not negative", one)


@functools.cache
def _kinds(record: type[Record]) -> dict[str, Any]:
    return typing.get_type_hints(record, include_extras=True)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def read(kind: Any, value: object, path: str, or_null: str = "") -> Any:
    """Check ``value`` and return it as a field of this type has it; lists become tuples and objects records.

    Raises:
        FieldError: it is of another type.
    """
    if kind == AnyFloat:
        kind = Any if isinstance(value, float) else float
    origin = typing.get_origin(kind) or kind
    if origin is types.UnionType:
        (kind,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
        return None if value is None else read(kind, value, path, " or null")
    if origin is Any:
        return value
    if issubclass(origin, Record) and isinstance(value, dict):
        return origin.from_json(value, path)
    if origin in (tuple, Sequence) and isinstance(value, list):
        kinds = typing.get_args(kind)
        return tuple(_items((*kinds, ...) if origin is Sequence else kinds, value, path))
    if origin is dict and isinstance(value, dict):
        return {key: read(typing.get_args(kind)[1], one, f"{path}.{key}") for key, one in value.items()}
    if origin in (str, bool, int, float) and _is_a(origin, value):
        if origin is int and abs(value) > MOST_INT:  # type: ignore[arg-type]
            raise FieldError(path, "a whole number below 2**63" + or_null, value)
        return value
    raise FieldError(path, EXPECTED[dict if issubclass(origin, Record) else origin] + or_null, value)


def _items(kinds: tuple[Any, ...], values: list[Any], path: str) -> Iterator[Any]:
    """The items of a list, each checked against the type for its place."""
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise FieldError(path, f"a list of {len(kinds)}", values)
    for k, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        yield read(kind, value, f"{path}[{k}]")


def _is_a(kind: type, value: object) -> bool:
    """Whether ``value`` has the type ``kind``. Numbers must be finite and fit into a float; an int must be
    whole."""
    if kind in (str, bool) or isinstance(value, bool):
        return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    number = isinstance(value, int) or (isinstance(value, float) and kind is float)
    return number and -sys.float_info.max <= value <= sys.float_info.max  # type: ignore[operator]


def _plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if _is_list(value):
        return [_plain(one) for one in value]
    return value


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _pieces(value: Any, line: str) -> Iterator[str]:
    """A field's value as JSON text; ``line``: a line end with the indentation of where it stands."""
    if isinstance(value, Record):
        named = ((f"{json.dumps(name)}: ", one) for name, one in value._fields())
        yield from _within("{}", named, line)
    elif isinstance(value, dict):
        yield from _within("{}", ((f"{json.dumps(key)}: ", one) for key, one in value.items()), line)
    elif _is_list(value):
        yield from _within("[]", (("", one) for one in value), line)
    else:
        yield json.dumps(value, allow_nan=False)


def _within(brackets: str, items: Iterable[tuple[str, Any]], line: str) -> Iterator[str]:
    before = brackets[0]
    for name, value in items:
        yield f"{before}{line} {name}"
        yield from _pieces(value, line + " ")
        before = ","
    yield brackets if before == brackets[0] else line + brackets[1]


def _in_words(value: object) -> str:
    if value is NOTHING:
        return "nothing"
    if isinstance(value, dict):
        return EXPECTED[dict]
    if isinstance(value, list):
        return f"a list of {len(value)}"
    words = repr(value) if isinstance(value, str) else json.dumps(value)
    return words if len(words) <= 40 else f"{words[:39]}…"
