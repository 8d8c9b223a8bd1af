"""What the device's command lines share: types of options, progress on a terminal, exit codes.

It can be imported without numpy, as the doctor needs it.
"""

import argparse
import contextlib
import errno
import io
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from . import addresses, text
from .errors import ModelError, RuntimeInputError

RED, GREEN, YELLOW = "31", "32", "33"
EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
# What the system may refuse anywhere, and what to do then.
_REFUSED = {
    errno.EMFILE: "this program may not open so many files; allow more, e.g. with ulimit -n 1024",
    errno.ENFILE: "the system has too many open files; close other programs",
    errno.ENOMEM: "the system has too little memory left; close other programs",
}


class _Closed(io.StringIO):
    """Stands for a standard output that was closed before this program began. What has to be written there
    fails, as on a full disk."""

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def ended(program: Callable[[], int]) -> int:
    """Run a program and return its exit code: 0 all well, 1 a self-check or a model failed, 2 unusable input,
    130 interrupted. Its errors become sentences on standard error."""
    if callable(signal.getsignal(signal.SIGINT)):  # else it is ignored, as in a script's background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # _start.py's ended the program at once
    _prepare_streams()
    warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF; what matters raises an error
    try:
        return program()
    except RuntimeInputError as error:
        say_aside(f"Error: {in_one(str(error))}")
        return EXIT_INPUT
    except ModelError as error:
        say_aside(f"Error: {in_one(str(error))}")
        return EXIT_FAILED
    except BrokenPipeError:
        _print_no_more()  # the program that read our output has ended
        return EXIT_INPUT
    except OSError as error:
        _print_no_more()
        say_aside(f"Error: {in_one(_told(error))}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        _complain("\nInterrupted.")
        return EXIT_INTERRUPTED
    except MemoryError:
        _complain(
            "Error: this program itself did not fit into memory; close other programs, or take one variant at"
            " a time"
        )
        return EXIT_FAILED


def _complain(words: str) -> None:
    """Print a line on standard error with little ado, as memory may be short."""
    if sys.stderr is not None:  # None would mean standard output
        print(words, file=sys.stderr)


def _prepare_streams() -> None:
    """What is printed must not end in a traceback where standard output is closed or knows few characters."""
    if sys.stdout is None:
        sys.stdout = _Closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal without UTF-8 gets escapes
            stream.reconfigure(errors="backslashreplace")


def refused(error: OSError) -> str | None:
    """A sentence for an error that is none of a file or of this program, but of the system; else None."""
    return _REFUSED.get(error.errno or 0)


def _told(error: OSError) -> str:
    if found := refused(error):
        return found
    what = f"{error.filename} cannot be used" if error.filename else "what is printed cannot be written"
    return f"{what} ({error.strerror or error})"


def _print_no_more() -> None:
    """What is left to print could not be written when Python ends, either."""
    with contextlib.suppress(OSError):  # closed, or there is no file left to open
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def width(*, wide: bool = False) -> int | None:
    """The characters of a line on the terminal; None, no limit, with ``wide``."""
    return None if wide else text.terminal_width()


def shown(words: str, recommended: str | None = None) -> None:
    """Print text. On a terminal that takes colours, unless NO_COLOR is set, marked lines and the recommended
    variant's are coloured."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    words = harmless(words)
    print(in_colours(words, recommended) if coloured else words, flush=True)


def harmless(words: str) -> str:
    """Text without control characters but the ends of lines: a name in a bundle, a file or a message may hold
    any, and would steer the terminal."""
    return "\n".join(text.printable(line, len(line)) for line in words.split("\n"))


def in_one(sentence: str) -> str:
    """An error as ``harmless`` gives it, without the passwords of addresses that were typed. What follows the
    end of a line, which a name may hold, is indented: it does not look like a line of its own."""
    return "\n  ".join(harmless(addresses.hidden_in(sentence)).split("\n"))


def in_colours(words: str, recommended: str | None) -> str:
    """The text with colours for a terminal: green what is recommended, yellow notices, red what failed."""
    colours = {"★ ": GREEN, "!! ": YELLOW, "✗ ": RED}
    if recommended:
        colours[f"{recommended}  "] = GREEN
    lines = []
    for line in words.split("\n"):
        colour = next((colours[mark] for mark in colours if line.startswith(mark)), None)
        lines.append(f"\x1b[{colour}m{line}\x1b[0m" if colour else line)
    return "\n".join(lines)


def report(line: str) -> None:
    """Show progress on standard error; a terminal overwrites the line before."""
    line = harmless(line)
    if _watched():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def glimpse(line: str) -> None:
    """Show progress that is of use only while it lasts, on a terminal alone, which overwrites it."""
    if _watched():
        report(line)


def _watched() -> bool:
    """Whether a person sees standard error; it may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def clear_report() -> None:
    """Take the last line of progress away."""
    if _watched():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Print a line at once, for a person: where standard output is closed, there is none."""
    clear_report()
    if not isinstance(sys.stdout, _Closed):
        print(harmless(line), flush=True)


def say_aside(line: str) -> None:
    """Print a line on standard error at once, where it does not mix with what a program reads."""
    clear_report()
    if sys.stderr is not None:  # None would mean standard output
        print(harmless(line), file=sys.stderr, flush=True)


def install(requirements: str) -> str:
    """The command that installs a file of requirements of this runtime, to be pasted."""
    own = Path(__file__).resolve().parent
    path = next(
        (p for p in (own.parent / requirements, own / "launcher" / requirements) if p.is_file()),
        Path("runtime") / requirements,
    )
    return f"{shlex.quote(sys.executable)} -m pip install -r {shlex.quote(str(path))}"


def default_bundle() -> Path:
    """The folder of the bundle that holds this copy of the runtime, else ./artifacts."""
    from .bundle import manifest  # it needs numpy

    own = Path(__file__).resolve().parents[2]
    return own if (own / manifest.FILE_NAME).is_file() else Path("artifacts")


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The options that say which bundle, and how its models are run."""
    from .bundle import builds  # it needs numpy

    parser.add_argument(
        "--bundle",
        type=path,
        metavar="DIR",
        help="the folder that 'vgg-export all' wrote (default: the bundle that holds this file, else"
        " ./artifacts)",
    )
    parser.add_argument(
        "--memory",
        choices=builds.MEMORY_MODES,
        default=builds.AUTO,
        help="lean keeps float weights in the pages of their file, which the system can drop; fast packs a"
        " copy of them; auto is fast where memory allows it (default: auto)",
    )


class Parser(argparse.ArgumentParser):
    """A parser that prints nothing raw of what was typed, and one sentence instead of all options."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_INPUT, f"Error: {in_one(message)}; {self.prog} --help lists the options\n")


def named(typed: str) -> str:
    """A name that is not empty: an empty one comes from a script's unset variable, and is no default."""
    if not typed:
        raise argparse.ArgumentTypeError("expected a name, found an empty text")
    return typed


def path(typed: str) -> Path:
    """A file or folder; "." is the current one, an empty text is none."""
    return Path(named(typed))


def whole(typed: str) -> int:
    try:
        return int(typed)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {typed!r}") from None


def positive(typed: str) -> int:
    value = whole(typed)
    if not 1 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"expected 1 to 1024, found {typed}")
    return value


def threads(typed: str) -> int:
    """A number of threads; 0 stands for auto."""
    return 0 if typed == "auto" else positive(typed)


def count(typed: str) -> int:
    value = whole(typed)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {typed}")
    return value


def number(typed: str, most: float, unit: str) -> float:
    """A number above 0 and of at most ``most``."""
    try:
        value = float(typed)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of {unit}, found {typed!r}") from None
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most {most:.0f} {unit}, found {typed}")
    return value


def seconds(typed: str) -> float:
    return number(typed, 86400, "seconds")


def duration(typed: str) -> float:
    return number(typed, 366 * 86400, "seconds")


def rate(typed: str) -> float:
    return number(typed, 1000, "frames a second")


def port(typed: str) -> int:
    value = whole(typed)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, found {typed}")
    return value
