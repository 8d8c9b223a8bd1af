"""What a user sees during a run: progress, log lines and errors."""

import contextlib
import errno
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import click

from vgg_runtime import console
from vgg_runtime.errors import RuntimeInputError

from .core.errors import VggExportError

EXIT_INTERRUPTED = 130
SECONDS_BETWEEN_LINES = 10.0


def show_what_matters() -> None:
    """Send the logs of this program to standard error, and only errors of the libraries."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Harmless("%(message)s"))
    for name in ("vgg_export", "vgg_calibration"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("torch", "onnxscript", "onnx_ir", "onnxruntime"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)
    # warnings of libraries are for programmers; what a user must know is an error or a log line
    warnings.simplefilter("ignore")


class _Harmless(logging.Formatter):
    """Log lines without control characters: names of files and what a board says may hold any."""

    def format(self, record: logging.LogRecord) -> str:
        return console.harmless(super().format(record))


def explain(error: BaseException) -> int:
    """Print what stopped a command; returns the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo(
            "\nInterrupted. Finished work is kept; run the same command again to go on from there.", err=True
        )
        return EXIT_INTERRUPTED
    sentence, code = _sentence(error)
    click.secho(f"Error: {console.in_one(sentence)}", fg="red", err=True)
    return code


def is_a_surprise(error: BaseException) -> bool:
    """Whether an error is of a kind that this program does not expect."""
    known = (
        click.ClickException,
        click.Abort,
        KeyboardInterrupt,
        VggExportError,
        RuntimeInputError,
        MemoryError,
    )
    return not isinstance(error, known) and _of_the_machine(error) is None


def _sentence(error: BaseException) -> tuple[str, int]:
    if isinstance(error, VggExportError):
        return str(error), error.exit_code
    if isinstance(error, RuntimeInputError):
        return str(error), 2
    if isinstance(error, MemoryError):
        return "this computer ran out of memory; close other programs or use a machine with more", 1
    if found := _of_the_machine(error):
        return found, 1
    text = " ".join(str(error).split())[:300]
    where = "VGG_EXPORT_TRACEBACK=1 shows where; please report it"
    return f"unexpected {type(error).__name__}: {text} ({where})", 1


# what the machine may refuse anywhere, and what to do then; libraries in other languages put it into a text
_REFUSED = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "this user's share of the disk is full; free some space or choose another folder",
    errno.EIO: "the disk or its connection failed while a file was read or written; check it, and run again",
    errno.EROFS: "the folder is read-only; choose another one",
    errno.EACCES: "this user may not read or write there; choose another folder",
    errno.EPERM: "this user may not read or write there; choose another folder",
    errno.EMFILE: "this program may not open so many files; allow more, e.g. with ulimit -n 4096",
    errno.ENFILE: "the system has too many open files; close other programs",
}


# how onnxruntime tells the number of such an error
_ONNXRUNTIMES = re.compile(r"system error number (\d{1,3})\b|SystemError : (\d{1,3})\b")


def _of_the_machine(error: BaseException) -> str | None:
    """A sentence for an error that is none of this program or its inputs, but of the machine; else None."""
    cause: BaseException | None = error
    while cause is not None:
        told = _ONNXRUNTIMES.search(str(cause))  # one of its two groups has the number
        for number, remedy in _REFUSED.items():
            own = (getattr(cause, "errno", None), int(told[1] or told[2]) if told else None)
            if number in own or os.strerror(number) in str(cause):
                where = getattr(cause, "filename", None)
                return f"{where}: {remedy}" if where else remedy
        cause = cause.__cause__ or cause.__context__
    return None


class TerminalProgress:
    """Shows bars with the remaining time on a terminal, and lines at intervals elsewhere."""

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
    """On a terminal, shows a label at once for a task without a count, and how long it took. Elsewhere,
    prints how far a task is every ten seconds, and how long it took if that was a second or more."""

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
