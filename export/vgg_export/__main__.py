"""``python -m vgg_export``, which is also what ``torchrun -m`` starts."""

import sys

from .launch import main

if __name__ == "__main__":
    code = main()
    # An interrupt that passed through a string being executed (dataclasses and torch make functions so)
    # leaves a mark in CPython 3.11 by which -m ends as if nobody had caught it, whatever the exit code; the
    # next string takes the mark away.
    exec("")
    sys.exit(code)
