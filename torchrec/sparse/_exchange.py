"""A KeyedJaggedTensor on its way between ranks: what is sent, and how it is put together again.

Every rank sends each other rank some of its keys: the lengths of their bags, their values, the size of each key's batch
if that varies by key, and weights if there are any. What arrives is rank after rank, key after key within a rank;
put together it is key after key, rank after rank within a key.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from torchrec.checks import require_integer, require_list, require_type
from torchrec.ops.jagged import sum_groups
from torchrec.ops.permute import permute_jagged
from torchrec.sparse._bags import KeyedBags
from torchrec.sparse._checks import check_runs, checked_keys


def sent(bags: KeyedBags) -> dict[str, Tensor]:
    """Return the tensors that are sent, by name and in order."""
    tensors = {"lengths": bags.lengths(), "values": bags.values}
    if bags.strides_per_rank is not None:
        tensors["strides"] = torch.tensor(bags.stride_per_key(), device=bags.values.device)
    if bags.weights is not None:
        tensors["weights"] = bags.weights
    return tensors


def splits(bags: KeyedBags, key_splits: list[int]) -> list[list[int]]:
    """Return how many rows of each tensor go to each rank, in the order of ``sent``."""
    check_runs("key_splits", key_splits, bags.keys)
    starts, rows = bags.lengths_offset_per_key(), bags.offset_per_key()
    runs = list(pairwise(accumulate(key_splits, initial=0)))
    value_splits = [rows[b] - rows[a] for a, b in runs]
    result = [[starts[b] - starts[a] for a, b in runs], value_splits]
    if bags.strides_per_rank is not None:
        result.append(list(key_splits))
    if bags.weights is not None:
        result.append(value_splits)
    return result


class Received:
    """What came from all ranks, cut into blocks: the bags of one key from one rank.

    Args:
        keys: the F keys that this rank has now.
        tensors: lengths, values, batch sizes (if they vary by key) and weights (if any), in the order of ``sent``.
        variable: whether the batch sizes vary by key.
        num_workers: number of ranks, W.
        stride_per_rank: size of each rank's batch, if it is one for all keys.

    Attributes:
        blocks: number of bags of each block ``[W * F]``, rank after rank.
    """

    def __init__(
        self,
        keys: list[str],
        tensors: list[Tensor],
        variable: bool,
        num_workers: int,
        stride_per_rank: list[int] | None,
    ) -> None:
        self.num_keys, self.num_workers = len(checked_keys(keys)), num_workers
        require_type(variable, "`variable_stride_per_key`", int)
        require_integer(num_workers, "`num_workers`", least=1)
        require_list(tensors, "`tensors`", Tensor)
        if stride_per_rank is not None:
            require_list(stride_per_rank, "`stride_per_rank`", int)
        expected = 3 if variable else 2
        if len(tensors) not in (expected, expected + 1):
            names = "lengths, values" + (", strides" if variable else "")
            raise ValueError(
                f"`tensors` should be {names}, and weights if there are any. Received {len(tensors)} tensors."
            )
        self.lengths, self.values = tensors[0], tensors[1]
        self.weights = tensors[expected] if len(tensors) > expected else None
        if variable:
            self.blocks: list[int] = tensors[2].tolist()
        elif stride_per_rank is None or len(stride_per_rank) != num_workers:
            raise ValueError(
                f"`stride_per_rank` should be one size for each of {num_workers} ranks. Received {stride_per_rank}."
            )
        else:
            self.blocks = [stride for stride in stride_per_rank for _ in keys]
        if len(self.blocks) != num_workers * len(keys) or sum(self.blocks) != self.lengths.size(0):
            raise ValueError(
                f"`tensors` should hold lengths for {len(keys)} keys from {num_workers} ranks. "
                f"Received {self.lengths.size(0)} lengths for batches of {self.blocks}."
            )

    def reorder(self, recat: Tensor | None, stagger: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Put the blocks, or single bags, in order and return values, weights and lengths.

        Args:
            recat: the order of the blocks, or of all bags; by default key after key, rank after rank within a key.
            stagger: see ``rank_order``.
        """
        units = self.blocks
        if recat is None:
            order = block_order(self.num_keys, self.num_workers, stagger)
        else:
            require_type(recat, "`recat`", Tensor)
            order = recat.reshape(-1).tolist()
            if len(order) == self.lengths.size(0) and len(order) != len(units):
                units = [1] * len(order)
        if len(order) != len(units):
            raise ValueError(
                f"`recat` should order the {len(units)} blocks or the {self.lengths.size(0)} bags received. "
                f"Received {len(order)} positions."
            )
        sizes = sum_groups(self.lengths, units)
        return permute_jagged(self.lengths, self.values, self.weights, units, order, sizes)

    def strides_per_rank(self, stagger: int) -> list[list[int]]:
        """Return the size of each key's batch on each rank, ``[F][W]``, ranks in the order they are put in."""
        ranks = rank_order(self.num_workers, stagger)
        return [
            [self.blocks[rank * self.num_keys + key] for rank in ranks]
            for key in range(self.num_keys)
        ]


def rank_order(num_workers: int, stagger: int) -> list[int]:
    """Order the ranks for an exchange in two steps, within nodes and then between them.

    Args:
        num_workers: number of ranks, W.
        stagger: number of nodes; the first rank of every node comes first, then the second of every node.

    Example:
        >>> rank_order(6, 2)
        [0, 3, 1, 4, 2, 5]
    """
    require_integer(stagger, "`stagger`")
    if stagger < 1 or num_workers % stagger:
        raise ValueError(f"`stagger` should divide {num_workers} ranks. Received {stagger}.")
    each = num_workers // stagger
    return [i + j * each for i in range(each) for j in range(stagger)]


def block_order(keys: int, num_workers: int, stagger: int) -> list[int]:
    """Order the blocks key after key, rank after rank within a key.

    Example:
        >>> block_order(2, 3, 1)
        [0, 2, 4, 1, 3, 5]
    """
    return [rank * keys + key for key in range(keys) for rank in rank_order(num_workers, stagger)]
