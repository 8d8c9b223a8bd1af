"""The memory of freed arrays: kept for the next ones."""

import subprocess
import sys

import pytest

PAGES = 64 * 2**20 // 4096  # of the array that is made and freed
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
    place = libc.malloc(64 * 2**20)
    ctypes.memset(place, 1, 64 * 2**20)
    libc.free(place)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc keeps freed memory")
@pytest.mark.parametrize("which", ["kept", "given back"])
def test_a_freed_array_makes_room_for_the_next_without_new_pages(which: str) -> None:
    """Every page of the first is new; of the next ones none is if the memory is kept, else all are."""
    done = subprocess.run([sys.executable, "-c", MADE, which], check=True, capture_output=True, text=True)
    first, *others = map(int, done.stdout.split())
    assert first >= PAGES // 512  # a page may be huge
    if which == "kept":
        assert max(others) < PAGES // 1024
    else:
        assert min(others) >= PAGES // 512
