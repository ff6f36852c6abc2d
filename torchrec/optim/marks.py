"""Optimizers that PyTorch's own `_apply_optimizer_in_backward` has given parameters: it has no public name for them."""

from __future__ import annotations

from torchrec.optim._private import (
    has_torchs_optimizer_in_backward,
    pass_on_torchs_optimizer_in_backward,
)

__all__ = ["has_torchs_optimizer_in_backward", "pass_on_torchs_optimizer_in_backward"]
