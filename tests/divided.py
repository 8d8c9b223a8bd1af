"""Runs a command alone and in two processes under torchrun, which must come to the same."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from conftest import command_environment

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COMMAND = ("-m", "vgg_export")


def started(
    arguments: Sequence[object], *, processes: int, program: Sequence[object] = COMMAND
) -> "subprocess.CompletedProcess[str]":
    """A finished program, ``vgg-export`` if not told, in one process or in two."""
    launcher = TORCHRUN if processes == 2 else ()
    return subprocess.run(
        [sys.executable, *launcher, *map(str, (*program, *arguments))],
        env=command_environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def alone_and_divided(
    arguments: Sequence[object], folder: Path, suffix: str, program: Sequence[object] = COMMAND
) -> tuple[Path, Path]:
    """The outputs of one process and of two."""
    outputs = folder / f"one{suffix}", folder / f"two{suffix}"
    for k, output in enumerate(outputs, start=1):
        done = started([*arguments, "--output", output], processes=k, program=program)
        assert done.returncode == 0, done.stderr
    return outputs
