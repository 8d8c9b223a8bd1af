"""Gives calibration images one at a time to onnxruntime's static quantization, so that memory does not grow
with their number."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.preprocess import load


class ImageReader:
    """A CalibrationDataReader (onnxruntime accepts anything with ``get_next``): float32
    [1, channels, px, px] per call.

    ``on_image`` is called after every picture that was handed out.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        preprocessing: InputSpec,
        input_name: str,
        on_image: Callable[[], None],
    ) -> None:
        self._remaining = iter(paths)
        self._preprocessing, self._input_name, self._on_image = preprocessing, input_name, on_image

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next picture as a feed, None after the last."""
        path = next(self._remaining, None)
        if path is None:
            return None
        batch = load(path, self._preprocessing)[None]
        self._on_image()
        return {self._input_name: batch}
