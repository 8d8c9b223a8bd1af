"""Run under torchrun: the first process divides work, and prints what came of it. ``lost`` as an argument:
the second process ends in the middle; ``threads``: it prints with how many threads each computes."""

import contextlib
import os
import sys

import numpy as np  # noqa: F401  its threads are counted
import threadpoolctl
import torch

from vgg_export.core import processes
from vgg_export.core.errors import NothingToGainError, VggExportError
from vgg_export.core.progress import Progress, Quiet


def summed(numbers: list[float], _: Progress) -> tuple[object, ...]:
    own = [numbers[k] for k in processes.share(len(numbers))]
    places = processes.shares(len(numbers), 3)
    rows = processes.gathered(torch.tensor(places, dtype=torch.float32), places, len(numbers) + 3)
    gradients = [torch.ones(2, 3) * (processes.rank() + 1), torch.ones(4), torch.tensor(0.5)]
    processes.add_up_all(gradients)
    added = [gradient.tolist() for gradient in gradients]
    alike = processes.from_all(len(own))
    return processes.total(sum(own)), processes.least(len(own)), alike, rows.tolist(), added


def in_vain(limit: int, _: Progress) -> str:
    def decided() -> str:
        if limit < 3:
            raise NothingToGainError(f"{limit} is too little")
        return f"{limit} will do, says process {processes.rank()}"

    return processes.from_first(decided)


def few(count: int, _: Progress) -> None:
    processes.from_first(lambda: processes.ensure_enough(count, "drawn"))


def threads() -> list[int]:
    """Those of torch and of numpy's library, one number where they are the same."""
    pools = threadpoolctl.threadpool_info()
    found = {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}
    return sorted({torch.get_num_threads()} | found)


def counted(_: Progress) -> object:
    """The threads of each process in divided work, of the first one while it decides, and again."""
    before = processes.from_all(threads())
    return before, processes.from_first(threads), processes.from_all(threads())


def lost(_: Progress) -> float:
    if processes.rank() == 1:
        os._exit(3)
    return processes.total(1.0)


def command() -> int:
    if "lost" in sys.argv:
        try:
            processes.together(Quiet(), lost)
        except VggExportError as error:
            print(error)
        return 0
    if "threads" in sys.argv:
        print(threads(), processes.together(Quiet(), counted), threads())
        with contextlib.suppress(NothingToGainError):
            processes.together(Quiet(), in_vain, 2)
        print(threads(), processes.together(Quiet(), counted), threads())
        return 0
    print(processes.together(Quiet(), summed, [1.0, 2.0, 4.0, 8.0, 16.0]))
    for limit in (2, 4):
        try:
            print(processes.together(Quiet(), in_vain, limit))
        except NothingToGainError as error:
            print(error)
    try:
        processes.together(Quiet(), few, 1)
    except VggExportError as error:
        print(error)
    print(processes.rank(), processes.world())
    return 0


if __name__ == "__main__":
    sys.exit(processes.led(command))
