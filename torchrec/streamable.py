"""Interfaces of what a pipeline moves between devices and streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import torch

Self = TypeVar("Self", bound="Pipelineable")


class Multistreamable(ABC):
    """An object whose tensors may be used on another stream than the one they were made on."""

    @abstractmethod
    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every tensor alive until the work queued on ``stream`` is done.

        See ``torch.Tensor.record_stream``.
        """


class Pipelineable(Multistreamable):
    """An object that a training pipeline can copy to a device ahead of its use."""

    @abstractmethod
    def to(self: Self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return this object with its tensors on ``device``.

        Args:
            device: target device.
            non_blocking: copy without waiting where memory is pinned. Default False.
        """
