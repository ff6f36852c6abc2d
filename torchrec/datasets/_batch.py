"""A batch of samples: what data sets make and models for training take."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclasses.dataclass
class Batch(Pipelineable):
    """Samples with dense features, sparse features and labels.

    It is a pytree of its three parts, so ``torch.compile``, ``torch.export`` and everything that
    maps over tensors take it as an input.

    Args:
        dense_features: ``(B, number of dense features)``, floating.
        sparse_features: ids by feature, over the same B samples.
        labels: ``(B,)``.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> from torchrec.datasets.utils import Batch
        >>> batch = Batch(
        ...     dense_features=torch.zeros(2, 13),
        ...     sparse_features=KeyedJaggedTensor.from_lists({"f1": [[1, 2], []]}),
        ...     labels=torch.tensor([0, 1]),
        ... )
        >>> batch.to(torch.device("cpu")).labels
        tensor([0, 1])
    """

    dense_features: Tensor
    sparse_features: KeyedJaggedTensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return this batch with its tensors on ``device``.

        Args:
            device: target device.
            non_blocking: copy without waiting where memory is pinned. Default False.
        """
        return Batch(
            dense_features=self.dense_features.to(device, non_blocking=non_blocking),
            sparse_features=self.sparse_features.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of all parts alive until the work queued on ``stream`` is done."""
        self.dense_features.record_stream(stream)
        self.sparse_features.record_stream(stream)
        self.labels.record_stream(stream)

    def pin_memory(self) -> Batch:
        """Return this batch in page-locked memory, which copies to an accelerator without waiting."""
        return Batch(
            dense_features=self.dense_features.pin_memory(),
            sparse_features=self.sparse_features.pin_memory(),
            labels=self.labels.pin_memory(),
        )


Batch.__module__ = "torchrec.datasets.utils"

_PARTS = [field.name for field in dataclasses.fields(Batch)]


def _flatten(batch: Batch) -> tuple[list[Any], None]:
    return [getattr(batch, name) for name in _PARTS], None


def _flatten_with_keys(batch: Batch) -> tuple[list[tuple[Any, Any]], None]:
    return [(pytree.GetAttrKey(name), getattr(batch, name)) for name in _PARTS], None


pytree.register_pytree_node(
    Batch,
    _flatten,
    lambda parts, _: Batch(*parts),
    serialized_type_name="torchrec.Batch",
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.fx._pytree.register_pytree_flatten_spec(Batch, lambda batch, _: _flatten(batch)[0])
torch.serialization.add_safe_globals([Batch])
