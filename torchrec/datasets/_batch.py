"""A batch of samples: what data sets make and models for training take."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchrec.ops.jagged import keyed_index_select, sum_groups
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

    def index_select(self, indices: Tensor) -> Batch:
        """Take samples by position, as ``torch.index_select`` takes rows.

        Args:
            indices: ``(M,)`` positions in ``[0, B)``, int32 or int64; one may be taken several times.

        Raises:
            IndexError: a position is out of range.
            ValueError: the sparse features have batches of different sizes.

        Example:
            >>> from torchrec import KeyedJaggedTensor
            >>> from torchrec.datasets.utils import Batch
            >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1, 2], [], [3]]})
            >>> batch = Batch(torch.zeros(3, 13), ids, torch.tensor([0, 1, 1]))
            >>> batch.index_select(torch.tensor([2, 0])).sparse_features.to_lists()
            {'f1': [[3], [1, 2]]}
        """
        return self.select_batches(indices, [indices.numel()])[0]

    def select_batches(self, indices: Tensor, sizes: list[int]) -> list[Batch]:
        """Take samples by position and cut them to batches: much faster than to select each by itself.

        The batches share memory: as long as there is one of them, all of it is kept.

        Args:
            indices: ``(M,)`` positions in ``[0, B)``, int32 or int64; one may be taken several times.
            sizes: number of samples of each batch, summing to M.

        Raises:
            IndexError: a position is out of range.
            ValueError: the sparse features have batches of different sizes, or sizes do not sum to M.

        Example:
            >>> from torchrec import KeyedJaggedTensor
            >>> from torchrec.datasets.utils import Batch
            >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1, 2], [], [3]]})
            >>> batch = Batch(torch.zeros(3, 13), ids, torch.tensor([0, 1, 1]))
            >>> [part.labels for part in batch.select_batches(torch.tensor([2, 0, 1]), [2, 1])]
            [tensor([1, 0]), tensor([1])]
        """
        features = _select_batches(self.sparse_features, indices, sizes)
        dense = self.dense_features.index_select(0, indices).split(sizes)
        labels = self.labels.index_select(0, indices).split(sizes)
        return [Batch(*parts) for parts in zip(dense, features, labels, strict=True)]


def _select_batches(
    features: KeyedJaggedTensor, samples: Tensor, sizes: list[int]
) -> list[KeyedJaggedTensor]:
    if features.variable_stride_per_key():
        raise ValueError(
            "Samples should be selected from batches of one size for all keys. "
            f"Received the sizes {features.stride_per_key()}."
        )
    keys = features.keys()
    weighted = features.weights_or_none()
    values, weights, lengths = keyed_index_select(
        features.values(),
        weighted,
        features.lengths().view(len(keys), features.stride()),
        samples,
        sizes,
    )
    bags = [len(keys) * size for size in sizes]
    totals = sum_groups(lengths, bags)
    parts = zip(
        values.split(totals),
        [None] * len(sizes) if weights is None else weights.split(totals),
        lengths.split(bags),
        sizes,
        strict=True,
    )
    return [KeyedJaggedTensor(keys, v, w, n, stride=size) for v, w, n, size in parts]


def join(batches: list[Batch]) -> Batch:
    """Join the samples of batches with the same features, one batch after another.

    Args:
        batches: at least one; the lengths of each have one stride for all keys.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> one = Batch(torch.zeros(1, 2), KeyedJaggedTensor.from_lists({"a": [[5, 6]]}), torch.ones(1))
        >>> join([one, one]).sparse_features.to_lists()
        {'a': [[5, 6], [5, 6]]}
    """
    if len(batches) == 1:
        return batches[0]
    features = [batch.sparse_features for batch in batches]
    keys = features[0].keys()
    weights = [part.weights_or_none() for part in features]
    joined = KeyedJaggedTensor(
        keys,
        _join_by_key([(part.values(), part.length_per_key()) for part in features]),
        None
        if weights[0] is None
        else _join_by_key([(part.weights(), part.length_per_key()) for part in features]),
        _join_by_key([(part.lengths(), part.stride_per_key()) for part in features]),
        stride=sum(part.stride() for part in features),
    )
    return Batch(
        dense_features=torch.cat([batch.dense_features for batch in batches]),
        sparse_features=joined,
        labels=torch.cat([batch.labels for batch in batches]),
    )


def _join_by_key(parts: list[tuple[Tensor, list[int]]]) -> Tensor:
    """Join tensors that hold a run for each key, so that the runs of a key come one after another."""
    runs = [tensor.split(lengths) for tensor, lengths in parts]
    ordered = [run for of_key in zip(*runs, strict=True) for run in of_key]
    return torch.cat(ordered) if ordered else parts[0][0]  # no key, no run


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
