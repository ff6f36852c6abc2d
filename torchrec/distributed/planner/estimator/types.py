"""What estimates of hardware are written in: coefficients, and what is known of a part of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torchrec.distributed.planner._bandwidths import GeneralizedCommsBandwidth
from torchrec.distributed.planner._interfaces import SharderData
from torchrec.distributed.planner._modules import facts_of
from torchrec.distributed.planner._options import ParameterConstraints, ShardingOption
from torchrec.distributed.planner._rates import BandwidthRates
from torchrec.distributed.planner._topology import Perf, Topology
from torchrec.distributed.planner.constants import (
    BIGINT_DTYPE,
    BWD_COMPUTE_MULTIPLIER,
    DDR_MEM_BW,
    HBM_MEM_BW,
    SSD_MEM_BW,
    WEIGHTED_FEATURE_BWD_COMPUTE_MULTIPLIER,
    WEIGHTED_KERNEL_MULTIPLIER,
)
from torchrec.distributed.planner.estimator._declared import declared_of
from torchrec.distributed.types import CommOp, ShardingType

__all__ = [
    "EstimatorPerfCoefficients",
    "HardwarePerfConfig",
    "PerfCoefficient",
    "PerfCoefficientConfig",
    "PrefetchCoefficients",
    "ShardPerfContext",
]

_UNEVEN = {ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value}


@dataclass
class PerfCoefficient:
    """How often bytes count: of ids read, of rows read, of vectors written, and of the table."""

    input_read_size_multiplier: float = 1.0
    lookup_size_multiplier: float = 1.0
    embedding_output_multiplier: float = 1.0
    hash_size_multiplier: float = 0.0


@dataclass
class EstimatorPerfCoefficients:
    """Of the forward pass, and of the backward pass; without these, it is a multiple of the forward pass."""

    fwd: PerfCoefficient
    bwd: PerfCoefficient | None = None


@dataclass
class PrefetchCoefficients:
    """How often counts of a cache count that is filled ahead of the step."""

    expected_num_lookups_coefficient: float = 0.0
    expected_num_unique_lookups_coefficient: float = 0.0
    expected_size_cache_fetches_coefficient: float = 0.0


@dataclass
class PerfCoefficientConfig:
    """Coefficients by sharding type, and by sharding type and kernel, which come first."""

    table_wise: EstimatorPerfCoefficients | None = None
    row_wise: EstimatorPerfCoefficients | None = None
    table_row_wise: EstimatorPerfCoefficients | None = None
    data_parallel: EstimatorPerfCoefficients | None = None
    column_wise: EstimatorPerfCoefficients | None = None
    by_kernel: dict[tuple[str, str], EstimatorPerfCoefficients] = field(default_factory=dict)
    default: EstimatorPerfCoefficients = field(
        default_factory=lambda: EstimatorPerfCoefficients(PerfCoefficient())
    )
    bwd_compute_multiplier: float = BWD_COMPUTE_MULTIPLIER
    weighted_kernel_multiplier: float = WEIGHTED_KERNEL_MULTIPLIER
    weighted_feature_bwd_compute_multiplier: float = WEIGHTED_FEATURE_BWD_COMPUTE_MULTIPLIER
    prefetch: PrefetchCoefficients | None = None


class HardwarePerfConfig:
    """What is known of hardware. Subclasses set what differs, or declare it with the decorators beside it.

    Attributes:
        name: of the hardware.
        hbm_mem_bw: of the memory of the accelerator, in bytes a millisecond.
        ddr_mem_bw: of the memory of the host.
        ssd_mem_bw: of the disk.
        device_bw: of whatever tables are in, whatever the kernel. Default: by device and kernel.
        kernel_device_bandwidths: device and kernel -> bandwidth.
    """

    name: ClassVar[str] = "default"
    hbm_mem_bw: ClassVar[float] = HBM_MEM_BW
    ddr_mem_bw: ClassVar[float] = DDR_MEM_BW
    ssd_mem_bw: ClassVar[float] = SSD_MEM_BW
    device_bw: ClassVar[float | None] = None
    kernel_device_bandwidths: ClassVar[Mapping[tuple[str | None, str], float]] = {}
    supported: ClassVar[frozenset[str] | None] = None

    @property
    def coefficients(self) -> PerfCoefficientConfig:
        """How often what counts."""
        return PerfCoefficientConfig()

    def get_bwd_compute_multiplier(self, ctx_multiplier: float) -> float:
        """Return how many times longer the backward pass takes: as the topology says, if that is not the default."""
        mine = self.coefficients.bwd_compute_multiplier
        return mine if ctx_multiplier == BWD_COMPUTE_MULTIPLIER else ctx_multiplier

    def get_weighted_feature_bwd_compute_multiplier(self, ctx_multiplier: float) -> float:
        """Return the same for features with weights."""
        mine = self.coefficients.weighted_feature_bwd_compute_multiplier
        return mine if ctx_multiplier == WEIGHTED_FEATURE_BWD_COMPUTE_MULTIPLIER else ctx_multiplier

    def get_coefficients_for_sharding(
        self, sharding_type: str, compute_kernel: str | None = None
    ) -> EstimatorPerfCoefficients:
        """Return what counts how often, for a sharding type and a kernel.

        Args:
            sharding_type: value of a `ShardingType`.
            compute_kernel: value of an `EmbeddingComputeKernel`.
        """
        config = self.coefficients
        of_kernel = config.by_kernel.get((sharding_type, compute_kernel or ""))
        found = of_kernel or getattr(config, sharding_type, None) or config.default
        return EstimatorPerfCoefficients(
            self._declared("fwd", sharding_type) or found.fwd,
            self._declared("bwd", sharding_type) or found.bwd,
        )

    def get_device_bw(
        self,
        compute_device: str,
        compute_kernel: str,
        hbm_mem_bw: float,
        ddr_mem_bw: float,
        ssd_mem_bw: float,
        hbm_to_ddr_mem_bw: float,
        caching_ratio: float | None = None,
        prefetch_pipeline: bool = False,
    ) -> float | None:
        """Return the bandwidth of what a table is in, in bytes a millisecond; the arguments as a topology has them."""
        for device in (compute_device, None):
            found = self.kernel_device_bandwidths.get((device, compute_kernel))
            if found is not None:
                return found
        if self.device_bw is not None:
            return self.device_bw
        topology = Topology(
            1,
            compute_device,
            hbm_mem_bw=hbm_mem_bw,
            ddr_mem_bw=ddr_mem_bw,
            ssd_mem_bw=ssd_mem_bw,
            hbm_to_ddr_mem_bw=hbm_to_ddr_mem_bw,
        )
        return BandwidthRates(topology, caching_ratio, prefetch_pipeline).memory_bw(compute_kernel)

    def is_sharding_type_supported(self, sharding_type: str) -> bool:
        """Say whether there are estimates for a sharding type."""
        return self.supported is None or sharding_type in self.supported

    def validate_sharding_type(self, sharding_type: str) -> None:
        """Check that there are estimates for a sharding type.

        Raises:
            ValueError: if there are none.
        """
        if not self.is_sharding_type_supported(sharding_type):
            raise ValueError(
                f"`sharding_type` should be one that {self.name!r} knows, {sorted(self.supported or ())}. "
                f"Received {sharding_type!r}."
            )

    def post_process_perfs(
        self,
        shard_perfs: list[Perf],
        shard_sizes: list[list[int]],
        sharding_type: str,
        uneven_sharding_perf_multiplier: float = 1.0,
    ) -> list[Perf]:
        """Return times of parts as they are used: longer, where rows are divided unevenly.

        Args:
            shard_perfs: of each part.
            shard_sizes: rows and columns of each.
            sharding_type: value of a `ShardingType`.
            uneven_sharding_perf_multiplier: how many times longer.
        """
        uneven = sharding_type in _UNEVEN and len({tuple(size) for size in shard_sizes}) > 1
        return [
            perf.scaled(uneven_sharding_perf_multiplier if uneven else 1.0) for perf in shard_perfs
        ]

    def _declared(self, role: str, sharding_type: str) -> PerfCoefficient | None:
        declared = declared_of(type(self), role, sharding_type)
        said = None if declared is None else declared(self)
        if said is None or isinstance(said, PerfCoefficient):
            return said
        raise TypeError(
            f"A method of {type(self).__name__} for coefficients should return a PerfCoefficient. "
            f"Received {type(said).__name__}."
        )


@dataclass
class ShardPerfContext:
    """What is known of a part of a table; fields as the arguments of a topology, a sharder and a wish."""

    sharding_type: str = ""
    compute_kernel: str = ""
    hash_size: int = 0
    emb_dim: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    num_poolings: list[float] = field(default_factory=list)
    input_lengths: list[float] = field(default_factory=list)
    world_size: int = 1
    local_world_size: int = 1
    intra_group_size: int = 1
    input_data_type_size: float = BIGINT_DTYPE
    table_data_type_size: float = 4.0
    output_data_type_size: float = 4.0
    fwd_a2a_comm_data_type_size: float = 4.0
    bwd_a2a_comm_data_type_size: float = 4.0
    fwd_sr_comm_data_type_size: float = 4.0
    bwd_sr_comm_data_type_size: float = 4.0
    device_bw: float = HBM_MEM_BW
    hbm_to_ddr_mem_bw: float = HBM_MEM_BW
    intra_host_bw: float = 0.0
    inter_host_bw: float = 0.0
    comms_bandwidths: GeneralizedCommsBandwidth | None = None
    is_inference: bool = False
    is_weighted: bool = False
    is_pooled: bool = True
    has_feature_processor: bool = False
    bwd_compute_multiplier: float = BWD_COMPUTE_MULTIPLIER
    weighted_feature_bwd_compute_multiplier: float = WEIGHTED_FEATURE_BWD_COMPUTE_MULTIPLIER
    use_linear_regression_prefetch_estimate: bool = False
    use_batch_inputs_for_expected_cache_fetches: bool = False
    caching_ratio: float | None = None
    table_name: str = ""
    hash_size_for_clamping: int = 0
    cache_stats_expected_lookups: float | None = None
    expected_miss_rate: float | None = None

    @property
    def batch_inputs(self) -> float:
        """How many ids one rank asks for."""
        bags = zip(self.batch_sizes, self.num_poolings, self.input_lengths, strict=True)
        return sum(batch * poolings * length for batch, poolings, length in bags)

    @property
    def batch_outputs(self) -> float:
        """How many vectors it gets."""
        if not self.is_pooled:
            return self.batch_inputs
        return sum(b * n for b, n in zip(self.batch_sizes, self.num_poolings, strict=True))

    @property
    def is_uvm_caching(self) -> bool:
        """Whether rows are cached."""
        return self.compute_kernel == "fused_uvm_caching"

    @property
    def num_hosts(self) -> int:
        """How many hosts there are."""
        return max(self.world_size // self.local_world_size, 1)

    @property
    def num_twrw_groups(self) -> int:
        """How many groups of ranks reach each other as within a host."""
        return max(self.world_size // self.intra_group_size, 1)

    @classmethod
    def build_shard_perf_contexts(
        cls,
        config: HardwarePerfConfig,
        shard_sizes: list[list[int]],
        sharding_option: ShardingOption,
        topology: Topology,
        constraints: dict[str, ParameterConstraints] | None,
        sharder_data: SharderData,
        is_inference: bool = False,
        use_batch_inputs_for_expected_cache_fetches: bool = False,
        use_linear_regression_prefetch_estimate: bool = False,
    ) -> list[ShardPerfContext]:
        """Return what is known of each part of a table.

        Args:
            config: what is known of the hardware.
            shard_sizes: rows and columns of each part.
            sharding_option: the way to place the table.
            topology: the ranks.
            constraints: wishes, by name of table.
            sharder_data: what is known of the sharder.
            is_inference: whether there is no backward pass.
            use_batch_inputs_for_expected_cache_fetches: is passed on.
            use_linear_regression_prefetch_estimate: is passed on.
        """
        option, wishes = sharding_option, (constraints or {}).get(sharding_option.name)
        wishes = wishes or ParameterConstraints()
        sizes = sharder_data.qcomm_dtype_sizes
        to_all = sizes.get(CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL.name, (4.0, 4.0))
        scatter = sizes.get(CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER.name, (4.0, 4.0))
        stats = None if option.cache_params is None else option.cache_params.stats
        bandwidth = config.get_device_bw(
            topology.compute_device,
            option.compute_kernel,
            topology.hbm_mem_bw,
            topology.ddr_mem_bw,
            topology.ssd_mem_bw,
            topology.hbm_to_ddr_mem_bw,
            option.cache_load_factor,
        )
        return [
            cls(
                sharding_type=option.sharding_type,
                compute_kernel=option.compute_kernel,
                hash_size=rows,
                emb_dim=columns,
                batch_sizes=wishes.batch_sizes or [option.batch_size] * option.num_inputs,
                num_poolings=wishes.num_poolings or option.num_poolings,
                input_lengths=option.input_lengths,
                world_size=topology.world_size,
                local_world_size=topology.local_world_size,
                intra_group_size=topology.intra_group_size,
                table_data_type_size=option.tensor.element_size(),
                fwd_a2a_comm_data_type_size=to_all[0],
                bwd_a2a_comm_data_type_size=to_all[1],
                fwd_sr_comm_data_type_size=scatter[0],
                bwd_sr_comm_data_type_size=scatter[1],
                device_bw=config.hbm_mem_bw if bandwidth is None else bandwidth,
                hbm_to_ddr_mem_bw=topology.hbm_to_ddr_mem_bw,
                intra_host_bw=topology.intra_host_bw,
                inter_host_bw=topology.inter_host_bw,
                comms_bandwidths=topology.comms_bandwidths,
                is_inference=is_inference,
                is_weighted=wishes.is_weighted or facts_of(option.module[1]).is_weighted,
                is_pooled=option.is_pooled,
                has_feature_processor=option.has_feature_processor,
                bwd_compute_multiplier=topology.bwd_compute_multiplier,
                weighted_feature_bwd_compute_multiplier=(
                    topology.weighted_feature_bwd_compute_multiplier
                ),
                use_linear_regression_prefetch_estimate=use_linear_regression_prefetch_estimate,
                use_batch_inputs_for_expected_cache_fetches=(
                    use_batch_inputs_for_expected_cache_fetches
                ),
                caching_ratio=option.cache_load_factor,
                table_name=option.name,
                hash_size_for_clamping=option.tensor.shape[0],
                cache_stats_expected_lookups=None if stats is None else stats.expected_lookups,
                expected_miss_rate=(
                    None
                    if stats is None or option.cache_load_factor is None
                    else stats.expected_miss_rate(option.cache_load_factor)
                ),
            )
            for rows, columns in shard_sizes
        ]
