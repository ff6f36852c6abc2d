"""What is done when a backward pass is over: in one place, as PyTorch has no public name for it."""

from __future__ import annotations

from torchrec.optim._private import at_end_of_backward_pass, backward_pass_number

__all__ = ["at_end_of_backward_pass", "backward_pass_number"]
