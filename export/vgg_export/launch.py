"""Starts the command line. What it imports takes a second, and can be interrupted without harm."""

import os
import signal


def main() -> int:
    """Load the command line, run a command, and return its exit code."""
    heeded = callable(signal.getsignal(signal.SIGINT))  # else it is ignored, as in a script's background
    if heeded:
        signal.signal(signal.SIGINT, _interrupted)
    from .cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _interrupted(*_: object) -> None:
    os.write(2, b"\nInterrupted.\n")
    os._exit(130)
