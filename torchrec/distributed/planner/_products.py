"""Memory that matrix products keep: no tensor has it, and no process gives it back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["kept_by_products"]

_STATUS = Path("/proc/self/status")


def kept_by_products(step: Callable[[], object]) -> int:
    """Return the bytes that MKL keeps of a step for the next: matrices are packed there before they are multiplied.

    It keeps a block for each size that it has needed, also for what other steps of the process needed; these are given
    back first. Where PyTorch multiplies by another library, or memory is not glibc's, that is not known, and is 0.

    Args:
        step: takes one, which makes nothing that stays; it was taken before.

    Example:
        >>> kept_by_products(lambda: None) < 2**16
        True
    """
    try:
        give_back = ctypes.CDLL(str(_library())).mkl_serv_free_buffers
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another library, another C library, or Windows
        return 0
    give_back()
    trim(0)
    before = _private_bytes()
    step()
    trim(0)
    return max(0, _private_bytes() - before)


def _library() -> Path:
    return Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def _private_bytes() -> int:
    """Return the bytes of this process that are in memory, without files and what it shares with others."""
    lines = _STATUS.read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])
