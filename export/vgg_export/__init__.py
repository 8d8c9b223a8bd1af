"""Make a big VGG usable on a small board: prune, fine-tune, export, quantize, compare."""

from vgg_runtime import __version__  # the import also keeps onnxruntime from uploading

__all__ = ["__version__"]
