"""Starts the command line. What it imports takes a second, and can be interrupted without harm."""

import os
import signal

# A closed terminal and what 'kill' sends. Windows has no SIGHUP.
_ENDS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGTERM") if hasattr(signal, name))


def main() -> int:
    """Load the command line, run a command, and return its exit code."""
    heeded = callable(signal.getsignal(signal.SIGINT))  # else it is ignored, as in a script's background
    if heeded:
        signal.signal(signal.SIGINT, _interrupted)
    from .cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for end in _ENDS:
        if signal.getsignal(end) is signal.SIG_DFL:  # else nohup or a parent has decided
            signal.signal(end, _as_ctrl_c)
    return run()


def _interrupted(*_: object) -> None:
    os.write(2, b"\nInterrupted.\n")
    os._exit(130)


def _as_ctrl_c(*_: object) -> None:
    """End as Ctrl-C does: pages say so, and what runs on a board is stopped. A shell sends a closed
    terminal's signal a second time, which must not end this."""
    for end in _ENDS:
        if signal.getsignal(end) is _as_ctrl_c:
            signal.signal(end, _already_ending)
    raise KeyboardInterrupt


def _already_ending(*_: object) -> None:
    """Not SIG_IGN, which what is started while ending would inherit."""
