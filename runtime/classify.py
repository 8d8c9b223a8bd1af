#!/usr/bin/env python3
"""Classify pictures with one variant of a bundle: ``python classify.py --help``."""

import sys

from _start import main_of

main = main_of("vgg_runtime.classify.command")

if __name__ == "__main__":
    sys.exit(main())
