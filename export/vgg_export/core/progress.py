"""The one interface through which stages report how far they are; ``terminal.py`` draws it, tests do not."""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Task(Protocol):
    def advance(self, steps: int = 1) -> None:
        """``steps`` more of the total are done."""


class Progress(Protocol):
    def task(self, label: str, total: int | None) -> contextlib.AbstractContextManager[Task]:
        """A stretch of work of ``total`` steps; None when it cannot be counted (then elapsed time is
        shown)."""


class Quiet:
    """Reports nothing."""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator["Quiet"]:
        yield self

    def advance(self, steps: int = 1) -> None:
        pass
