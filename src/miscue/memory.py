"""This process's memory: how much there is of it, and the C library's habits of giving it back."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = {M_TRIM_THRESHOLD: 2**30, M_MMAP_THRESHOLD: 2**27}  # bytes; larger blocks than the second go back at once


def anonymous() -> int:
    """Bytes of memory that nothing on a disk stands behind: all but mapped files. 0 where the kernel does not tell."""
    try:
        found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for all its life; returns whether the C library can.

    glibc gives large blocks back to the kernel as soon as they are free. A step of training frees and takes the same
    ones each time, and every page that comes back is fetched and zeroed anew. Not so the blocks of large images, over
    `KEPT`: a network takes longer over them than the kernel over their pages, and kept in pieces they add up to
    gigabytes. Call it at the start of a program, not from a library: it is the whole process's setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False  # another C library
    return all(mallopt(option, size) == 1 for option, size in KEPT.items())
