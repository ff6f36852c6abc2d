"""What the packed tensors use of PyTorch's private names: how a subclass is wrapped, and operators that it meets."""

from __future__ import annotations

import torch

_aten = torch.ops.aten

make_wrapper_subclass = torch.Tensor._make_wrapper_subclass
# What `to`, `pin_memory` and `view` are by the time that a subclass sees them.
TO_COPY = _aten._to_copy.default
PIN_MEMORY = _aten._pin_memory.default
UNSAFE_VIEW = _aten._unsafe_view.default
