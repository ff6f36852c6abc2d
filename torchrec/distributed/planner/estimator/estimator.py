"""Estimates by what is known of hardware."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, TypeVar

from torchrec.distributed.planner import shard_estimators
from torchrec.distributed.planner._interfaces import SharderData, ShardEstimator
from torchrec.distributed.planner._options import ParameterConstraints, ShardingOption
from torchrec.distributed.planner._topology import Perf, Topology
from torchrec.distributed.planner.estimator._declared import declared_of
from torchrec.distributed.planner.estimator.config import EmbeddingPerfEstimatorConfig
from torchrec.distributed.planner.estimator.types import (
    HardwarePerfConfig,
    PerfCoefficient,
    ShardPerfContext,
)
from torchrec.distributed.types import ShardingType

__all__ = ["EmbeddingPerfEstimator", "EmbeddingPerfEstimatorFactory", "EmbeddingPerfEstimatorV2"]

C = TypeVar("C", bound=HardwarePerfConfig)


class EmbeddingPerfEstimator(ShardEstimator):
    """Milliseconds of a step: exchanges as `shard_estimators.EmbeddingPerfEstimator` has them, look-ups by hardware.

    Args:
        topology: the ranks.
        constraints: wishes, by name of table.
        is_inference: whether there is no backward pass.
        config: what is known of the hardware. Default: every byte counts once.
        use_batch_inputs_for_expected_cache_fetches: whether all ids count as fetched, where a cache is filled ahead;
            else those that are expected to be distinct.
        use_linear_regression_prefetch_estimate: whether filling a cache takes what the `PrefetchCoefficients` say.
    """

    def __init__(
        self,
        topology: Topology,
        constraints: dict[str, ParameterConstraints] | None = None,
        is_inference: bool = False,
        config: HardwarePerfConfig | None = None,
        use_batch_inputs_for_expected_cache_fetches: bool = False,
        use_linear_regression_prefetch_estimate: bool = False,
    ) -> None:
        self._topology, self._constraints = topology, constraints
        self._is_inference = is_inference
        self._config = config or EmbeddingPerfEstimatorConfig()
        self._all_fetched = use_batch_inputs_for_expected_cache_fetches
        self._by_coefficients = use_linear_regression_prefetch_estimate
        self._exchanges = shard_estimators.EmbeddingPerfEstimator(
            topology, constraints, is_inference, counts_unevenness=False
        )

    @property
    def config(self) -> HardwarePerfConfig:
        """What is known of the hardware."""
        return self._config

    @property
    def is_inference(self) -> bool:
        """Whether there is no backward pass."""
        return self._is_inference

    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: dict[str, SharderData]
    ) -> None:
        """Write ``perf`` into each part; the arguments as those of `ShardEstimator.estimate`.

        Raises:
            ValueError: if the hardware does not know a sharding type.
        """
        for option in sharding_options:
            self._config.validate_sharding_type(option.sharding_type)
        self._exchanges.estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            sizes = [shard.size for shard in option.shards]
            contexts = ShardPerfContext.build_shard_perf_contexts(
                self._config,
                sizes,
                option,
                self._topology,
                self._constraints,
                sharder_data_map[option.module_type_key],
                self._is_inference,
                self._all_fetched,
                self._by_coefficients,
            )
            perfs = [
                self._perf(context, shard.perf or Perf(0, 0, 0, 0), option)
                for context, shard in zip(contexts, option.shards, strict=True)
            ]
            perfs = self._config.post_process_perfs(
                perfs, sizes, option.sharding_type, self._topology.uneven_sharding_perf_multiplier
            )
            for shard, perf in zip(option.shards, perfs, strict=True):
                shard.perf = perf

    def _perf(self, context: ShardPerfContext, exchanged: Perf, option: ShardingOption) -> Perf:
        forward = self._forward(context, option)
        return replace(
            exchanged,
            fwd_compute=forward,
            bwd_compute=0.0 if self._is_inference else self._backward(context, forward, option),
            prefetch_compute=self._prefetch(context),
        )

    def _forward(self, context: ShardPerfContext, option: ShardingOption) -> float:
        said = declared_of(type(self._config), "forward", context.sharding_type)
        if said is not None:
            return _number(said(self._config, context))
        found = self._config.get_coefficients_for_sharding(
            context.sharding_type, context.compute_kernel
        )
        time = self._bytes(context, found.fwd, option) / context.device_bw
        return time * (
            self._config.coefficients.weighted_kernel_multiplier if context.is_weighted else 1.0
        )

    def _backward(self, context: ShardPerfContext, forward: float, option: ShardingOption) -> float:
        said = declared_of(type(self._config), "backward", context.sharding_type)
        if said is not None:
            return _number(said(self._config, context))
        found = self._config.get_coefficients_for_sharding(
            context.sharding_type, context.compute_kernel
        )
        if found.bwd is not None:
            time = self._bytes(context, found.bwd, option) / context.device_bw
        else:
            factor = self._config.get_bwd_compute_multiplier(context.bwd_compute_multiplier)
            time = forward * factor
        if context.is_weighted:
            time *= self._config.get_weighted_feature_bwd_compute_multiplier(
                context.weighted_feature_bwd_compute_multiplier
            )
        return time

    def _bytes(
        self, context: ShardPerfContext, coefficient: PerfCoefficient, option: ShardingOption
    ) -> float:
        is_copy = context.sharding_type == ShardingType.DATA_PARALLEL.value
        asking = 1 if is_copy else context.world_size
        rows = option.tensor.shape[0]
        share = context.hash_size / rows if rows else 0.0
        ids = asking * context.batch_inputs * share
        said = declared_of(type(self._config), "output", context.sharding_type)
        written = (
            asking * context.batch_outputs * context.emb_dim * context.output_data_type_size
            if said is None
            else _number(said(self._config, context))
        )
        row_bytes = context.emb_dim * context.table_data_type_size
        return (
            coefficient.input_read_size_multiplier * ids * context.input_data_type_size
            + coefficient.lookup_size_multiplier * ids * row_bytes
            + coefficient.embedding_output_multiplier * written
            + coefficient.hash_size_multiplier * context.hash_size * row_bytes
        )

    def _prefetch(self, context: ShardPerfContext) -> float:
        """Return what filling a cache ahead of the step takes; nothing, where it is not known how rows are cached."""
        lookups, misses = context.cache_stats_expected_lookups, context.expected_miss_rate
        if not context.is_uvm_caching or lookups is None or misses is None:
            return 0.0
        ids = context.world_size * context.batch_inputs
        fetched = (ids if self._all_fetched else lookups) * misses
        size = fetched * context.emb_dim * context.table_data_type_size
        said = declared_of(type(self._config), "prefetch", context.sharding_type)
        found = self._config.coefficients.prefetch if said is None else said(self._config)
        if self._by_coefficients and found is not None:
            return _number(
                ids * getattr(found, "expected_num_lookups_coefficient", 0.0)
                + lookups * getattr(found, "expected_num_unique_lookups_coefficient", 0.0)
                + size * getattr(found, "expected_size_cache_fetches_coefficient", 0.0)
            )
        return size / context.hbm_to_ddr_mem_bw


EmbeddingPerfEstimatorV2 = EmbeddingPerfEstimator


class EmbeddingPerfEstimatorFactory:
    """Estimators of hardware that is registered under a name."""

    _known: ClassVar[dict[str, type[HardwarePerfConfig]]] = {
        "default": EmbeddingPerfEstimatorConfig
    }

    @classmethod
    def register(cls, name: str) -> Callable[[type[C]], type[C]]:
        """Register a class of hardware.

        Args:
            name: under which it is found.
        """

        def registered(config: type[C]) -> type[C]:
            cls._known[name] = config
            return config

        return registered

    @classmethod
    def is_registered(cls, name: str) -> bool:
        """Say whether there is hardware of that name."""
        return name in cls._known

    @classmethod
    def list_registered(cls) -> list[str]:
        """Return all names."""
        return sorted(cls._known)

    @classmethod
    def create(
        cls,
        hardware_name: str,
        is_inference: bool = False,
        topology: Topology | None = None,
        constraints: dict[str, ParameterConstraints] | None = None,
        use_batch_inputs_for_expected_cache_fetches: bool = False,
        use_linear_regression_prefetch_estimate: bool = False,
    ) -> EmbeddingPerfEstimator:
        """Return the estimator of hardware; the other arguments as those of `EmbeddingPerfEstimator`.

        Raises:
            ValueError: if there is no hardware of that name.
        """
        if hardware_name not in cls._known:
            raise ValueError(
                f"`hardware_name` should be one of {', '.join(cls.list_registered())}. "
                f"Received {hardware_name!r}."
            )
        return cls.create_with_config(
            cls._known[hardware_name](),
            is_inference,
            topology,
            constraints,
            use_batch_inputs_for_expected_cache_fetches,
            use_linear_regression_prefetch_estimate,
        )

    @classmethod
    def create_with_config(
        cls,
        config: HardwarePerfConfig,
        is_inference: bool = False,
        topology: Topology | None = None,
        constraints: dict[str, ParameterConstraints] | None = None,
        use_batch_inputs_for_expected_cache_fetches: bool = False,
        use_linear_regression_prefetch_estimate: bool = False,
    ) -> EmbeddingPerfEstimator:
        """Return the estimator of hardware that need not be registered.

        Raises:
            ValueError: if there is no topology.
        """
        if topology is None:
            raise ValueError(
                "`topology` should be given: the ranks that are estimated. Received None."
            )
        return EmbeddingPerfEstimator(
            topology,
            constraints,
            is_inference,
            config,
            use_batch_inputs_for_expected_cache_fetches,
            use_linear_regression_prefetch_estimate,
        )


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(
            f"What a class of hardware declares should return a number. Received {type(value).__name__}."
        )
    return float(value)
