"""Starts a program of this folder, or says which Python or package is missing. A Python that is too old must
read this file, too."""

import os
import signal
import sys


def _interrupted(*_: object) -> None:
    os.write(2, b"\nInterrupted.\n")
    os._exit(130)


if callable(signal.getsignal(signal.SIGINT)):  # else it is ignored, as in a script's background
    # what is imported takes seconds on a board, and can be interrupted without harm
    signal.signal(signal.SIGINT, _interrupted)

import importlib  # noqa: E402
from typing import Any  # noqa: E402


def main_of(module: str, instead: "str | None" = None) -> "Any":
    """The function ``main`` of a module of vgg_runtime, or of the module ``instead`` where the first one
    lacks a package. Ends the program with a sentence where it cannot be had."""
    if sys.version_info < (3, 11):
        found = "%d.%d" % sys.version_info[:2]  # noqa: UP031
        sys.exit(
            "Error: this needs Python 3.11 or newer, found "
            + found
            + "; Raspberry Pi OS Bookworm and later have it"
        )
    try:
        return importlib.import_module(module).main
    except ImportError as missing:
        if instead is not None:
            return importlib.import_module(instead).main
        # it is there, and a shared library of its own is not
        if not isinstance(missing, ModuleNotFoundError):
            sys.exit("Error: a package cannot be imported; compare.py --doctor says which and why")
        needed = os.path.join(os.path.dirname(os.path.abspath(__file__)), "requirements.txt")  # noqa: PTH100, PTH118, PTH120
        pip, then = sys.executable + " -m pip", ""
        if sys.prefix == sys.base_prefix:  # systems refuse to install beside their own packages
            pip, then = "python3 -m venv venv && venv/bin/pip", ", then use venv/bin/python"
        remedy = "run: %s install -r %s%s" % (pip, needed, then)  # noqa: UP031
        sys.exit("Error: the package %s is missing; %s" % (missing.name, remedy))  # noqa: UP031
