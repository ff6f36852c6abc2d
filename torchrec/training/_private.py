"""What training uses of PyTorch's private names."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def unsaved_buffers_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of a module itself that its ``state_dict`` leaves out."""
    for name, buffer in module.named_buffers(recurse=False):
        if name in module._non_persistent_buffers_set:
            yield name, buffer
