"""What sharded collections exchange, for programs that exchange it themselves: ids out, vectors back.

Gradients that go back are divided by the number of ranks, as those of sharded collections are. Vectors are there
when a module returns; features, and tensors in parts, are on their way until they are waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from torchrec.distributed._awaitable import Awaitable, NoWait
from torchrec.distributed._codecs import QuantizedCommCodecs
from torchrec.distributed._dist_jagged import (
    JaggedTensorAllToAll,
    KJTAllToAll,
    KJTAllToAllSplitsAwaitable,
    KJTAllToAllTensorsAwaitable,
    KJTOneToAll,
    SplitsAllToAllAwaitable,
    TensorAllToAll,
    TensorAllToAllSplitsAwaitable,
    TensorAllToAllValuesAwaitable,
    TensorValuesAllToAll,
)
from torchrec.distributed._kinds import CommOp
from torchrec.distributed.coding import Coding, Vectors, codings_of
from torchrec.distributed.wire import Wire

__all__ = [
    "EmbeddingsAllToOne",
    "EmbeddingsAllToOneReduce",
    "JaggedTensorAllToAll",
    "KJTAllToAll",
    "KJTAllToAllSplitsAwaitable",
    "KJTAllToAllTensorsAwaitable",
    "KJTOneToAll",
    "PooledEmbeddingsAllGather",
    "PooledEmbeddingsAllToAll",
    "PooledEmbeddingsAwaitable",
    "PooledEmbeddingsReduceScatter",
    "SeqEmbeddingsAllToOne",
    "SequenceEmbeddingsAllToAll",
    "SequenceEmbeddingsAwaitable",
    "SplitsAllToAllAwaitable",
    "TensorAllToAll",
    "TensorAllToAllSplitsAwaitable",
    "TensorAllToAllValuesAwaitable",
    "TensorValuesAllToAll",
    "VariableBatchPooledEmbeddingsAllToAll",
    "VariableBatchPooledEmbeddingsReduceScatter",
]

_Message = Sequence[Vectors]


class _AllToAll(torch.autograd.Function):
    """Send vectors; in the backward pass, their gradients the other way, divided by the number of ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        wire: Wire,
        codings: tuple[Coding, Coding],
        sent: Sequence[_Message],
        expected: Sequence[_Message],
        vectors: Tensor,
    ) -> Tensor:
        ctx.wire, ctx.coding, ctx.sent, ctx.expected = wire, codings[1], sent, expected
        return codings[0].swap(vectors, sent, expected, wire.swap, wire.agree)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wire = ctx.wire
        mean = grad / wire.world_size
        back = ctx.coding.swap(mean, ctx.expected, ctx.sent, wire.swap, wire.agree)
        return None, None, None, None, back


class _Exchange:
    """Exchanges vectors between the ranks of a group.

    Args:
        pg: the ranks.
        op: what the vectors travel as.
        codecs: how they are written. Default: as they are.
    """

    def __init__(self, pg: ProcessGroup, op: CommOp, codecs: QuantizedCommCodecs | None) -> None:
        self.wire, self._op = Wire(pg), op
        self._codings = codings_of(None if codecs is None else {op.name: codecs})

    def vectors(self, count: int, width: int) -> Vectors:
        """Describe so many vectors of a width."""
        return Vectors(count, [width], [self._op])

    def swap(
        self, vectors: Tensor, sent: Sequence[_Message], expected: Sequence[_Message]
    ) -> Tensor:
        """Send each rank its vectors, and return what has come, both flat."""
        size = sum(part.size for message in sent for part in message)
        if vectors.numel() != size:
            raise ValueError(
                f"Vectors should have as many elements as are sent to all ranks, {size}. "
                f"Received shape {tuple(vectors.shape)}."
            )
        found: Tensor = _AllToAll.apply(  # type: ignore[no-untyped-call]
            self.wire, self._codings, sent, expected, vectors.reshape(-1)
        )
        return found

    def __deepcopy__(self, _: object) -> _Exchange:
        """Return itself: process groups cannot be copied."""
        return self


