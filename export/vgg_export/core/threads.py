"""How many threads compute, where several processes share the cores of a machine."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vgg_runtime.board import device

if TYPE_CHECKING:
    import threadpoolctl


@dataclasses.dataclass(frozen=True)
class Threads:
    """The number of threads that torch computes with, and that of numpy's library of linear algebra, which is
    1 where threadpoolctl does not know that library (Apple's)."""

    torch: int
    blas: int


def own() -> Threads:
    """Those that this process was given: by ``torchrun``, OMP_NUM_THREADS, or a variable of that library."""
    import torch

    return Threads(torch.get_num_threads(), max((pool.num_threads for pool in _pools()), default=1))


def of_machine(own: Threads) -> Threads:
    """Those of this machine's processes together, of which each has ``own``: no more than cores that this
    process may use, but at least its own."""
    return Threads(_together(own.torch), _together(own.blas))


def _together(each: int) -> int:
    return max(each, min(each * int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device.usable_cores()))


@contextlib.contextmanager
def using(threads: Threads) -> Iterator[None]:
    """Compute with these while the block runs."""
    before = own()
    _set(threads)
    try:
        yield
    finally:
        _set(before)


def _set(threads: Threads) -> None:
    import torch

    torch.set_num_threads(threads.torch)
    for pool in _pools():
        pool.set_num_threads(threads.blas)


@functools.cache
def _pools() -> "list[threadpoolctl.LibController]":
    """The libraries of linear algebra that are loaded apart from torch: numpy's, and on ARM one of torch."""
    import numpy as np  # noqa: F401  a library is found once it is loaded
    import threadpoolctl

    found: list[threadpoolctl.LibController] = (
        threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    )
    return found
