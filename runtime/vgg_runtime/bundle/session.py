"""An onnxruntime session for a variant."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_runtime.board.targets import Target, saturates

from .manifest import SessionSettings

# onnxruntime turns 8-bit weights into unsigned ones, whose kernels add in 32 bits
# (core/optimizer/qdq_transformer/avx2_weight_s8_to_u8.cc). They are slower (measured: 1.4 to 1.7 times,
# compact variants), and on x86 with VNNI nothing but slower.
EXACT = "session.x64quantprecision"


def exact(settings: SessionSettings, core: Target, made_for: Sequence[str]) -> SessionSettings:
    """What a build made for some targets is to be run with on a core: where its int8 products would overflow,
    with slower kernels that compute what its own cores do."""
    if not saturates(core, made_for):
        return settings
    return dataclasses.replace(settings, config=settings.config | {EXACT: "1"})


def session_options(settings: SessionSettings, threads: int) -> Any:
    """What a variant asks of onnxruntime, as its ``SessionOptions``."""
    # here, so that a wheel which dies at import (1.21.0 on a Pi 4) takes only a child along
    import onnxruntime as ort

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

        self._session: Any = ort.InferenceSession(
            str(path), session_options(settings, threads), providers=["CPUExecutionProvider"]
        )
        self._input: str = self._session.get_inputs()[0].name

    def __call__(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        return result
