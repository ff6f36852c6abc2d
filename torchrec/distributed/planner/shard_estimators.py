"""What parts of tables take: milliseconds of a step, and bytes of memory."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from torchrec.distributed.planner._cost import BY_ROWS, Work, perf_of
from torchrec.distributed.planner._interfaces import SharderData, ShardEstimator
from torchrec.distributed.planner._modules import CollectionFacts, facts_of
from torchrec.distributed.planner._options import (
    Lookup,
    ParameterConstraints,
    PlannerError,
    PlannerErrorType,
    ShardingOption,
)
from torchrec.distributed.planner._rates import rates_of
from torchrec.distributed.planner._storage import (
    Pipelined,
    Traffic,
    adds_squares,
    own_bytes_of,
    state_of,
    storage_of,
)
from torchrec.distributed.planner._topology import Perf, Storage, Topology
from torchrec.distributed.planner.constants import BIGINT_DTYPE, KV_CACHING_RATIO, NUM_POOLINGS
from torchrec.distributed.types import (
    CacheStatistics,
    CommOp,
    KeyValueParams,
    PipelineType,
    ShardingType,
)
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS

__all__ = [
    "EmbeddingOffloadStats",
    "EmbeddingPerfEstimator",
    "EmbeddingStorageEstimator",
    "calculate_shard_storages",
    "get_num_poolings",
]

_FLOAT = 4.0


class EmbeddingPerfEstimator(ShardEstimator):
    """Milliseconds of a step, as our sharded collections take them.

    They are those of the rank that has the part: it looks up what all ranks ask for, sends them vectors, receives
    gradients, and updates its rows.

    Args:
        topology: the ranks, with bandwidths or with measured rates.
        constraints: wishes, by name of table.
        is_inference: whether there is no backward pass.
        counts_unevenness: whether rows that are divided unevenly take longer, as the topology says.
    """

    def __init__(
        self,
        topology: Topology,
        constraints: dict[str, ParameterConstraints] | None = None,
        is_inference: bool = False,
        counts_unevenness: bool = True,
    ) -> None:
        self._topology = topology
        self._constraints = constraints or {}
        self._is_inference = is_inference
        self._counts_unevenness = counts_unevenness

    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: dict[str, SharderData]
    ) -> None:
        """Write ``perf`` into each part.

        Args:
            sharding_options: ways to place tables.
            sharder_data_map: `ShardingOption.module_type_key` -> what is known of the sharder.
        """
        facts, touched = _Facts(), self._touched(sharding_options)
        for option in sharding_options:
            wishes = self._constraints.get(option.name) or ParameterConstraints()
            data = sharder_data_map[option.module_type_key]
            work = self._work(option, data, wishes, facts, touched)
            params = option.cache_params
            rates = rates_of(
                self._topology,
                option.cache_load_factor,
                bool(params is not None and params.prefetch_pipeline),
            )
            slower = self._slowed_by_unevenness(option)

            @cache
            def perf(rows: int, columns: int) -> Perf:
                return perf_of(work, rows, columns, rates).scaled(slower)  # noqa: B023

            for shard in option.shards:
                shard.perf = perf(*shard.size)

    def _touched(self, options: list[ShardingOption]) -> float:
        """Return the numbers of rows and vectors that a step of one rank comes by, of all tables."""
        found = {}
        for option in options:
            wishes = self._constraints.get(option.name) or ParameterConstraints()
            bags, ids = _asked(option, wishes)
            found[option.path, option.name] = option.tensor.shape[1] * (
                ids + 2 * (bags if option.is_pooled else ids)
            )
        return sum(found.values())

    def _slowed_by_unevenness(self, option: ShardingOption) -> float:
        if not self._counts_unevenness:
            return 1.0
        uneven = len({tuple(shard.size) for shard in option.shards}) > 1
        by_rows = ShardingType(option.sharding_type) in BY_ROWS
        return self._topology.uneven_sharding_perf_multiplier if uneven and by_rows else 1.0

    def _work(
        self,
        option: ShardingOption,
        data: SharderData,
        wishes: ParameterConstraints,
        facts: _Facts,
        touched: float,
    ) -> Work:
        topology, kind = self._topology, ShardingType(option.sharding_type)
        bags, ids = _asked(option, wishes)
        weighted = wishes.is_weighted or facts.of(option.module[1]).is_weighted
        name = _comm_op(option, kind).name
        forward, backward = data.qcomm_dtype_sizes.get(name, (_FLOAT, _FLOAT))
        if option.output_dtype is not None:
            number = DATA_TYPE_NUM_BITS[option.output_dtype] / 8
            forward, backward = min(forward, number), min(backward, number)
        bands = {ShardingType.ROW_WISE: topology.world_size}.get(kind, topology.local_world_size)
        return Work(
            sharding_type=kind,
            compute_kernel=option.compute_kernel,
            rows=option.tensor.shape[0],
            row_bytes=option.tensor.element_size(),
            bands=bands if kind in BY_ROWS else 1,
            world_size=topology.world_size,
            ids=ids,
            bags=bags,
            is_pooled=option.is_pooled,
            id_bytes=BIGINT_DTYPE + (_FLOAT if weighted else 0),
            forward_bytes=forward,
            backward_bytes=backward,
            backward_factor=(topology.weighted_feature_bwd_compute_multiplier if weighted else 1.0),
            is_inference=self._is_inference,
            ranks_a_host=topology.local_world_size,
            state=state_of(option.tensor, option.compute_kernel),
            touched=touched,
            adds_squares=adds_squares(option) and not self._is_inference,
        )


class EmbeddingStorageEstimator(ShardEstimator):
    """Bytes of memory: weights, gradient or state of the optimizer, and what a step exchanges.

    Args:
        topology: the ranks.
        constraints: wishes, by name of table.
        pipeline_type: how far a pipeline runs ahead: each batch more that is on its way takes its ids, and with
            prefetching its vectors, once more.
        run_embedding_at_peak_memory: whether tables are looked up when layers hold most of their memory; else what a
            step exchanges is not counted where a pipeline runs ahead, as layers need more at another time.
        is_inference: whether there are no gradients and no state.
    """

    def __init__(
        self,
        topology: Topology,
        constraints: dict[str, ParameterConstraints] | None = None,
        pipeline_type: PipelineType = PipelineType.NONE,
        run_embedding_at_peak_memory: bool = False,
        is_inference: bool = False,
    ) -> None:
        self._topology = topology
        self._constraints = constraints or {}
        self._pipelined = Pipelined.of(pipeline_type, run_embedding_at_peak_memory)
        self._is_inference = is_inference
        # Of such steps it is known what they take, tensor by tensor.
        on_host, alone = topology.compute_device == "cpu", pipeline_type is PipelineType.NONE
        self._is_training_here = on_host and alone and not is_inference

    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: dict[str, SharderData]
    ) -> None:
        """Write ``storage`` into each part, ``own_bytes`` and ``lookup`` into each way.

        Args:
            sharding_options: ways to place tables.
            sharder_data_map: `ShardingOption.module_type_key` -> what is known of the sharder.
        """
        facts = _Facts()
        for option in sharding_options:
            wishes = self._constraints.get(option.name) or ParameterConstraints()
            data = sharder_data_map[option.module_type_key]
            batch_sizes, poolings = _sizes(option, wishes)
            weighted = wishes.is_weighted or facts.of(option.module[1]).is_weighted
            number = DATA_TYPE_NUM_BITS[option.output_dtype] / 8 if option.output_dtype else _FLOAT
            traffic = Traffic.of(
                batch_sizes,
                option.input_lengths,
                poolings,
                option.is_pooled,
                BIGINT_DTYPE + (_FLOAT if weighted else 0),
                number,
            )

            @cache
            def storage(rows: int, columns: int) -> tuple[Storage, int]:
                return storage_of(
                    option.tensor,  # noqa: B023
                    [rows, columns],
                    ShardingType(option.sharding_type),  # noqa: B023
                    option.compute_kernel,  # noqa: B023
                    data.storage_usage_type,  # noqa: B023
                    self._topology.compute_device,
                    self._topology.world_size,
                    traffic,  # noqa: B023
                    self._pipelined,
                    self._is_inference,
                    option.cache_load_factor,  # noqa: B023
                )

            for shard in option.shards:
                shard.storage, shard.step_bytes = storage(*shard.size)
            if self._is_training_here and option.output_dtype is None:
                option.lookup = _lookup_of(option, batch_sizes, poolings, weighted)
            option.own_bytes = own_bytes_of(
                option, self._topology.world_size, traffic, self._pipelined, self._is_inference
            )


class _Facts:
    """What modules say of their tables, each asked once."""

    def __init__(self) -> None:
        self._known: dict[nn.Module, CollectionFacts] = {}

    def of(self, module: nn.Module) -> CollectionFacts:
        """Return what a module says."""
        if module not in self._known:
            self._known[module] = facts_of(module)
        return self._known[module]


def calculate_shard_storages(
    sharder_data: SharderData,
    sharding_type: str,
    tensor: Tensor,
    compute_device: str,
    compute_kernel: str,
    shard_sizes: list[list[int]],
    batch_sizes: list[int],
    world_size: int,
    local_world_size: int,
    input_lengths: list[float],
    num_poolings: list[float],
    caching_ratio: float,
    is_pooled: bool,
    input_data_type_size: float,
    output_data_type_size: float,
    pipeline_type: PipelineType = PipelineType.NONE,
    count_ephemeral_storage_cost: bool = False,
    is_inference: bool = False,
    multipass_prefetch_max_pass: int | None = None,
    key_value_params: KeyValueParams | None = None,
    kv_cache_load_factor: float = KV_CACHING_RATIO,
    use_virtual_table: bool = False,
) -> list[Storage]:
    """Return the bytes that the parts of a table take.

    Args:
        sharder_data: what is known of the sharder.
        sharding_type: value of a `ShardingType`.
        tensor: the whole table.
        compute_device: type of device of the ranks.
        compute_kernel: value of an `EmbeddingComputeKernel`.
        shard_sizes: rows and columns of each part.
        batch_sizes: samples a rank, for each feature.
        world_size: how many ranks there are.
        local_world_size: has no effect: what a rank is asked for does not depend on where the others are.
        input_lengths: ids a bag, for each feature.
        num_poolings: bags a sample, for each feature.
        caching_ratio: the share of rows that are cached, where the kernel has a cache.
        is_pooled: whether ids of a bag become one vector.
        input_data_type_size: bytes of an id on the way.
        output_data_type_size: bytes of a number on the way.
        pipeline_type: how far a pipeline runs ahead.
        count_ephemeral_storage_cost: whether what a step exchanges counts where a pipeline runs ahead.
        is_inference: whether there are no gradients and no state.
        multipass_prefetch_max_pass: refused: nothing is fetched in several passes.
        key_value_params: refused: no table is in a key-value store.
        kv_cache_load_factor: has no effect without one.
        use_virtual_table: refused: there are no virtual tables.

    Raises:
        ValueError: if something is refused.
    """
    for name, value in (
        ("multipass_prefetch_max_pass", multipass_prefetch_max_pass),
        ("key_value_params", key_value_params),
        ("use_virtual_table", use_virtual_table or None),
    ):
        if value is not None:
            raise ValueError(
                f"`{name}` should not be given: there is no such store. Received {value}."
            )
    traffic = Traffic.of(
        batch_sizes,
        input_lengths,
        num_poolings,
        is_pooled,
        input_data_type_size,
        output_data_type_size,
    )
    param = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
    return [
        storage_of(
            param,
            size,
            ShardingType(sharding_type),
            compute_kernel,
            sharder_data.storage_usage_type,
            compute_device,
            world_size,
            traffic,
            Pipelined.of(pipeline_type, count_ephemeral_storage_cost),
            is_inference,
            caching_ratio,
        )[0]
        for size in shard_sizes
    ]


def get_num_poolings(
    constraints: dict[str, ParameterConstraints] | None, so: ShardingOption
) -> list[float]:
    """Return bags a sample, for each feature of a table.

    Args:
        constraints: wishes, by name of table.
        so: a way to place it.
    """
    wishes = (constraints or {}).get(so.name)
    if wishes is not None and wishes.num_poolings is not None:
        return wishes.num_poolings
    return (
        so.num_poolings if len(so.num_poolings) == so.num_inputs else [NUM_POOLINGS] * so.num_inputs
    )


def _sizes(option: ShardingOption, wishes: ParameterConstraints) -> tuple[list[int], list[float]]:
    """Return samples a rank and bags a sample, for each feature."""
    features = option.num_inputs
    batch_sizes = wishes.batch_sizes or [option.batch_size] * features
    poolings = wishes.num_poolings or option.num_poolings
    if not len(batch_sizes) == len(poolings) == features:
        raise PlannerError(
            f"Table {option.name!r} of module {option.path!r} should have `pooling_factors`, `num_poolings` and "
            f"`batch_sizes` for as many features. Received {features}, {len(poolings)} and {len(batch_sizes)}.",
            PlannerErrorType.INPUT_VALIDATION,
        )
    return batch_sizes, poolings


def _lookup_of(
    option: ShardingOption, batch_sizes: list[int], poolings: list[float], weighted: bool
) -> Lookup:
    bags = tuple(size * number for size, number in zip(batch_sizes, poolings, strict=True))
    ids = tuple(of * length for of, length in zip(bags, option.input_lengths, strict=True))
    return Lookup(ids, bags, option.is_pooled, weighted)


def _asked(option: ShardingOption, wishes: ParameterConstraints) -> tuple[float, float]:
    """Return bags and ids that one rank asks for."""
    batch_sizes, poolings = _sizes(option, wishes)
    bags = [b * n for b, n in zip(batch_sizes, poolings, strict=True)]
    ids = sum(bag * length for bag, length in zip(bags, option.input_lengths, strict=True))
    return sum(bags), ids


def _comm_op(option: ShardingOption, kind: ShardingType) -> CommOp:
    if not option.is_pooled:
        return CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL
    if kind in BY_ROWS:
        return CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER
    return CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL


class EmbeddingOffloadStats(CacheStatistics):
    """How well rows of a table can be cached, from a histogram of how long ago they were used.

    Args:
        cacheability: from 0, where a small cache serves nearly all look-ups, to 1.
        expected_lookups: how many distinct rows a step looks up.
        mrc_hist_counts: look-ups by how many other rows were used since the row was last.
        height: rows of the table.

    Example:
        >>> stats = EmbeddingOffloadStats(0.3, 100, torch.tensor([6.0, 2.0, 2.0]), height=10)
        >>> [round(stats.expected_miss_rate(clf), 2) for clf in (0.0, 0.2, 1.0)]
        [1.0, 0.4, 0.0]
    """

    def __init__(
        self, cacheability: float, expected_lookups: int, mrc_hist_counts: Tensor, height: int
    ) -> None:
        if mrc_hist_counts.dim() != 1:
            raise ValueError(
                f"`mrc_hist_counts` should have one dimension. Received {mrc_hist_counts.dim()}."
            )
        self._cacheability = cacheability
        self._expected_lookups = expected_lookups
        self._height = height
        self._hist = mrc_hist_counts
        counts = len(mrc_hist_counts)
        self._bins = torch.arange(counts + 1, dtype=torch.float64) * -(-height // max(counts, 1))

    @property
    def cacheability(self) -> float:
        """From 0, where a small cache serves nearly all look-ups, to 1."""
        return self._cacheability

    @property
    def expected_lookups(self) -> int:
        """How many distinct rows a step looks up."""
        return self._expected_lookups

    def expected_miss_rate(self, clf: float) -> float:
        """Return the share of look-ups that a cache of the share ``clf`` of all rows misses."""
        size = torch.tensor(int(clf * self._height))
        return float(self.estimate_cache_miss_rate(size, self._hist, self._bins))

    @staticmethod
    def estimate_cache_miss_rate(cache_sizes: Tensor, hist: Tensor, bins: Tensor) -> Tensor:
        """Return the share of look-ups that caches of these sizes miss.

        Args:
            cache_sizes: in rows.
            hist: look-ups by distance.
            bins: borders of the histogram, one more than it has counts.
        """
        ys = hist.cumsum(0).to(torch.float64)
        if not len(ys) or float(ys[-1]) == 0:  # nothing was looked up
            return torch.zeros_like(cache_sizes, dtype=torch.float64)
        served = torch.cat([ys.new_zeros(1), ys / ys[-1]])
        at = torch.bucketize(cache_sizes.to(torch.float64), bins.to(torch.float64))
        return 1.0 - served[at.clamp(0, len(ys))]
