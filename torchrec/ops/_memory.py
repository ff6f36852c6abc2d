"""What kernels may be given the address of: plain memory, of the dtype and size that they assume.

Every ``native.py`` asks here, right before it hands an address over. What kernels assume of the numbers themselves they
check where they read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, is_grad_enabled

from torchrec.ops._private import guard_of

T = TypeVar("T")
# Lists that are remembered at a time.
_MOST_KNOWN = 256
_STRIDED = frozenset((torch.strided,))
_get_layout = attrgetter("layout")
# An address that nobody reads; 0 stands for no tensor.
_EMPTY = 1

Memory = tuple[str, Tensor | None, int, torch.dtype]
"""A name, a tensor, and what it should hold: how many elements of which dtype."""


class Known(Generic[T]):
    """What was found of lists of tensors that come again and again, as weights do, while they stay as they were.

    To ask them all anew takes a pass over the list a question; to see that none has changed takes one. What is found
    where gradients are recorded holds only there, and the other way round.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, bool], tuple[Any, T]] = {}

    def get(self, name: object, tensors: Sequence[Tensor]) -> T | None:
        """Return what was found of a list, None if it or a tensor of it is another now.

        Args:
            name: any object that comes with the list: it tells lists apart quickly, and nothing hangs on it.
            tensors: the list; what is known of it is that of tensors just like these.
        """
        known = self._found.get((id(name), len(tensors), is_grad_enabled()))
        return known[1] if known is not None and known[0](*tensors) else None

    def put(self, name: object, tensors: Sequence[Tensor], found: T) -> T:
        """Remember what was found of a list of tensors, in place of what was of this name; return it."""
        if len(set(map(id, tensors))) < len(tensors):
            return found  # no guard holds where a tensor comes twice
        if not _STRIDED.issuperset(map(_get_layout, tensors)):
            return found  # nor is there one of others
        if len(self._found) >= _MOST_KNOWN:
            self._found.clear()
        self._found[id(name), len(tensors), is_grad_enabled()] = guard_of(tensors), found
        return found


def is_wide(name: str, integers: Tensor) -> bool:
    """Return whether integers are int64, as kernels are told; others than int32 would be read as what they are not."""
    dtype = integers.dtype
    if dtype is not torch.int64 and dtype is not torch.int32:
        raise TypeError(f"`{name}` should be int32 or int64. Received {dtype}.")
    return dtype is torch.int64


def require_integers(name: str, tensor: Tensor) -> None:
    """Refuse what is no row of int32 or int64."""
    dtype = tensor.dtype
    if (dtype is not torch.int64 and dtype is not torch.int32) or tensor.dim() != 1:
        raise TypeError(
            f"`{name}` should be a one-dimensional int32 or int64 tensor. "
            f"Received {tensor.dim()} dimensions of {dtype}."
        )


def addresses_of(*tensors: Memory) -> list[int]:
    """Return where tensors begin that are plain memory for so many elements of a dtype, one behind the other.

    0 stands for a tensor that is not there.

    Raises:
        ValueError: one is something else.
    """
    return [
        0 if tensor is None else address_of(name, tensor, count, dtype)
        for name, tensor, count, dtype in tensors
    ]


def address_of(name: str, tensor: Tensor, count: int, dtype: torch.dtype) -> int:
    """Return where a tensor begins that is plain memory for so many elements of a dtype, or refuse it.

    Only the lazy negative is asked about: a conjugate is of no dtype that kernels know, and zeros of autograd have no
    address.
    """
    if not (
        tensor.dtype is dtype
        and tensor.dim() == 1
        and tensor.numel() == count
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    ):
        raise ValueError(
            f"`{name}` should be {count} contiguous elements of {dtype} on the CPU. "
            f"Received {list(tensor.shape)} of {tensor.dtype} on {tensor.device}."
        )
    return tensor.data_ptr() or no_address(name, tensor)


def no_address(name: str, tensor: Tensor) -> int:
    """Return what stands for the address of a tensor that has none: it has no elements, or is refused."""
    if tensor.numel():
        raise ValueError(f"`{name}` should have memory. Received a tensor whose storage is empty.")
    return _EMPTY
