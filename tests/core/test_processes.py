"""Work that several processes divide, and what becomes of errors in it."""

import subprocess
import sys
from pathlib import Path

import pytest
import threadpoolctl
import torch
from conftest import command_environment
from divided import TORCHRUN

from vgg_export.core import processes, threads
from vgg_runtime.board import device

SCRIPT = Path(__file__).with_name("divided_work.py")


def lines(*how: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, *map(str, how)],
        env=command_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.stdout.splitlines()


def test_a_share_of_one_process_is_all() -> None:
    assert list(processes.share(3)) == [0, 1, 2]
    assert processes.shares(2, 3) == [0, 1, 2, 3, 4]
    assert (processes.total(2.5), processes.least(4), processes.from_all("a")) == (2.5, 4, ["a"])


@pytest.mark.release
def test_two_processes_add_up_and_go_the_way_of_the_first_also_after_its_errors() -> None:
    ends = ["2 is too little", "4 will do, says process 0"]
    alone, divided = lines(SCRIPT), lines(*TORCHRUN, SCRIPT)
    rows = [float(k) for k in range(8)]
    added = [[[1.0] * 3] * 2, [1.0] * 4, 0.5]
    assert alone == [f"(31.0, 5, [5], {rows}, {added})", *ends, "0 1"]
    few = (
        "1 drawn pictures for 2 processes; expected at least one for each: use fewer processes or more"
        " pictures"
    )
    added = [[[3.0] * 3] * 2, [2.0] * 4, 1.0]
    assert divided == [f"(31.0, 2, [2, 3], {rows}, {added})", *ends, few, "0 1"]


@pytest.mark.release
@pytest.mark.skipif(device.usable_cores() < 2, reason="two processes of one core have no threads to lend")
def test_the_first_process_computes_with_the_threads_of_those_that_wait() -> None:
    """While it decides for all, too, and again after an error of it."""
    own, both = [1], [2]
    assert lines(*TORCHRUN, SCRIPT, "threads") == 2 * [f"{both} {([own, own], both, [own, own])} {both}"]
    assert lines(SCRIPT, "threads") == 2 * [f"{own} {([own], own, [own])} {own}"]


@pytest.mark.parametrize(
    ("own", "processes_here", "cores", "together"),
    [
        ((1, 1), 2, 2, (2, 2)),
        ((1, 1), 8, 6, (6, 6)),
        ((4, 4), 2, 2, (4, 4)),  # asked for by name
        ((8, 16), 1, 16, (8, 16)),  # one process on each of several machines: nobody lends
        ((1, 2), 2, 8, (2, 4)),
        ((1, 1), 4, 1, (1, 1)),  # a quota
    ],
)
def test_threads_of_several_processes(
    own: tuple[int, int],
    processes_here: int,
    cores: int,
    together: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes_here))
    monkeypatch.setattr(device, "usable_cores", lambda: cores)
    assert threads.of_machine(threads.Threads(*own)) == threads.Threads(*together)


def test_numpy_and_torch_compute_with_the_threads_that_are_set() -> None:
    before = threads.own()
    with threads.using(threads.Threads(2, 3)):
        found = {
            pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"
        }
        assert (torch.get_num_threads(), found) == (2, {3})
        assert threads.own() == threads.Threads(2, 3)
    assert threads.own() == before


@pytest.mark.release
def test_the_first_process_says_that_another_has_ended() -> None:
    # torchrun looks late, so that it does not end the first process before that has spoken
    (said,) = lines(*TORCHRUN, "--monitor-interval", "3", SCRIPT, "lost")
    assert said == "another process has ended, so that this one cannot go on; what that one printed says why"
