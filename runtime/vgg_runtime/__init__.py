"""What runs on the device: the standard library, numpy, Pillow and onnxruntime, nothing else."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classify.classifier import Classifier, Prediction

__all__ = ("Classifier", "Prediction", "__version__")

# onnxruntime's wheels from 1.29 on upload events and write a device identifier unless this is set before it
# is imported, and processes that are started inherit it. A value that the person has set stays, whatever it
# is.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """The call for scripts, ``from vgg_runtime import Classifier``, is loaded when it is asked for: most
    processes load a part of this package only, and what they load counts as their model's memory."""
    if name in ("Classifier", "Prediction"):
        from .classify import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.3.0"
