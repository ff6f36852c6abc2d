"""A batch of samples: what data sets make and models for training take."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any, TypedDict

import torch
from torch import Tensor

from torchrec.datasets._private import register_pytree
from torchrec.ops.jagged import keyed_index_select, sum_groups
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

LABELS = "labels"  # the target that `Batch.labels` is short for


class _BySample(TypedDict):
    """What a batch has besides features, an entry a sample."""

    targets: dict[str, Tensor]
    weights: Tensor | None
    groups: dict[str, Tensor]


@dataclasses.dataclass(init=False)
class Batch(Pipelineable):
    """Samples: dense features, sparse features, and what is to be predicted of them.

    A batch with one target is ``Batch(dense_features, sparse_features, labels)``: ``labels`` is the
    target of that name for short. Several tasks have a target each, by name.

    It is a pytree of its tensors, so ``torch.compile``, ``torch.export`` and everything that maps
    over tensors take it as an input.

    Args:
        dense_features: ``(B, number of dense features)``, floating.
        sparse_features: ids by feature, over the same B samples.
        labels: ``(B,)``; short for ``targets={"labels": labels}``. Default: no such target.
        targets: ``(B,)`` each, by name. Default: only ``labels``.
        weights: ``(B,)``, how much each sample counts in losses and metrics. Default: 1 each.
        groups: ``(B,)`` ids each of what the samples belong to, such as a user, a query or a session,
            by name. They go wherever the samples go. Default: none.

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
        >>> targets = {"click": torch.tensor([0, 1]), "seconds": torch.tensor([0.0, 12.5])}
        >>> Batch(batch.dense_features, batch.sparse_features, targets=targets).targets["seconds"]
        tensor([ 0.0000, 12.5000])
    """

    dense_features: Tensor
    sparse_features: KeyedJaggedTensor
    targets: dict[str, Tensor]
    weights: Tensor | None
    groups: dict[str, Tensor]

    def __init__(
        self,
        dense_features: Tensor,
        sparse_features: KeyedJaggedTensor,
        labels: Tensor | None = None,
        targets: Mapping[str, Tensor] | None = None,
        weights: Tensor | None = None,
        groups: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.dense_features = dense_features
        self.sparse_features = sparse_features
        self.targets = {} if targets is None else dict(targets)
        if labels is not None:
            self.targets[LABELS] = labels
        self.weights = weights
        self.groups = {} if groups is None else dict(groups)

    @property
    def labels(self) -> Tensor:
        """The target ``"labels"``, ``(B,)``.

        Raises:
            ValueError: the batch has only targets of other names.
        """
        if LABELS not in self.targets:
            raise ValueError(
                "`labels` should be asked for of a batch with a target of that name. Received the "
                f"targets {sorted(self.targets)}: take one from `targets`."
            )
        return self.targets[LABELS]

    @labels.setter
    def labels(self, labels: Tensor) -> None:
        self.targets[LABELS] = labels

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return this batch with its tensors on ``device``.

        Args:
            device: target device.
            non_blocking: copy without waiting where memory is pinned. Default False.
        """
        return Batch(
            self.dense_features.to(device, non_blocking=non_blocking),
            self.sparse_features.to(device, non_blocking=non_blocking),
            **self._by_sample(lambda part: part.to(device, non_blocking=non_blocking)),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of all parts alive until the work queued on ``stream`` is done."""
        self.dense_features.record_stream(stream)
        self.sparse_features.record_stream(stream)
        for _, part in _tensors_by_sample(self):
            part.record_stream(stream)

    def pin_memory(self) -> Batch:
        """Return this batch in page-locked memory, which copies to an accelerator without waiting."""
        return Batch(
            self.dense_features.pin_memory(),
            self.sparse_features.pin_memory(),
            **self._by_sample(lambda part: part.pin_memory()),
        )

    def _by_sample(self, function: Callable[[Tensor], Tensor]) -> _BySample:
        """Apply a function to each tensor that has an entry a sample, but the features."""
        return {
            "targets": {name: function(target) for name, target in self.targets.items()},
            "weights": None if self.weights is None else function(self.weights),
            "groups": {name: function(group) for name, group in self.groups.items()},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Batches that were saved when labels were all there was have no other parts.
        self.__init__(**state)  # type: ignore[misc]

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
        whole = Batch(
            self.dense_features.index_select(0, indices),
            self.sparse_features,  # not looked at: those of each batch are cut already
            **self._by_sample(lambda part: part.index_select(0, indices)),
        )
        batches = []
        for part, size, end in zip(features, sizes, itertools.accumulate(sizes), strict=True):
            cut = itemgetter(slice(end - size, end))
            batches.append(Batch(cut(whole.dense_features), part, **whole._by_sample(cut)))
        return batches


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

    Raises:
        ValueError: if they have different targets or groups, or only some have weights.

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
        torch.cat([batch.dense_features for batch in batches]),
        joined,
        **_join_by_sample(batches),
    )


def _join_by_sample(batches: list[Batch]) -> _BySample:
    named = [dict(_tensors_by_sample(batch)) for batch in batches]
    for other in named[1:]:
        if other.keys() != named[0].keys():
            raise ValueError(
                "Batches to join should have the same targets, weights and groups. Received "
                f"{list(named[0])} and {list(other)}."
            )
    whole = {path: torch.cat([one[path] for one in named]) for path in named[0]}
    return {
        "targets": {name: whole[f"targets.{name}"] for name in batches[0].targets},
        "weights": whole.get("weights"),
        "groups": {name: whole[f"groups.{name}"] for name in batches[0].groups},
    }


def _tensors_by_sample(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    for kind, parts in (("targets", batch.targets), ("groups", batch.groups)):
        for name, part in parts.items():
            yield f"{kind}.{name}", part
    if batch.weights is not None:
        yield "weights", batch.weights


def _join_by_key(parts: list[tuple[Tensor, list[int]]]) -> Tensor:
    """Join tensors that hold a run for each key, so that the runs of a key come one after another."""
    runs = [tensor.split(lengths) for tensor, lengths in parts]
    ordered = [run for of_key in zip(*runs, strict=True) for run in of_key]
    return torch.cat(ordered) if ordered else parts[0][0]  # no key, no run


Batch.__module__ = "torchrec.datasets.utils"

_PARTS = [field.name for field in dataclasses.fields(Batch)]


def _parts(batch: Batch) -> dict[str, Any]:
    """Return the parts that are there, by name."""
    parts = {name: getattr(batch, name) for name in _PARTS}
    absent = {"weights": batch.weights is None, "groups": not batch.groups}
    return {name: part for name, part in parts.items() if not absent.get(name)}


register_pytree(Batch, _parts)
torch.serialization.add_safe_globals([Batch])
