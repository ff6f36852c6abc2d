"""What this package uses of PyTorch that PyTorch keeps to itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_current_pass = torch._C._current_graph_task_id


def backward_pass_number() -> int:
    """Return the number of the backward pass that this thread is in, -1 outside of any."""
    return _current_pass()


def at_end_of_backward_pass(callback: Callable[[], None]) -> None:
    """Have the backward pass under way call ``callback`` when all gradients are there.

    The pass owns the callback: it calls those that were queued first first, an error in one ends
    ``backward()`` as an error in the pass does, and if the pass itself fails, none is called.

    Args:
        callback: takes no argument.

    Raises:
        RuntimeError: outside of a backward pass.
    """
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def row_gradients(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and values of a sparse gradient as they came, duplicates and all."""
    return grad._indices()[0], grad._values()


def has_torchs_optimizer_in_backward(param: Tensor) -> bool:
    """Say whether PyTorch's own function of that kind has given a parameter to an optimizer."""
    return hasattr(param, "_in_backward_optimizers")
