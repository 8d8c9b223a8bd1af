"""Make a big VGG usable on a small board: prune, fine-tune, export, quantize, compare."""

from vgg_runtime import __version__

__all__ = ["__version__"]
