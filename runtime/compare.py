#!/usr/bin/env python3
"""Compare every variant of a bundle on this machine: ``python compare.py --help``."""

import sys

from _start import main_of

main = main_of("vgg_runtime.compare", "vgg_runtime.doctor.diagnosis" if "--doctor" in sys.argv[1:] else None)

if __name__ == "__main__":
    sys.exit(main())
