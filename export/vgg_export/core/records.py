"""Records: what is kept as JSON, as dataclasses that are checked field by field when they are read back."""

import dataclasses
import types
import typing
from typing import Any, Self

from .errors import VggExportError


class DamagedRecordError(ValueError):
    """JSON that is not the record it is read as; the message names the field."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A frozen dataclass of numbers, strings, tuples, dictionaries with strings as keys, and other records.

    A field whose default is None is left out of the JSON while it is None; what JSON holds beside the fields
    is passed over.
    """

    def to_json(self) -> dict[str, Any]:
        """The record as plain lists, dictionaries, numbers and strings."""
        values = ((f.name, f.default, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: _plain(value) for name, default, value in values if (value, default) != (None, None)}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """What ``to_json`` gave, before or after it went through a file.

        Raises:
            DamagedRecordError: a field is missing or holds something else.
        """
        if not isinstance(data, dict):
            raise DamagedRecordError(f"{cls.__name__}: {data!r} is not a dictionary")
        types_of, found = typing.get_type_hints(cls), {}
        for field in dataclasses.fields(cls):
            if field.name in data:
                where = f"{cls.__name__}.{field.name}"
                found[field.name] = parse(types_of[field.name], data[field.name], where)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise DamagedRecordError(f"{cls.__name__} lacks {field.name!r}")
        return cls(**found)


def parse(expected: Any, value: Any, where: str) -> Any:
    """A value of JSON as the type ``expected``: lists become tuples, dictionaries records.

    Args:
        where: names the value in the message.

    Raises:
        DamagedRecordError: it is of another type.
    """
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin in (types.UnionType, typing.Union):  # of something and None
        (other,) = (part for part in parts if part is not types.NoneType)
        return None if value is None else parse(other, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        each = parts[:1] * len(value) if parts[1:] == (Ellipsis,) else parts
        if len(each) == len(value):
            return tuple(parse(part, v, where) for part, v in zip(each, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {name: parse(parts[1], v, f"{where}[{name!r}]") for name, v in value.items()}
    return _simple(expected, value, where)


def _simple(expected: Any, value: Any, where: str) -> Any:
    if expected is Any or (expected in (bool, int, str) and type(value) is expected):
        return value
    if expected is float and type(value) in (int, float):
        return float(value)
    if not hasattr(expected, "from_json"):
        name = getattr(expected, "__name__", expected)
        raise DamagedRecordError(f"{where} is {value!r}; expected {name}")
    try:
        return expected.from_json(value)
    except (AttributeError, KeyError, TypeError, ValueError, VggExportError) as error:
        raise DamagedRecordError(f"{where} is damaged ({error!r})") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
