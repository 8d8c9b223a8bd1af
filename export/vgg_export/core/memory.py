"""Keeps the memory of freed arrays for the next ones, instead of giving it back to the system each time.

glibc maps every large array anew, and the system fills it with zeros, page by page. A layer's maps are made
and freed thousands of times, so that takes a sixth of the time of a VGG in torch (measured: 172 to 177 ms a
picture at 224 px, 145 to 150 ms with the memory kept, on two cores of a Zen 4).
"""

import ctypes
import os
import sys

# of glibc's malloc.h, for mallopt
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Bytes. The largest maps of 16 pictures at 224 px are 206 MB, and two of them are freed in turn. Weights may
# be larger, and live so long that they are better mapped on their own and given back. Before 2.35 glibc took
# no larger threshold than the second one here.
_LARGEST_ARRAYS, _MOST_AT_THE_END = (2**28, 2**25), 2**29
# what a user may have chosen
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Keep freed memory in this process from now on, as far as the system allows it. Returns whether glibc
    took the settings; other libraries have none, and those of the user's environment stay."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _CHOSEN):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    kept = any(libc.mallopt(_M_MMAP_THRESHOLD, most) for most in _LARGEST_ARRAYS)
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, _MOST_AT_THE_END)) and kept
