"""An onnxruntime session for a variant."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .manifest import SessionSettings


def session_options(settings: SessionSettings, threads: int) -> Any:
    """What a variant asks of onnxruntime, as its ``SessionOptions``."""
    import onnxruntime as ort  # here, so that a wheel which dies at import (1.21.0 on a Pi 4) takes only a child along

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = settings.arena
    options.log_severity_level = 3
    for key, value in settings.config.items():
        options.add_session_config_entry(key, value)
    return options


class Model:
    """A loaded variant: float32 [N, 3, px, px] -> logits float32 [N, classes]."""

    def __init__(self, path: Path, settings: SessionSettings, threads: int) -> None:
        import onnxruntime as ort

        self._session: Any = ort.InferenceSession(str(path), session_options(settings, threads), providers=["CPUExecutionProvider"])
        self._input: str = self._session.get_inputs()[0].name

    def __call__(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        return result
