"""Private names of PyTorch that quantised tables need; ``tests/quant/test_private.py`` holds what each should do."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["buffers_by_name", "modules_by_name"]


def buffers_by_name(module: nn.Module) -> dict[str, Tensor]:
    """Return the dictionary in which a module keeps its own buffers: what is read faster."""
    return module._buffers  # type: ignore[return-value]


def modules_by_name(module: nn.Module) -> dict[str, Any]:
    """Return the dictionary in which a module keeps its own modules: as attributes they take 0.7 microseconds each."""
    return module._modules
