"""What may become of a table: the wishes for it, and one way to place it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor, nn

from torchrec.distributed.planner._topology import Perf, Storage
from torchrec.distributed.planner.constants import POOLING_FACTOR
from torchrec.distributed.types import BoundsCheckMode, CacheParams, DataType, KeyValueParams
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
)
from torchrec.modules.feature_processor_ import FeatureProcessor, FeatureProcessorsCollection


class PlannerErrorType(Enum):
    """Why there is no plan."""

    INSUFFICIENT_STORAGE = "insufficient_storage"
    STRICT_CONSTRAINTS = "strict_constraints"
    PARTITION = "partition"
    OTHER = "other"
    PLANNER_INPUT_CONTEXT_MISMATCH = "planner_input_context_mismatch"
    PLAN_LOADING_FAILED = "plan_loading_failed"
    INVALID_RANK_ASSIGNMENT = "invalid_rank_assignment"
    INPUT_VALIDATION = "input_validation"
    MISSING_MODULE_IN_PLAN = "missing_module_in_plan"
    INVALID_COMPUTE_KERNEL = "invalid_compute_kernel"


class PlannerError(ValueError):
    """There is no plan.

    Args:
        message: why not, in words.
        error_type: and of which kind that is.
    """

    def __init__(self, message: str, error_type: PlannerErrorType = PlannerErrorType.OTHER) -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass
class ParameterConstraints:
    """What is wished for one table, and known of it.

    Attributes:
        sharding_types: which it may have, values of `ShardingType`. Default: any.
        compute_kernels: which it may have, ``"fused"`` or ``"dense"``. Default: any.
        min_partition: columns of a shard at least, where columns are spread; the next number that divides them is
            taken. Default 128.
        pooling_factors: ids a bag, for each feature. Default 1.
        num_poolings: bags a sample, for each feature. Default 1.
        batch_sizes: samples a rank, for each feature. Default: those of the planner.
        is_weighted: whether ids have weights. Default False.
        cache_params: passed on to the plan, as are the next four.
        enforce_hbm: keep the table in the memory of the accelerator.
        stochastic_rounding: round updates at random.
        bounds_check_mode: what becomes of an id outside the table.
        feature_names: of the table. Default: those of its configuration.
        output_dtype: type of what a look-up gives.
        device_group: type of device it is for; another than that of the topology is refused.
        key_value_params: passed on to the plan.
        use_virtual_table: refused: there are no virtual tables.
        ranks: pins the table: only these may have parts of it. Default: all.
        forbidden_ranks: these may have none of it.
        together_with: name of a table whose rank it should be on; both are whole, then.
    """

    sharding_types: list[str] | None = None
    compute_kernels: list[str] | None = None
    min_partition: int | None = None
    pooling_factors: list[float] = field(default_factory=lambda: [POOLING_FACTOR])
    num_poolings: list[float] | None = None
    batch_sizes: list[int] | None = None
    is_weighted: bool = False
    cache_params: CacheParams | None = None
    enforce_hbm: bool | None = None
    stochastic_rounding: bool | None = None
    bounds_check_mode: BoundsCheckMode | None = None
    feature_names: list[str] | None = None
    output_dtype: DataType | None = None
    device_group: str | None = None
    key_value_params: KeyValueParams | None = None
    use_virtual_table: bool = False
    ranks: list[int] | None = None
    forbidden_ranks: list[int] | None = None
    together_with: str | None = None


@dataclass(frozen=True)
class Lookup:
    """What a rank asks of a table in a step.

    Attributes:
        ids: for each feature.
        bags: for each feature.
        is_pooled: whether a bag gives one vector.
        is_weighted: whether ids have weights.
    """

    ids: tuple[float, ...]
    bags: tuple[float, ...]
    is_pooled: bool
    is_weighted: bool

    def sends_rows(self, bands: int) -> tuple[bool, ...]:
        """Say for each feature whether rows are sent: they are fewer than sums from each place would be.

        Args:
            bands: in how many places the rows of the table lie.
        """
        return tuple(
            not self.is_pooled or (bands > 1 and ids <= bags * bands)
            for ids, bags in zip(self.ids, self.bags, strict=True)
        )


class PartitionByType(Enum):
    """What the shards of a table are dealt out to."""

    DEVICE = "device"
    HOST = "host"
    UNIFORM = "uniform"
    MULTI_HOST = "multi_host"


@dataclass
class Shard:
    """A part of a table that is to be placed.

    Attributes:
        size: rows and columns.
        offset: row and column where it begins.
        storage: bytes that it takes.
        perf: milliseconds that it takes; None: not estimated.
        rank: who has it; None: nobody yet.
        step_bytes: those of ``storage`` that it takes during a step.
    """

    size: list[int]
    offset: list[int]
    storage: Storage | None = None
    perf: Perf | None = None
    rank: int | None = None
    step_bytes: int = 0

    def __hash__(self) -> int:
        return hash((tuple(self.size), tuple(self.offset), self.storage, self.perf, self.rank))


class ShardingOption:
    """One way to place a table.

    Attributes:
        own_bytes: that every rank has for its own batch, whoever has the parts; written by estimators.
        lookup: what a rank asks of the table in a step, written by estimators where memory is known tensor by tensor.
            Default: None.

    Args:
        name: of the table.
        tensor: its parameter.
        module: its collection, with the path of that.
        input_lengths: ids a bag, for each feature.
        batch_size: samples a rank.
        sharding_type: value of a `ShardingType`.
        partition_by: value of a `PartitionByType`: what the shards are dealt out to.
        compute_kernel: ``"fused"`` or ``"dense"``.
        shards: its parts.
        cache_params: goes into the plan, as do the next three.
        enforce_hbm: keep the table in the memory of the accelerator.
        stochastic_rounding: round updates at random.
        bounds_check_mode: what becomes of an id outside the table.
        dependency: name of a table whose rank it must be on.
        is_pooled: whether ids of a bag become one vector. Default: as the collection does.
        feature_names: of the table.
        output_dtype: goes into the plan, as does the next.
        key_value_params: how the table is kept in a key-value store.
        num_poolings: bags a sample, for each feature. Default 1.
        allowed_ranks: who may have parts of it. Default: all.
    """

    def __init__(
        self,
        name: str,
        tensor: Tensor,
        module: tuple[str, nn.Module],
        input_lengths: list[float],
        batch_size: int,
        sharding_type: str,
        partition_by: str,
        compute_kernel: str,
        shards: list[Shard],
        cache_params: CacheParams | None = None,
        enforce_hbm: bool | None = None,
        stochastic_rounding: bool | None = None,
        bounds_check_mode: BoundsCheckMode | None = None,
        dependency: str | None = None,
        is_pooled: bool | None = None,
        feature_names: list[str] | None = None,
        output_dtype: DataType | None = None,
        key_value_params: KeyValueParams | None = None,
        num_poolings: list[float] | None = None,
        allowed_ranks: frozenset[int] | None = None,
    ) -> None:
        self.allowed_ranks = allowed_ranks
        self.name = name
        self._tensor = tensor
        self._module = module
        self.input_lengths = input_lengths
        self.batch_size = batch_size
        self.sharding_type = sharding_type
        self.partition_by = partition_by
        self.compute_kernel = compute_kernel
        self.shards = shards
        self.cache_params = cache_params
        self.enforce_hbm = enforce_hbm
        self.stochastic_rounding = stochastic_rounding
        self.bounds_check_mode = bounds_check_mode
        self.dependency = dependency
        self._is_pooled = is_pooled
        self.feature_names = feature_names
        self.output_dtype = output_dtype
        self.key_value_params = key_value_params
        self.num_poolings = num_poolings or [1.0] * len(input_lengths)
        self.own_bytes = 0
        self.lookup: Lookup | None = None

    @property
    def tensor(self) -> Tensor:
        """The parameter of the table."""
        return self._tensor

    @property
    def module(self) -> tuple[str, nn.Module]:
        """The collection, with its path."""
        return self._module

    @property
    def path(self) -> str:
        """Of the collection."""
        return self._module[0]

    @property
    def fqn(self) -> str:
        """Path of the collection and name of the table."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def module_type_key(self) -> str:
        """By which the sharder of the collection is found."""
        return sharder_name(type(self._module[1]))

    @property
    def cache_load_factor(self) -> float | None:
        """Which share of its rows is cached."""
        return self.cache_params.load_factor if self.cache_params else None

    @property
    def num_shards(self) -> int:
        """How many parts it has."""
        return len(self.shards)

    @property
    def num_inputs(self) -> int:
        """How many features it has."""
        return len(self.input_lengths)

    @property
    def total_storage(self) -> Storage:
        """Bytes of all parts."""
        total = Storage(0, 0)
        for shard in self.shards:
            total += shard.storage or Storage(0, 0)
        return total

    @property
    def total_perf(self) -> float:
        """Milliseconds of all parts."""
        return sum(shard.perf.total for shard in self.shards if shard.perf)

    @property
    def is_pooled(self) -> bool:
        """Whether ids of a bag become one vector."""
        if self._is_pooled is None:
            self._is_pooled = self.module_pooled(self._module[1], self.name)
        return self._is_pooled

    @property
    def has_feature_processor(self) -> bool:
        """Whether weights of ids are computed on the way to the table."""
        kinds = (FeatureProcessor, FeatureProcessorsCollection)
        return any(isinstance(module, kinds) for module in self._module[1].modules())

    @staticmethod
    def module_pooled(module: nn.Module, sharding_option_name: str) -> bool:
        """Say whether a collection makes one vector of the ids of a bag.

        Args:
            module: the collection, or what has one inside.
            sharding_option_name: of the table.
        """
        if isinstance(module, EmbeddingBagCollectionInterface):  # with an inner module a table
            return True
        return not any(
            isinstance(inner, EmbeddingCollectionInterface)
            and any(config.name == sharding_option_name for config in inner.embedding_configs())
            for inner in module.modules()
        )

    def get_shards_assignment(self) -> list[int | None]:
        """Return who has each part."""
        return [shard.rank for shard in self.shards]

    def storage_hash(self) -> int:
        """Return a number that is the same for options that take the same memory."""
        parts = (self.fqn, self.sharding_type, self.compute_kernel, self.total_storage)
        return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")

    def __repr__(self) -> str:
        return (
            f"ShardingOption(fqn={self.fqn!r}, sharding_type={self.sharding_type!r}, "
            f"compute_kernel={self.compute_kernel!r}, ranks={self.get_shards_assignment()})"
        )


def sharder_name(t: type[object]) -> str:
    """Return the name by which the sharder of a type of module is found.

    Example:
        >>> sharder_name(nn.EmbeddingBag)
        'torch.nn.modules.sparse.EmbeddingBag'
    """
    return f"{t.__module__}.{t.__name__}"
