"""Where torch computes: on the CPU, or on a CUDA device. Results of both differ by rounding alone, so neither
their files nor what they are named after say which one it was. The manifest's ``made_with`` says it of the
run that wrote it; what that took over from an earlier one may have been computed elsewhere."""

import functools
import logging
import os
from typing import TYPE_CHECKING

from .errors import OptionsError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
DEVICES = (AUTO, CPU, CUDA)


class _State:
    asked = AUTO


def use(name: str) -> None:
    """Compute on one of DEVICES from now on; "auto": on CUDA where torch finds it.

    Raises:
        OptionsError: "cuda", and torch finds none.
    """
    _State.asked = name
    _device.cache_clear()
    if name == CUDA:
        _device()


def asked() -> str:
    """The one of DEVICES that was asked for."""
    return _State.asked


def device() -> "torch.device":
    """Where torch computes. Several processes of a machine take turns with its CUDA devices."""
    return _device()


@functools.cache
def _device() -> "torch.device":
    import torch

    if _State.asked == CPU or not torch.cuda.is_available():
        if _State.asked == CUDA:
            raise OptionsError(
                f"torch {torch.__version__} finds no CUDA device; use --device cpu, or install a driver and a"
                " torch that is built for it"
            )
        return torch.device(CPU)
    torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa are not what the CPU's results have
    found = torch.device(CUDA, int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    log.info("computing on %s (else --device cpu)", torch.cuda.get_device_name(found))
    return found


def name() -> str:
    """What computes: "cpu", or what the CUDA device is called."""
    import torch

    found = device()
    return CPU if found.type == CPU else torch.cuda.get_device_name(found)


def here(tensor: "torch.Tensor") -> "torch.Tensor":
    """A tensor where torch computes: itself, where it is there already."""
    return tensor.to(device())
