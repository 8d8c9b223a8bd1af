#!/usr/bin/env python3
"""Compare every variant of a bundle on this machine: ``python compare.py --help``."""

import sys

if sys.version_info < (3, 11):
    found = "%d.%d" % sys.version_info[:2]  # noqa: UP031
    sys.exit(
        "Error: this needs Python 3.11 or newer, found "
        + found
        + "; Raspberry Pi OS Bookworm and later have it"
    )

try:
    from vgg_runtime.compare import main
except ImportError as missing:
    if "--doctor" not in sys.argv[1:]:
        # it is there, and a shared library of its own is not
        if not isinstance(missing, ModuleNotFoundError):
            sys.exit("Error: a package cannot be imported; compare.py --doctor says which and why")
        remedy = "in a virtual environment run: pip install -r requirements.txt"
        sys.exit("Error: the package %s is missing; %s" % (missing.name, remedy))  # noqa: UP031
    from vgg_runtime.doctor.diagnosis import main

except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
