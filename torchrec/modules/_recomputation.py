"""Whether a forward pass is one that runs a second time."""

from __future__ import annotations

import torch
from torch.compiler import is_compiling

_backward_pass = (
    torch._C._current_graph_task_id
)  # private, but what torch.utils.checkpoint asks too


def is_recomputation() -> bool:
    """Say whether this forward pass runs inside a backward pass.

    Activation checkpointing drops what a forward pass computed, and runs it again when its backward
    pass needs it; reversible layers do the same. Only the first pass is news: whoever counts ids or
    learns from them should pass over the second.

    Returns:
        True inside a backward pass of this thread, whichever way it was started. Always False while
        ``torch.compile`` traces, whose own recomputation never comes back to Python.
    """
    return not is_compiling() and _backward_pass() != -1
