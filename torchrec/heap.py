"""Memory that a step frees, of training or prediction, kept for the next one."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# Options of glibc's mallopt, and what a block and all that is free may have at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK, _FREE = 1 << 28, (1 << 31) - 1


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
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    # The first keeps blocks in the heap instead of mapping each, the second the heap's free end.
    return bool(set_option(_MMAP_THRESHOLD, _BLOCK) and set_option(_TRIM_THRESHOLD, _FREE))
