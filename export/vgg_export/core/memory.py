"""Keeps the memory of freed arrays for the next ones, instead of giving it back to the system each time.

glibc maps every large array anew, and the system fills it with zeros, page by page. A layer's maps are made
and freed thousands of times, so that takes a sixth of the time of a VGG in torch (measured: 172 to 177 ms a
picture at 224 px, 145 to 150 ms with the memory kept, on two cores of a Zen 4).
"""

import ctypes
import sys

# of glibc's malloc.h, for mallopt
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Bytes. The largest maps of 16 pictures at 224 px are 206 MB, and two of them are freed in turn. Weights may
# be larger, and live so long that they are better mapped on their own and given back.
_LARGEST_ARRAY, _MOST_KEPT = 2**28, 2**29


def keep_freed() -> bool:
    """Keep freed memory in this process from now on. Returns whether that is so: only glibc can do it."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False  # musl has no such settings
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_ARRAY)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT))
