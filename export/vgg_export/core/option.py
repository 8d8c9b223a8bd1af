"""The command-line option of a field of an options dataclass: described beside the field, and made an option
of commands in ``command_options``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
KEY = "option"  # in a field's metadata


@dataclasses.dataclass(frozen=True)
class Option:
    """``flag``: e.g. ``--prune-ratio``; a field that is true by default has a flag that makes it false, as
    ``--no-repair``. ``choices``: the words that are accepted. ``bounds``: the least and the greatest whole
    number. ``folder``: a path is that of a folder. ``parse``: makes the value of what was typed. ``derived``:
    a value that is not given follows from other options."""

    flag: str
    text: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    bounds: tuple[int, int] | None = None
    folder: bool = False
    parse: Callable[[str], Any] | None = None
    derived: bool = False

    def __post_init__(self) -> None:
        if not self.flag.startswith("--"):
            raise ValueError(f"an option begins with two dashes, found {self.flag!r}")
        if not self.text.strip():
            raise ValueError(f"{self.flag} has no help")

    @property
    def key(self) -> str:
        """The name under which a command finds what was typed."""
        return self.flag.removeprefix("--").replace("-", "_")


def asked(default: T, flag: str, text: str, **more: Any) -> T:
    """A field of a dataclass with its default and its ``Option``; ``more``: further fields of the option.

    Raises:
        ValueError: the option has no help, or no proper flag.
    """
    return asked_as(default, Option(flag, text, **more))


def asked_as(default: T, option: Option) -> T:
    """``asked`` with an option that several fields share."""
    field: T = dataclasses.field(default=default, metadata={KEY: option})
    return field


def options_of(kind: Any) -> Mapping[str, tuple["dataclasses.Field[Any]", Option]]:
    """The fields of a dataclass that have an option, by name, with the option."""
    return {
        field.name: (field, field.metadata[KEY])
        for field in dataclasses.fields(kind)
        if KEY in field.metadata
    }
