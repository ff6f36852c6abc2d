"""How much memory a part of a table takes: weights, what its optimizer keeps, and what a step exchanges."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchrec.distributed.planner._bandwidths import StateSize
from torchrec.distributed.planner._options import ShardingOption
from torchrec.distributed.planner._topology import Storage
from torchrec.distributed.planner.constants import UVM_CACHING_RATIO
from torchrec.distributed.types import (
    PipelineType,
    ShardingType,
    StorageUsageType,
    compute_storage_usage,
)
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.fusable import fused_rule
from torchrec.optim.owners import owner_of
from torchrec.optim.table_update import FusedRule, TableUpdate

_FLOAT = 4
_LONG = 8  # bytes of an id of a batch
_ID = 4  # bytes of an id on the way
_OFFSET = 8  # bytes of where a bag begins
_ENTRY = 16  # bytes of an id that is put in order for an update, at most
_CHOSEN = 24  # bytes of an id while it is given a row and a place, and sent, in two steps at once
_LENGTHS = 12  # bytes of the length of a bag meanwhile
_CACHED_KERNELS = {"fused_uvm_caching", "quant_uvm_caching"}


@dataclass(frozen=True)
class Traffic:
    """What one step of one rank asks of a table.

    Attributes:
        ids: how many it looks up.
        bags: in how many bags.
        is_pooled: whether a bag gives one vector; else each id does.
        id_bytes: of an id, with its weight.
        number_bytes: of a number of a vector.
    """

    ids: float
    bags: float
    is_pooled: bool
    id_bytes: float
    number_bytes: float

    @classmethod
    def of(
        cls,
        batch_sizes: list[int],
        input_lengths: list[float],
        num_poolings: list[float],
        is_pooled: bool,
        id_bytes: float,
        number_bytes: float,
    ) -> Traffic:
        """Add up the features of a table; the arguments as `ParameterConstraints` has them."""
        bags = [b * n for b, n in zip(batch_sizes, num_poolings, strict=True)]
        ids = sum(bag * length for bag, length in zip(bags, input_lengths, strict=True))
        return cls(ids, sum(bags), is_pooled, id_bytes, number_bytes)

    @property
    def vectors(self) -> float:
        """How many it gets back in the end."""
        return self.bags if self.is_pooled else self.ids

    def sends_rows(self, bands: int) -> bool:
        """Say whether rows are sent where they lie in some places, as `Work.sends_rows` has it."""
        return not self.is_pooled or (bands > 1 and self.ids <= self.bags * bands)


@dataclass(frozen=True)
class Pipelined:
    """How often what a step exchanges is in memory when most is.

    Attributes:
        ids: of how many batches.
        vectors: of how many.
    """

    ids: int = 1
    vectors: int = 1

    @classmethod
    def of(cls, pipeline_type: PipelineType, at_peak: bool) -> Pipelined:
        """Return what a pipeline comes to.

        Args:
            pipeline_type: how far it runs ahead.
            at_peak: whether tables are looked up when layers hold most of their memory.
        """
        if pipeline_type is PipelineType.NONE:
            return cls()
        ahead = {PipelineType.TRAIN_SPARSE_DIST: 1, PipelineType.TRAIN_PREFETCH_SPARSE_DIST: 2}
        return cls(1 + ahead.get(pipeline_type, 0), 1 if at_peak else 0)


def storage_of(
    param: Tensor,
    size: list[int],
    sharding_type: ShardingType,
    compute_kernel: str,
    usage: StorageUsageType,
    compute_device: str,
    world_size: int,
    traffic: Traffic,
    pipelined: Pipelined,
    is_inference: bool = False,
    load_factor: float | None = None,
) -> tuple[Storage, int]:
    """Return the bytes that a part of a table takes, and how many of them during a step only.

    Args:
        param: the whole table.
        size: rows and columns of the part.
        sharding_type: of the table.
        compute_kernel: value of an `EmbeddingComputeKernel`.
        usage: which kernels keep tables in the memory of the host.
        compute_device: type of device of the ranks.
        world_size: how many ranks ask for it.
        traffic: what each of them asks.
        pipelined: how often that is in memory.
        is_inference: whether there are no gradients and no state.
        load_factor: the share of rows that are cached, where the kernel has a cache. Default 0.2.
    """
    rows, columns = size
    share = rows * columns / param.nelement() if param.nelement() else 0.0
    weights = compute_storage_usage(param, compute_device, compute_kernel, usage)
    found = {name: int(total * share) for name, total in weights.items()}
    state = next(iter(found), "ddr")  # the optimizer's state is where the table is
    if not is_inference:
        found[state] += _kept_bytes(param, rows, columns, compute_kernel)
    memory = "ddr" if compute_device == "cpu" else "hbm"
    if compute_kernel in _CACHED_KERNELS and state != memory:
        cached = UVM_CACHING_RATIO if load_factor is None else load_factor
        found[memory] = int(found[state] * cached)
    of_rows = rows / param.shape[0] if param.shape[0] else 0.0
    bands = round(1 / of_rows) if of_rows else 1
    ids, sends_rows = traffic.ids * of_rows, traffic.sends_rows(bands)
    vectors = ids if sends_rows else traffic.bags
    asking = 1 if sharding_type is ShardingType.DATA_PARALLEL else world_size
    # Vectors, and in another message those of others; gradients come into the same memory.
    copies = 0.0 if asking == 1 else 1 + (asking - 1) / asking
    if ids > 2 * vectors and not is_inference:
        copies += 1  # an update reads a gradient several times: it packs all of them first
    asked = ids * (traffic.id_bytes - _ID) + (0 if sends_rows else traffic.bags * _OFFSET)
    entries = 0 if is_inference else ids * _ENTRY
    numbers = copies * vectors * columns * traffic.number_bytes
    exchanged = asking * (
        (0 if asking == 1 else pipelined.ids * asked) + pipelined.vectors * (entries + numbers)
    )
    found[memory] = found.get(memory, 0) + round(exchanged)
    return Storage(found.get("hbm", 0), found.get("ddr", 0)), round(exchanged)


def own_bytes_of(
    option: ShardingOption,
    world_size: int,
    traffic: Traffic,
    pipelined: Pipelined,
    is_inference: bool = False,
) -> int:
    """Return the bytes that every rank has for its own batch, whoever has the table: ids, vectors, their gradients.

    Args:
        option: the way to place the table.
        world_size: how many ranks ask for it.
        traffic: what each of them asks.
        pipelined: how often that is in memory.
        is_inference: whether there are no gradients.
    """
    columns = option.tensor.shape[1]
    alone = option.sharding_type == ShardingType.DATA_PARALLEL.value or world_size == 1
    copies = 1 if is_inference else 2
    vectors = copies * traffic.vectors
    bands = max(1, len({shard.offset[0] for shard in option.shards}))
    if not alone:
        by_rows = traffic.is_pooled and traffic.sends_rows(bands)
        received = traffic.ids if by_rows else traffic.vectors
        if by_rows:  # which are pooled here
            vectors += copies * received
        if (
            not is_inference
        ):  # gradients for the other ranks, of sums for each that has some of the rows
            sums = 1 if by_rows or not traffic.is_pooled else bands
            vectors += received * sums * (world_size - 1) / world_size
    numbers = pipelined.vectors * vectors * columns * traffic.number_bytes
    if alone:
        return round(numbers)
    weight = traffic.id_bytes - _LONG
    asked = traffic.ids * (_CHOSEN + 2 * weight) + bands * traffic.bags * _LENGTHS
    return round(numbers + pipelined.ids * asked)


def _kept_bytes(param: Tensor, rows: int, columns: int, compute_kernel: str) -> int:
    """Return the bytes of a dense gradient, or of the state of a fused update: one number a weight if not known."""
    if compute_kernel != "fused":
        return rows * columns * param.element_size()
    state = state_of(param, compute_kernel)
    return rows * (state.a_row + state.a_weight * columns) * _FLOAT


def state_of(param: Tensor, compute_kernel: str) -> StateSize:
    """Return what the fused optimizer of a table keeps of it: one number a weight if it is not known yet.

    Args:
        param: the table.
        compute_kernel: value of an `EmbeddingComputeKernel`; others than fused ones keep nothing.
    """
    if compute_kernel != "fused":
        return StateSize(0, 0)
    rule = fused_rule_of(param)
    if rule is None:
        return StateSize(1, 0)
    kind = RULES[rule.optimizer]
    by_row = [kind.state[name] for name in kind.state_names(rule.hyper)]
    return StateSize(by_row.count(False), by_row.count(True))


def blocks_of(option: ShardingOption) -> dict[tuple[int, int], tuple[int, int]]:
    """Return what ranks hold of a table: columns of a rank that are of the same rows are one block.

    Args:
        option: a way to place it; parts that have no rank yet, or are empty, are left out.

    Returns:
        rank and first row -> rows and columns.

    Example:
        >>> from torchrec.distributed.planner.types import Shard
        >>> shards = [Shard([10, 4], [0, column], rank=rank) for column, rank in ((0, 1), (4, 0), (8, 1))]
        >>> option = ShardingOption(
        ...     "t", torch.empty(10, 12), ("", torch.nn.Module()), [1.0], 8, "column_wise", "device", "fused", shards
        ... )
        >>> blocks_of(option)
        {(1, 0): (10, 8), (0, 0): (10, 4)}
    """
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for shard in option.shards:
        if shard.rank is None or min(shard.size) == 0:
            continue
        block = shard.rank, shard.offset[0]
        _, columns = found.get(block, (0, 0))
        found[block] = shard.size[0], columns + shard.size[1]
    return found


def shared_state_bytes(option: ShardingOption) -> dict[int, int]:
    """Return how much less states take than those of all parts: numbers of rows, which columns of a rank share.

    Args:
        option: a way to place a table, with ranks.

    Returns:
        rank -> bytes, of ranks that have several parts of the same rows.
    """
    a_row = state_of(option.tensor, option.compute_kernel).a_row * _FLOAT
    found: dict[int, int] = {}
    for shard in option.shards:
        if shard.rank is not None and min(shard.size) > 0:
            found[shard.rank] = found.get(shard.rank, 0) + shard.size[0] * a_row
    for (rank, _), (rows, _) in blocks_of(option).items():
        found[rank] -= rows * a_row
    return {rank: num_bytes for rank, num_bytes in found.items() if num_bytes}


def adds_squares(option: ShardingOption) -> bool:
    """Say whether the update of a table needs numbers of whole rows, whose columns lie on several ranks."""
    rule = fused_rule_of(option.tensor) if option.compute_kernel == "fused" else None
    if rule is None or not _splits_columns(option):
        return False
    kind = RULES[rule.optimizer]
    return any(kind.state[name] for name in kind.state_names(rule.hyper))


def _splits_columns(option: ShardingOption) -> bool:
    """Say whether columns of a row lie on several ranks, as they may where parts have none yet."""
    if any(shard.rank is None for shard in option.shards):
        return len({shard.offset[1] for shard in option.shards}) > 1
    blocks = blocks_of(option)
    return len(blocks) > len({row for _, row in blocks})


def fused_rule_of(param: Tensor) -> FusedRule | None:
    """Return what updates a table in the backward pass; None: nothing does, or it is not known yet."""
    owner = owner_of(param)
    if isinstance(owner, TableUpdate) and owner.rule is not None:
        return owner.rule
    if owner is None or owner.applied is None:
        return None
    return FusedRule(*fused_rule(*owner.applied))
