"""``python -m vgg_export``, which is also what ``torchrun -m`` starts."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
