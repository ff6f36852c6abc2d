"""Features on their way between ranks: ids with the lengths of their bags, and tensors in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from torchrec.distributed._awaitable import Awaitable
from torchrec.distributed.embedding_types import KJTList
from torchrec.process_groups import wait_for
from torchrec.process_groups.lost_ranks import lost_ranks_named
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor


class _Swap:
    """A tensor whose parts are on their way to the ranks of a group.

    Args:
        sent: a part for each rank, one behind the other.
        splits: rows of each part.
        expected: rows that come from each rank.
        pg: the ranks.
    """

    def __init__(
        self, sent: Tensor, splits: Sequence[int], expected: Sequence[int], pg: ProcessGroup
    ) -> None:
        for name, of, rows in (("sent", splits, len(sent)), ("received", expected, None)):
            if len(of) != pg.size() or (rows is not None and sum(of) != rows):
                raise ValueError(
                    f"Rows {name} should be told for each of {pg.size()} ranks"
                    + (f", and sum to {rows}" if rows is not None else "")
                    + f". Received {list(of)}."
                )
        self._pg, self._received = pg, sent.new_empty((sum(expected), *sent.shape[1:]))
        sent = sent.contiguous()
        with lost_ranks_named(pg):
            self._work: Any = dist.all_to_all_single(
                self._received, sent, list(expected), list(splits), pg, async_op=True
            )

    def wait(self) -> Tensor:
        """Return what has come, rank after rank."""
        wait_for(self._work, self._received, "an exchange of jagged tensors", self._pg)
        return self._received


class SplitsAllToAllAwaitable(Awaitable[list[list[int]]]):
    """Numbers that all ranks tell one another: for each tensor, what each rank had for this one.

    Args:
        input_tensors: a number for each rank, int64 ``(W,)`` each.
        pg: the ranks.
        collective_tag: no effect: exchanges meet in the order in which they are started.
        collective_tag_parts: likewise.
    """

    def __init__(
        self,
        input_tensors: list[Tensor],
        pg: ProcessGroup,
        collective_tag: int | None = None,
        collective_tag_parts: tuple[object, ...] | None = None,
    ) -> None:
        super().__init__()
        size = pg.size()
        for tensor in input_tensors:
            if tuple(tensor.shape) != (size,):
                raise ValueError(
                    f"`input_tensors` should have a number for each of {size} ranks. "
                    f"Received shape {tuple(tensor.shape)}."
                )
        self._count = len(input_tensors)
        numbers = [tensor.long() for tensor in input_tensors]
        sent = torch.stack(numbers, 1) if numbers else torch.zeros((size, 0), dtype=torch.int64)
        self._swap = _Swap(sent, [1] * size, [1] * size, pg)

    def _wait_impl(self) -> list[list[int]]:
        found: list[list[int]] = self._swap.wait().T.tolist()
        return found if self._count else []


class KJTAllToAllTensorsAwaitable(Awaitable[KeyedJaggedTensor]):
    """Features of this rank's keys, from the batches of all ranks, on their way.

    Args:
        pg: the ranks.
        input: this rank's batch.
        splits: how many keys each rank gets.
        input_splits: for each tensor, rows that each rank gets of it.
        output_splits: for each tensor, rows that come from each rank.
        input_tensors: what is sent, as ``dist_tensors`` of the batch gives it.
        labels: their names, as ``dist_labels`` gives them.
        keys: those of this rank.
        device: where the features are to be.
        stagger: see `KJTAllToAll`.
        stride_per_rank: samples of each rank; None: they vary by key.
    """

    def __init__(
        self,
        pg: ProcessGroup,
        input: KeyedJaggedTensor,
        splits: list[int],
        input_splits: list[list[int]],
        output_splits: list[list[int]],
        input_tensors: list[Tensor],
        labels: list[str],
        keys: list[str],
        device: torch.device,
        stagger: int,
        stride_per_rank: list[int] | None,
    ) -> None:
        super().__init__()
        self._size, self._keys, self._stagger = pg.size(), keys, stagger
        self._device, self._stride_per_rank = device, stride_per_rank
        self._inputs: list[Tensor] = list(input_tensors)
        self._swaps = [
            _Swap(*each, pg)
            for each in zip(input_tensors, input_splits, output_splits, strict=True)
        ]

    def clear_inputs(self) -> int:
        """Let go of what was sent, once it has arrived, so that its memory may be used again.

        Returns:
            bytes.
        """
        for swap in self._swaps:
            swap.wait()
        freed = sum(tensor.nbytes for tensor in self._inputs)
        self._inputs = []
        return freed

    def _wait_impl(self) -> KeyedJaggedTensor:
        tensors = [swap.wait() for swap in self._swaps]
        return KeyedJaggedTensor.dist_init(
            self._keys,
            tensors,
            self._stride_per_rank is None,
            self._size,
            None,
            self._stride_per_rank,
            self._stagger,
        ).to(self._device)


class KJTAllToAllSplitsAwaitable(Awaitable[KJTAllToAllTensorsAwaitable]):
    """How much of features all ranks send, on its way.

    Args:
        pg: the ranks.
        input: this rank's batch.
        splits: how many keys each rank gets.
        labels: names of what is sent, as ``dist_labels`` of the batch gives them.
        tensor_splits: for each of it, rows that each rank gets.
        input_tensors: what is sent.
        keys: those of this rank.
        device: where the features are to be.
        stagger: see `KJTAllToAll`.
    """

    def __init__(
        self,
        pg: ProcessGroup,
        input: KeyedJaggedTensor,
        splits: list[int],
        labels: list[str],
        tensor_splits: list[list[int]],
        input_tensors: list[Tensor],
        keys: list[str],
        device: torch.device,
        stagger: int,
    ) -> None:
        super().__init__()
        self._pg, self._input, self._splits, self._labels = pg, input, splits, labels
        self._tensor_splits, self._input_tensors = tensor_splits, input_tensors
        self._keys, self._device, self._stagger = keys, device, stagger
        sizes = [torch.tensor(each) for each in tensor_splits]
        sizes.append(torch.full((pg.size(),), input.stride()))
        self._sizes = SplitsAllToAllAwaitable(sizes, pg)

    def _wait_impl(self) -> KJTAllToAllTensorsAwaitable:
        *output_splits, strides = self._sizes.wait()
        return KJTAllToAllTensorsAwaitable(
            self._pg,
            self._input,
            self._splits,
            self._tensor_splits,
            output_splits,
            self._input_tensors,
            self._labels,
            self._keys,
            self._device,
            self._stagger,
            None if "strides" in self._labels else strides,
        )


class KJTAllToAll(nn.Module):
    """Sends each rank some of the keys of all ranks' batches.

    Args:
        pg: the ranks.
        splits: how many keys each of them gets, in order.
        stagger: number of nodes; the first rank of every node comes first among the samples, then the second of
            every node. Default 1.
    """

    def __init__(self, pg: ProcessGroup, splits: list[int], stagger: int = 1) -> None:
        super().__init__()
        if len(splits) != pg.size():
            raise ValueError(
                f"`splits` should have a number of keys for each of {pg.size()} ranks. Received {splits}."
            )
        self._pg, self._splits, self._stagger = pg, splits, stagger

    def forward(self, input: KeyedJaggedTensor) -> Awaitable[KJTAllToAllTensorsAwaitable]:
        """Start to send a batch.

        Args:
            input: this rank's batch; batches may differ in size by rank, and by key.

        Returns:
            what gives, waited for twice, the samples of all ranks, for this rank's keys.
        """
        rank = self._pg.rank()
        first = sum(self._splits[:rank])
        return KJTAllToAllSplitsAwaitable(
            self._pg,
            input,
            self._splits,
            input.dist_labels(),
            input.dist_splits(self._splits),
            input.dist_tensors(),
            input.keys()[first : first + self._splits[rank]],
            input.values().device,
            self._stagger,
        )


class KJTOneToAll(nn.Module):
    """Cuts a batch by keys, a part for each device of a host that serves predictions.

    Args:
        splits: how many keys each gets.
        world_size: how many devices.
        device: where they are. Default: where the batch is.
    """

    def __init__(
        self, splits: list[int], world_size: int, device: torch.device | None = None
    ) -> None:
        super().__init__()
        if len(splits) != world_size:
            raise ValueError(
                f"`splits` should have a number of keys for each of {world_size} devices. Received {splits}."
            )
        self._splits, self._device = splits, device

    def forward(self, kjt: KeyedJaggedTensor) -> KJTList:
        """Return the parts."""
        parts = kjt.split(self._splits)
        return KJTList([part if self._device is None else part.to(self._device) for part in parts])


class JaggedTensorAllToAll(Awaitable[JaggedTensor]):
    """Some bags of one feature for each rank, on their way.

    Args:
        jt: the bags, those of the first rank first.
        num_items_to_send: how many bags each rank gets, ``(W,)``.
        num_items_to_receive: how many come from each, ``(W,)``.
        pg: the ranks.
    """

    def __init__(
        self,
        jt: JaggedTensor,
        num_items_to_send: Tensor,
        num_items_to_receive: Tensor,
        pg: ProcessGroup,
    ) -> None:
        super().__init__()
        self._pg = pg
        send, receive = num_items_to_send.tolist(), num_items_to_receive.tolist()
        lengths = jt.lengths()
        self._values, self._weights = jt.values(), jt.weights_or_none()
        self._sizes = [int(each.sum()) for each in lengths.split(send)]
        self._receive = receive
        self._lengths = _Swap(lengths, send, receive, pg)

    def _wait_impl(self) -> JaggedTensor:
        lengths = self._lengths.wait()
        sizes = [int(each.sum()) for each in lengths.split(self._receive)]
        values = _Swap(self._values, self._sizes, sizes, self._pg)
        weights = None
        if self._weights is not None:
            weights = _Swap(self._weights, self._sizes, sizes, self._pg).wait()
        return JaggedTensor(values.wait(), weights, lengths=lengths)


class TensorAllToAllValuesAwaitable(Awaitable[Tensor]):
    """Rows of a tensor for each rank, on their way.

    Args:
        pg: the ranks.
        input: the rows, those of the first rank first.
        input_splits: how many rows each rank gets, ``(W,)``.
        output_splits: how many come from each, ``(W,)``.
    """

    def __init__(
        self, pg: ProcessGroup, input: Tensor, input_splits: Tensor, output_splits: Tensor
    ) -> None:
        super().__init__()
        self._swap = _Swap(input, input_splits.tolist(), output_splits.tolist(), pg)

    def _wait_impl(self) -> Tensor:
        return self._swap.wait()


class TensorAllToAllSplitsAwaitable(Awaitable[TensorAllToAllValuesAwaitable]):
    """How many rows all ranks send, on its way.

    Args:
        pg: the ranks.
        input: the rows, those of the first rank first.
        splits: how many rows each rank gets, ``(W,)``.
    """

    def __init__(self, pg: ProcessGroup, input: Tensor, splits: Tensor) -> None:
        super().__init__()
        self._pg, self._input, self._splits = pg, input, splits
        self._sizes = SplitsAllToAllAwaitable([splits], pg)

    def _wait_impl(self) -> TensorAllToAllValuesAwaitable:
        expected = torch.tensor(self._sizes.wait()[0])
        return TensorAllToAllValuesAwaitable(self._pg, self._input, self._splits, expected)


class TensorAllToAll(nn.Module):
    """Sends each rank some rows of a tensor, of which it need not know how many.

    Args:
        pg: the ranks.
    """

    def __init__(self, pg: ProcessGroup) -> None:
        super().__init__()
        self._pg = pg

    def forward(self, input: Tensor, splits: Tensor) -> TensorAllToAllSplitsAwaitable:
        """Start to send.

        Args:
            input: the rows, those of the first rank first.
            splits: how many rows each rank gets, ``(W,)``.

        Returns:
            what gives, waited for twice, the rows that all ranks have sent here.
        """
        return TensorAllToAllSplitsAwaitable(self._pg, input, splits)


class TensorValuesAllToAll(nn.Module):
    """Sends each rank some rows of a tensor, of which it knows how many.

    Args:
        pg: the ranks.
    """

    def __init__(self, pg: ProcessGroup) -> None:
        super().__init__()
        self._pg = pg

    def forward(
        self, input: Tensor, input_splits: Tensor, output_splits: Tensor
    ) -> TensorAllToAllValuesAwaitable:
        """Start to send.

        Args:
            input: the rows, those of the first rank first.
            input_splits: how many rows each rank gets, ``(W,)``.
            output_splits: how many come from each, ``(W,)``.
        """
        return TensorAllToAllValuesAwaitable(self._pg, input, input_splits, output_splits)
