"""Questions about tracing, and facts about sizes that a tracer cannot find out by itself.

Outside of tracing the facts are taken on trust, as in the API: they cost nothing in a training step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.pt2._private import guard_or_false, guard_or_true, state

__all__ = [
    "get_use_torchdynamo_compiling_path",
    "is_non_strict_exporting",
    "is_pt2_compiling",
    "is_torchdynamo_compiling",
    "pt2_check_size_nonzero",
    "pt2_checks_all_is_size",
    "pt2_checks_tensor_slice",
    "pt2_guard_or_false",
    "pt2_guard_or_true",
    "set_use_torchdynamo_compiling_path",
]

# What set_use_torchdynamo_compiling_path said last. The API has it for the process.
_use_torchdynamo_compiling_path = False


def set_use_torchdynamo_compiling_path(val: bool) -> None:
    """Have code that asks `is_torchdynamo_compiling` take its branch for tracing, traced or not.

    To try that branch without compiling; whoever sets it sets it back.

    Args:
        val: whether to.

    Example:
        >>> set_use_torchdynamo_compiling_path(True)
        >>> is_torchdynamo_compiling()
        True
        >>> set_use_torchdynamo_compiling_path(False)
    """
    global _use_torchdynamo_compiling_path
    _use_torchdynamo_compiling_path = val


def get_use_torchdynamo_compiling_path() -> bool:
    """Return what `set_use_torchdynamo_compiling_path` said last; at first False."""
    return _use_torchdynamo_compiling_path


def is_torchdynamo_compiling() -> bool:
    """Say whether `torch.compile` traces this code, or strict `torch.export` does.

    Example:
        >>> is_torchdynamo_compiling()
        False
    """
    return _use_torchdynamo_compiling_path or torch.compiler.is_dynamo_compiling()


def is_non_strict_exporting() -> bool:
    """Say whether `torch.export` runs this code with ``strict=False``, its default."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def is_pt2_compiling() -> bool:
    """Say whether PyTorch compiles or exports this code, in either way."""
    return is_torchdynamo_compiling() or torch.compiler.is_compiling()


def pt2_checks_tensor_slice(
    tensor: Tensor, start_offset: int, end_offset: int, dim: int = 0
) -> None:
    """Tell the tracer that ``start_offset:end_offset`` is a slice of a tensor.

    Args:
        tensor: what is going to be sliced.
        start_offset: first position.
        end_offset: the one behind the last.
        dim: the dimension. Default 0.

    Raises:
        RuntimeError: while tracing, if it can be seen to be none.
    """
    if not is_pt2_compiling():
        return
    size = tensor.size(dim)
    state(start_offset >= 0)
    state(start_offset <= end_offset)
    state(end_offset <= size)


def pt2_checks_all_is_size(x: list[int]) -> list[int]:
    """Tell the tracer that all numbers are sizes, so not negative.

    Args:
        x: the numbers.

    Returns:
        The same list.

    Example:
        >>> pt2_checks_all_is_size([2, 0])
        [2, 0]
    """
    if is_pt2_compiling():
        for size in x:
            state(size >= 0)
    return x


def pt2_check_size_nonzero(x: Tensor) -> Tensor:
    """Tell the tracer that a tensor has elements.

    Args:
        x: the tensor.

    Returns:
        The same tensor.
    """
    if is_pt2_compiling():
        for size in x.shape:
            state(size > 0)
    return x


def pt2_guard_or_true(x: bool) -> bool:
    """Return a condition on sizes; True where the tracer does not know it.

    Args:
        x: the condition, a bool or, while tracing, a `torch.SymBool`.

    Example:
        >>> pt2_guard_or_true(1 > 2)
        False
    """
    return guard_or_true(x) if is_pt2_compiling() else x


def pt2_guard_or_false(x: bool) -> bool:
    """Return a condition on sizes; False where the tracer does not know it.

    Args:
        x: the condition, a bool or, while tracing, a `torch.SymBool`.

    Example:
        >>> pt2_guard_or_false(1 < 2)
        True
    """
    return guard_or_false(x) if is_pt2_compiling() else x