class PooledEmbeddingsAwaitable(Awaitable[Tensor]):
    """Pooled vectors, when they are waited for.

    Args:
        tensor_awaitable: gives them.
    """

    def __init__(self, tensor_awaitable: Awaitable[Tensor]) -> None:
        super().__init__()
        self._tensor_awaitable = tensor_awaitable

    def _wait_impl(self) -> Tensor:
        return self._tensor_awaitable.wait()


class SequenceEmbeddingsAwaitable(Awaitable[Tensor]):
    """Vectors of ids, when they are waited for.

    Args:
        tensor_awaitable: gives them.
        unbucketize_permute_tensor: which of them is each that is returned. Default: all, in order.
        embedding_dim: columns of a vector.
    """

    def __init__(
        self,
        tensor_awaitable: Awaitable[Tensor],
        unbucketize_permute_tensor: Tensor | None,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self._tensor_awaitable = tensor_awaitable
        self._order, self._dim = unbucketize_permute_tensor, embedding_dim

    def _wait_impl(self) -> Tensor:
        found = self._tensor_awaitable.wait().view(-1, self._dim)
        return found if self._order is None else found.index_select(0, self._order)


def _pooled(
    vectors: Tensor, callbacks: Sequence[Callable[[Tensor], Tensor]] = ()
) -> PooledEmbeddingsAwaitable:
    awaitable = PooledEmbeddingsAwaitable(NoWait(vectors))
    awaitable.callbacks.extend(callbacks)
    return awaitable


class PooledEmbeddingsAllToAll(nn.Module):
    """Sends each rank its samples of this rank's columns, and puts the columns of all ranks side by side.

    Args:
        pg: the ranks.
        dim_sum_per_rank: columns of each.
        device: no effect: vectors stay where they are.
        callbacks: what the output goes through. Default: nothing.
        codecs: how vectors are written on the way. Default: as they are.
    """

    def __init__(
        self,
        pg: ProcessGroup,
        dim_sum_per_rank: list[int],
        device: torch.device | None = None,
        callbacks: list[Callable[[Tensor], Tensor]] | None = None,
        codecs: QuantizedCommCodecs | None = None,
    ) -> None:
        super().__init__()
        self._exchange = _Exchange(pg, CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, codecs)
        _check_one_a_rank("dim_sum_per_rank", dim_sum_per_rank, self._exchange.wire)
        self._dims, self._callbacks = dim_sum_per_rank, list(callbacks or [])

    @property
    def callbacks(self) -> list[Callable[[Tensor], Tensor]]:
        """What the output goes through."""
        return self._callbacks

    def forward(
        self, local_embs: Tensor, batch_size_per_rank: list[int] | None = None
    ) -> PooledEmbeddingsAwaitable:
        """Send vectors.

        Args:
            local_embs: of all samples, those of the first rank first, ``(sum of B, D of this rank)``.
            batch_size_per_rank: samples of each rank. Default: equally many.

        Returns:
            those of this rank's samples, ``(B, sum of D)``.
        """
        exchange, wire = self._exchange, self._exchange.wire
        batches = _batches(local_embs, batch_size_per_rank, wire)
        mine, dim = batches[wire.rank], self._dims[wire.rank]
        sent = [[exchange.vectors(batch, dim)] for batch in batches]
        expected = [[exchange.vectors(mine, width)] for width in self._dims]
        found = exchange.swap(local_embs, sent, expected)
        parts = found.split([mine * width for width in self._dims])
        columns = [part.view(mine, width) for part, width in zip(parts, self._dims, strict=True)]
        return _pooled(torch.cat(columns, 1), self._callbacks)


class PooledEmbeddingsReduceScatter(nn.Module):
    """Sends each rank its samples, and adds up what comes for those of this rank, in the order of ranks.

    Args:
        pg: the ranks.
        codecs: how vectors are written on the way. Default: as they are.
    """

    def __init__(self, pg: ProcessGroup, codecs: QuantizedCommCodecs | None = None) -> None:
        super().__init__()
        self._exchange = _Exchange(pg, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER, codecs)

    def forward(
        self, local_embs: Tensor, input_splits: list[int] | None = None
    ) -> PooledEmbeddingsAwaitable:
        """Send vectors.

        Args:
            local_embs: of all samples, those of the first rank first, ``(sum of B, D)``.
            input_splits: samples of each rank. Default: equally many.

        Returns:
            the sums of this rank's samples, ``(B, D)``.
        """
        exchange, wire = self._exchange, self._exchange.wire
        batches, dim = _batches(local_embs, input_splits, wire), local_embs.shape[1]
        sent = [[exchange.vectors(batch, dim)] for batch in batches]
        found = exchange.swap(local_embs, sent, [sent[wire.rank]] * wire.world_size)
        return _pooled(found.view(wire.world_size, -1, dim).sum(0))


class PooledEmbeddingsAllGather(nn.Module):
    """Gives every rank the vectors of all, one rank's behind the other's.

    Args:
        pg: the ranks.
        codecs: how vectors are written on the way. Default: as they are.
    """

    def __init__(self, pg: ProcessGroup, codecs: QuantizedCommCodecs | None = None) -> None:
        super().__init__()
        self._exchange = _Exchange(pg, CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, codecs)

    def forward(self, local_emb: Tensor) -> PooledEmbeddingsAwaitable:
        """Send vectors.

        Args:
            local_emb: of this rank, ``(B, D)``; B may differ by rank.

        Returns:
            those of all ranks, ``(sum of B, D)``.
        """
        exchange, wire = self._exchange, self._exchange.wire
        dim, ranks = local_emb.shape[1], wire.world_size
        expected = [
            [exchange.vectors(batch, dim)]
            for batch in wire.states(len(local_emb), "PooledEmbeddingsAllGather")
        ]
        sent = [[exchange.vectors(len(local_emb), dim)]] * ranks
        return _pooled(exchange.swap(local_emb.repeat(ranks, 1), sent, expected).view(-1, dim))


class VariableBatchPooledEmbeddingsAllToAll(nn.Module):
    """As `PooledEmbeddingsAllToAll`, where each feature has as many samples as it needs.

    Args:
        pg: the ranks.
        emb_dim_per_rank_per_feature: columns of each feature that a rank pools, for each rank.
        device: no effect: vectors stay where they are.
        callbacks: what the output goes through. Default: nothing.
        codecs: how vectors are written on the way. Default: as they are.
    """

    def __init__(
        self,
        pg: ProcessGroup,
        emb_dim_per_rank_per_feature: list[list[int]],
        device: torch.device | None = None,
        callbacks: list[Callable[[Tensor], Tensor]] | None = None,
        codecs: QuantizedCommCodecs | None = None,
    ) -> None:
        super().__init__()
        self._exchange = _Exchange(pg, CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, codecs)
        _check_one_a_rank(
            "emb_dim_per_rank_per_feature", emb_dim_per_rank_per_feature, self._exchange.wire
        )
        self._dims, self._callbacks = emb_dim_per_rank_per_feature, list(callbacks or [])

    @property
    def callbacks(self) -> list[Callable[[Tensor], Tensor]]:
        """What the output goes through."""
        return self._callbacks

    def forward(
        self,
        local_embs: Tensor,
        batch_size_per_rank_per_feature: list[list[int]],
        batch_size_per_feature_pre_a2a: list[int],
    ) -> PooledEmbeddingsAwaitable:
        """Send vectors.

        Args:
            local_embs: flat: rank after rank, feature after feature that this rank pools, sample after sample.
            batch_size_per_rank_per_feature: samples of each of these features, for each rank.
            batch_size_per_feature_pre_a2a: samples of each feature of this rank's batch, those first that the first
                rank pools.

        Returns:
            those of this rank's samples, flat: feature after feature, sample after sample.
        """
        exchange, wire = self._exchange, self._exchange.wire
        _check_one_a_rank("batch_size_per_rank_per_feature", batch_size_per_rank_per_feature, wire)
        sent = [self._message(of, self._dims[wire.rank]) for of in batch_size_per_rank_per_feature]
        ends = accumulate((len(dims) for dims in self._dims), initial=0)
        expected = [
            self._message(batch_size_per_feature_pre_a2a[start:end], dims)
            for (start, end), dims in zip(pairwise(ends), self._dims, strict=True)
        ]
        return _pooled(exchange.swap(local_embs, sent, expected), self._callbacks)

    def _message(self, batches: Sequence[int], dims: Sequence[int]) -> _Message:
        return [self._exchange.vectors(*each) for each in zip(batches, dims, strict=True)]


class VariableBatchPooledEmbeddingsReduceScatter(nn.Module):
    """As `PooledEmbeddingsReduceScatter`, where each feature has as many samples as it needs.

    Args:
        pg: the ranks.
        codecs: how vectors are written on the way. Default: as they are.
    """

    def __init__(self, pg: ProcessGroup, codecs: QuantizedCommCodecs | None = None) -> None:
        super().__init__()
        self._exchange = _Exchange(pg, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER, codecs)

    def forward(
        self,
        local_embs: Tensor,
        batch_size_per_rank_per_feature: list[list[int]],
        embedding_dims: list[int],
    ) -> PooledEmbeddingsAwaitable:
        """Send vectors.

        Args:
            local_embs: flat: rank after rank, feature after feature, sample after sample.
            batch_size_per_rank_per_feature: samples of each feature, for each rank.
            embedding_dims: columns of each feature.

        Returns:
            the sums of this rank's samples, flat: feature after feature, sample after sample.
        """
        exchange, wire = self._exchange, self._exchange.wire
        _check_one_a_rank("batch_size_per_rank_per_feature", batch_size_per_rank_per_feature, wire)
        sent = [
            [exchange.vectors(*each) for each in zip(batches, embedding_dims, strict=True)]
            for batches in batch_size_per_rank_per_feature
        ]
        found = exchange.swap(local_embs, sent, [sent[wire.rank]] * wire.world_size)
        return _pooled(found.view(wire.world_size, -1).sum(0))


class SequenceEmbeddingsAllToAll(nn.Module):
    """Sends each rank the vectors of the ids that it has asked for.

    Args:
        pg: the ranks.
        features_per_rank: how many features each of them looks up.
        device: no effect: vectors stay where they are.
        codecs: how vectors are written on the way. Default: as they are.
    """

    def __init__(
        self,
        pg: ProcessGroup,
        features_per_rank: list[int],
        device: torch.device | None = None,
        codecs: QuantizedCommCodecs | None = None,
    ) -> None:
        super().__init__()
        self._exchange = _Exchange(pg, CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL, codecs)
        _check_one_a_rank("features_per_rank", features_per_rank, self._exchange.wire)
        self._num_features = features_per_rank[self._exchange.wire.rank]

    def forward(
        self,
        local_embs: Tensor,
        lengths: Tensor,
        input_splits: list[int],
        output_splits: list[int],
        unbucketize_permute_tensor: Tensor | None = None,
        batch_size_per_rank: list[int] | None = None,
        sparse_features_recat: Tensor | None = None,
    ) -> SequenceEmbeddingsAwaitable:
        """Send vectors.

        Args:
            local_embs: of the ids that came, feature after feature, rank after rank within one, as `KJTAllToAll`
                gives them, ``(N, D)``.
            lengths: of their bags, in this order.
            input_splits: how many ids this rank has sent to each.
            output_splits: how many have come from each.
            unbucketize_permute_tensor: which of the vectors that come is each that is returned. Default: all, in
                order.
            batch_size_per_rank: samples of each rank. Default: equally many.
            sparse_features_recat: which block that came, one rank's ids of one feature, stands in each place.
                Default: feature after feature, rank after rank.

        Returns:
            the vectors of this rank's ids: rank after rank, in the order in which they were sent.
        """
        exchange, dim = self._exchange, local_embs.shape[1]
        order = self._order(lengths, batch_size_per_rank, sparse_features_recat)
        sent = [[exchange.vectors(count, dim)] for count in output_splits]
        expected = [[exchange.vectors(count, dim)] for count in input_splits]
        found = exchange.swap(local_embs.index_select(0, order), sent, expected)
        return SequenceEmbeddingsAwaitable(NoWait(found), unbucketize_permute_tensor, dim)

    def _order(self, lengths: Tensor, batches: list[int] | None, recat: Tensor | None) -> Tensor:
        """Return where the vectors of ids are, in the order in which the ids came."""
        ranks, features = self._exchange.wire.world_size, self._num_features
        by_feature = torch.arange(ranks * features).view(ranks, features).T.flatten()
        blocks = by_feature if recat is None else recat.long()
        if batches is None:
            batches = [lengths.numel() // max(ranks * features, 1)] * ranks
        sizes = torch.tensor(batches).repeat_interleave(features)[blocks]
        if int(sizes.sum()) != lengths.numel():
            raise ValueError(
                f"`lengths` should have one number for each sample of {features} features, {int(sizes.sum())}. "
                f"Received {lengths.numel()}."
            )
        of = torch.arange(len(blocks)).repeat_interleave(sizes)
        counts = torch.zeros(len(blocks), dtype=torch.int64)
        counts.index_add_(0, of, lengths.flatten().long())
        starts = counts.cumsum(0) - counts
        came = blocks.argsort()  # the block that came first, then the second
        counts, starts = counts[came], starts[came]
        shift = starts - (counts.cumsum(0) - counts)
        return torch.arange(int(counts.sum())) + shift.repeat_interleave(counts)


class _AllToOne(nn.Module):
    """Brings what the devices of a host have computed to one of them.

    Args:
        device: where to.
        world_size: how many devices.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        super().__init__()
        self._device, self._world_size = device, world_size

    def set_device(self, device_str: str) -> None:
        """Say where to.

        Args:
            device_str: ``"cpu"``, say.
        """
        self._device = torch.device(device_str)

    def _here(self, tensors: list[Tensor]) -> list[Tensor]:
        if len(tensors) != self._world_size:
            raise ValueError(
                f"`tensors` should have one for each of {self._world_size} devices. Received {len(tensors)}."
            )
        return [tensor.to(self._device) for tensor in tensors]


class SeqEmbeddingsAllToOne(_AllToOne):
    """Brings vectors of ids to one device.

    Args:
        device: where to.
        world_size: how many devices they are on.
    """

    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the vectors of each device."""
        return self._here(tensors)


class EmbeddingsAllToOneReduce(_AllToOne):
    """Brings partial sums to one device, and adds them up in the order of devices.

    Args:
        device: where to.
        world_size: how many devices they are on.
    """

    def forward(self, tensors: list[Tensor]) -> Tensor:
        """Return the sums."""
        first, *others = self._here(tensors)
        for other in others:
            first = first + other
        return first


class EmbeddingsAllToOne(_AllToOne):
    """Brings vectors to one device, and joins them.

    Args:
        device: where to.
        world_size: how many devices they are on.
        cat_dim: which dimension is joined.
    """

    def __init__(self, device: torch.device, world_size: int, cat_dim: int) -> None:
        super().__init__(device, world_size)
        self._cat_dim = cat_dim

    def forward(self, tensors: list[Tensor]) -> Tensor:
        """Return them as one tensor."""
        return torch.cat(self._here(tensors), self._cat_dim)


def _check_one_a_rank(name: str, values: Sequence[object], wire: Wire) -> None:
    if len(values) != wire.world_size:
        raise ValueError(
            f"`{name}` should have an entry for each of {wire.world_size} ranks. Received {values}."
        )


def _batches(vectors: Tensor, batches: list[int] | None, wire: Wire) -> list[int]:
    """Return how many samples each rank has."""
    if batches is None:
        batches = [len(vectors) // wire.world_size] * wire.world_size
    _check_one_a_rank("batch sizes", batches, wire)
    if sum(batches) != len(vectors):
        raise ValueError(
            f"Samples of all ranks, {batches}, should sum to those that there are vectors of. "
            f"Received {len(vectors)}."
        )
    return batches
