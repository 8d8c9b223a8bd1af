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
# compact variants); on x86 with VNNI that is all they do.
EXACT = "session.x64quantprecision"


def exact(settings: SessionSettings, core: Target, made_for: Sequence[str]) -> SessionSettings:
    """The settings with which a build computes on ``core`` what it computes on the targets it was made for.

    Where its int8 products would overflow, these settings choose slower kernels.
    """
    if not saturates(core, made_for):
        return settings
    return dataclasses.replace(settings, config=settings.config | {EXACT: "1"})


# Idle threads of onnxruntime wait for their next work in a loop before they sleep. Between the frames of a
# stream that burns the cores; between the layers of a model it saves the time of waking up (a VGG-16 in int8
# takes 22 ms with it and up to 38 without). A millisecond serves both.
BOUNDED, BOUNDED_SINCE = ("session.intra_op.spin_duration_us", "1000"), (1, 30)
NONE = ("session.intra_op.allow_spinning", "0")


def session_options(settings: SessionSettings, threads: int, *, spinning: bool = True) -> Any:
    """A variant's settings as onnxruntime's ``SessionOptions``. ``spinning``: idle threads wait in a loop
    for as long as onnxruntime lets them, and not for a millisecond at most."""
    # imported here, so that a wheel that crashes at import (1.21.0 on a Pi 4) ends a child process only
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = settings.arena
    options.log_severity_level = 3
    for key, value in settings.config.items():
        options.add_session_config_entry(key, value)
    if not spinning:
        bounded = tuple(map(int, ort.__version__.split(".")[:2])) >= BOUNDED_SINCE
        options.add_session_config_entry(*(BOUNDED if bounded else NONE))
    return options


class Model:
    """A loaded variant: float32 [N, channels, px, px] -> raw logits float32 [N, outputs]. What they mean
    is in ``outputs.py``."""

    def __init__(self, path: Path, settings: SessionSettings, threads: int, *, spinning: bool = True) -> None:
        import onnxruntime as ort

        options = session_options(settings, threads, spinning=spinning)
        self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input: str = self._session.get_inputs()[0].name

    def __call__(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        return result
