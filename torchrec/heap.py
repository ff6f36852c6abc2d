"""Memory that a step frees, of training or prediction, kept for the next one."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

__all__ = ["expect_tensors", "keep_freed_memory"]

# Options of glibc's mallopt, and what a block and all that is free may have at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK, _FREE = 1 << 28, (1 << 31) - 1
# The most that glibc's own rule comes to, which goes by the largest block that it has seen freed.
_LEARNT_BLOCK, _LEARNT_FREE = 1 << 25, 1 << 26
_VARIABLES = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"


def keep_freed_memory() -> bool:
    """Have the C library keep what tensors of up to 256 MiB free, up to 2 GiB, for those that come.

    A step of training makes and frees the same tensors each time. By default glibc gives the largest
    back to the system, which clears every page that it hands out again: a step of a DLRM_DCN with 2048
    samples has 100 MB cleared, and takes a quarter longer. Which of them go depends on what else
    is in memory, so the time of a step does, too. So it is with predictions: 65,536 rows of a DLRM have 300 MB
    cleared, and take twice as long.

    This holds for the whole process, from now on, and is for programs to decide: training by an experiment
    and the commands ``torchrec predict`` and ``torchrec evaluate`` call it; a training loop or a service of one's
    own may. `torchrec.inference.load` does not. Memory in use is the same, but after the largest step the
    process keeps it.

    Returns:
        Whether the C library has such an option: glibc does, others and other systems may not.

    Example:
        >>> from torchrec.heap import keep_freed_memory
        >>> kept = keep_freed_memory()
    """
    expect_tensors()  # which changes nothing from now on
    return _set_limits(_BLOCK, _FREE)


@lru_cache(maxsize=1)
def expect_tensors() -> bool:
    """Have glibc keep up to 64 MiB of freed memory, as it does once a tensor of 32 MiB has been freed.

    Its rule goes by the largest block that it has seen freed: a step of training frees more than twice that, so that
    pages are cleared in each, or in none, by chance. Kernels call this when they first make something large. A program
    that sets one of glibc's variables has its way (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``,
    ``GLIBC_TUNABLES``), and `keep_freed_memory`, called before or after, keeps more.

    Returns:
        Whether it does: not with another C library, or where the program has chosen.

    Example:
        >>> from torchrec.heap import expect_tensors
        >>> expected = expect_tensors()
    """
    if any(name in os.environ for name in _VARIABLES):
        return False
    return _set_limits(_LEARNT_BLOCK, _LEARNT_FREE)


def _set_limits(block: int, free: int) -> bool:
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    # The first keeps blocks in the heap instead of mapping each, the second the heap's free end.
    return bool(set_option(_MMAP_THRESHOLD, block) and set_option(_TRIM_THRESHOLD, free))
