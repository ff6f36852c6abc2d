"""Private names of PyTorch that tracing needs: what a new version may break is in this file alone.

``tests/pt2/test_private.py`` holds what each should do. The compiler is imported only where it is at work.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["guard_or_false", "guard_or_true", "let_vary", "state"]


def state(condition: bool) -> None:
    """Raise if a condition on sizes is false; a tracer that cannot see it takes it for true from there on."""
    torch._check(condition)


def guard_or_false(condition: bool) -> bool:
    """Return a condition on sizes while tracing; False where it is not known."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false as guard

    return guard(condition)


def guard_or_true(condition: bool) -> bool:
    """Return a condition on sizes while tracing; True where it is not known."""
    from torch.fx.experimental.symbolic_shapes import guard_or_true as guard

    return guard(condition)


def let_vary(tensor: Tensor) -> None:
    """Have ``torch.compile`` take the first size of a tensor for one that may be any, 0 and 1 too."""
    from torch._dynamo.decorators import mark_unbacked

    mark_unbacked(tensor, 0)
