"""Whether a native kernel may be called straight away, past the dispatcher.

A trip through the dispatcher to a kernel registered from Python costs 3 µs, more than the small kernels take. It may be
left out when nobody is there to see it: no tracing, no dispatch mode, plain CPU tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops._library import native

_modes = torch._C._len_torch_dispatch_stack


def is_readable(tensor: Tensor) -> bool:
    """Say whether the numbers of this tensor can be looked at: at once, and without anybody taking note of it."""
    return type(tensor) is Tensor and tensor.is_cpu and not is_compiling() and _modes() == 0


def is_plain(tensor: Tensor) -> bool:
    """Say whether the native library may read this tensor by its address."""
    return native is not None and is_readable(tensor)


def is_plain_data(tensor: Tensor) -> bool:
    """Say whether, moreover, autograd need not know of it."""
    return is_plain(tensor) and not (tensor.requires_grad and torch.is_grad_enabled())
