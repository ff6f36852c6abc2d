"""Numbers in memory that processes share: one writes them, and wakes another that waits for them.

No operator: nothing is computed, and there is no such thing in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrec.ops._library import native

__all__ = ["can_signal", "post", "wait"]

_lib: Any = native


def can_signal() -> bool:
    """Whether processes can wake one another here: it takes the native library, and Linux."""
    return _lib is not None and _lib.can_signal()


def post(words: Sequence[int], values: Sequence[int], bells: Sequence[int] = ()) -> None:
    """Write numbers; who reads them sees what this process has written before.

    Args:
        words: addresses of int64.
        values: one a word.
        bells: addresses of 8 bytes each, by which others may sleep. Default: nobody is woken.
    """
    _lib.post(words, values, bells)


def wait(
    words: Sequence[int], values: Sequence[int], bell: int, timeout_us: int, spin_us: int = 0
) -> bool:
    """Wait until each of some numbers is at least a value, and return whether it is.

    Args:
        words: addresses of int64.
        values: one a word.
        bell: address of 8 bytes, zeros at first, by which this process alone sleeps.
        timeout_us: how long, in microseconds.
        spin_us: for how long to look again and again before sleeping. Default: not at all.

    Example:
        >>> import torch
        >>> word, bell = torch.tensor([3]), torch.zeros(1, dtype=torch.int64)
        >>> addresses = [word.data_ptr()], bell.data_ptr()
        >>> if can_signal():
        ...     post(addresses[0], [4])
        ...     assert wait(addresses[0], [4], addresses[1], 1000)
        ...     assert not wait(addresses[0], [5], addresses[1], 1000)
    """
    found: bool = _lib.wait(words, values, bell, spin_us, timeout_us)
    return found
