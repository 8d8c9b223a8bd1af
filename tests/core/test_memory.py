"""The memory of freed arrays: kept for the next ones."""

import os
import subprocess
import sys

import pytest

from vgg_export import cli
from vgg_export.core import memory, processes

MADE = """
import ctypes, resource, sys
from vgg_export.core import memory

if sys.argv[1] == "kept":
    assert memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = libc.malloc(24 * 2**20)
    ctypes.memset(place, 1, 24 * 2**20)
    libc.free(place)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def faults(which: str, **environment: str) -> list[int]:
    """The page faults of an array of 24 MB that is made and freed four times in a process of its own."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", MADE, which], capture_output=True, text=True, env=usual | environment
    )
    assert not done.returncode, done.stderr
    return [int(count) for count in done.stdout.split()]


@pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="only glibc keeps freed memory"
)
def test_a_freed_array_makes_room_for_the_next_without_new_pages() -> None:
    first, *others = faults("kept")
    assert first > 8  # pages may be huge
    assert max(others) < first / 4
    # without the setting every array is new; glibc would raise its own threshold after the first one, and is
    # told not to
    given_back = faults("given back", MALLOC_MMAP_THRESHOLD_="1000000")
    assert min(given_back) > 8


def test_settings_of_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    assert not memory.keep_freed()


def test_every_process_of_the_command_line_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(memory, "keep_freed", lambda: called.append(True))
    monkeypatch.setattr(processes, "led", lambda run: 0)  # as one that only helps
    assert cli.main(["--version"]) == 0
    assert called == [True]
