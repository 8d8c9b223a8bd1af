"""How far the work is, drawn on a terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

SECONDS_BETWEEN_LINES = 10.0


class TerminalProgress:
    """Bars with remaining time on a terminal, a line now and then elsewhere."""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator["_Line | _Bar"]:
        if total and sys.stderr.isatty():
            with click.progressbar(
                length=total, label=f"  {label:<42}", file=sys.stderr, show_eta=True, show_pos=True
            ) as bar:
                yield _Bar(bar)
            return
        line = _Line(label, total)
        yield line
        line.done()


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, steps: int = 1) -> None:
        self._bar.update(steps)


class _Line:
    """Says what is being done at once where it cannot be counted, and how long it took when it took long."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._start = self._shown = time.monotonic()
        if sys.stderr.isatty():
            click.echo(f"  {label} ...", err=True, nl=False)

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        now = time.monotonic()
        if self._total and now - self._shown >= SECONDS_BETWEEN_LINES:
            left = (now - self._start) / self._done * (self._total - self._done)
            click.echo(f"  {self._label}: {self._done} of {self._total}, {left:.0f} s left", err=True)
            self._shown = now

    def done(self) -> None:
        seconds = time.monotonic() - self._start
        if sys.stderr.isatty():
            click.echo(f"\r  {self._label:<42} {seconds:.1f} s", err=True)
        elif seconds >= 1:
            click.echo(f"  {self._label}: done in {seconds:.1f} s", err=True)
