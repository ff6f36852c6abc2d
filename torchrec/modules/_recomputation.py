"""Whether a forward pass is one that runs a second time, or may come to."""

from __future__ import annotations

import torch
from torch.compiler import is_compiling

from torchrec.modules._private import saving_hooks
from torchrec.optim.backward_pass import backward_pass_number


def is_recomputation() -> bool:
    """Say whether this forward pass runs inside a backward pass.

    Activation checkpointing drops what a forward pass computed, and runs it again when its backward
    pass needs it; reversible layers do the same. Only the first pass is news: whoever counts ids or
    learns from them should pass over the second.

    Returns:
        True inside a backward pass of this thread, whichever way it was started. Always False while
        ``torch.compile`` traces, whose own recomputation never comes back to Python.
    """
    return not is_compiling() and backward_pass_number() != -1


def may_be_recomputed() -> bool:
    """Say whether this forward pass may run again in the backward pass.

    Checkpointing either runs it without gradients, or takes away what autograd saves; so may others,
    for reasons of their own. Where neither is so, what the backward pass needs is kept.
    """
    return not torch.is_grad_enabled() or saving_hooks(False) is not None
