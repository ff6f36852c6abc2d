"""Estimates by what is known of hardware: coefficients, bandwidths, methods of your own."""

from __future__ import annotations

from torchrec.distributed.planner.estimator.annotations import (
    backward_compute,
    bwd_coefficient,
    device_bw,
    forward_compute,
    fwd_coefficient,
    output_write_size,
    prefetch_coefficient,
    ssd_mem_bw,
    supported_sharding_types,
)
from torchrec.distributed.planner.estimator.config import EmbeddingPerfEstimatorConfig
from torchrec.distributed.planner.estimator.estimator import (
    EmbeddingPerfEstimatorFactory,
    EmbeddingPerfEstimatorV2,
)
from torchrec.distributed.planner.estimator.types import (
    EstimatorPerfCoefficients,
    HardwarePerfConfig,
    PerfCoefficient,
    PerfCoefficientConfig,
    PrefetchCoefficients,
    ShardPerfContext,
)

__all__ = [
    "EmbeddingPerfEstimatorConfig",
    "EmbeddingPerfEstimatorFactory",
    "EmbeddingPerfEstimatorV2",
    "EstimatorPerfCoefficients",
    "HardwarePerfConfig",
    "PerfCoefficient",
    "PerfCoefficientConfig",
    "PrefetchCoefficients",
    "ShardPerfContext",
    "backward_compute",
    "bwd_coefficient",
    "device_bw",
    "forward_compute",
    "fwd_coefficient",
    "output_write_size",
    "prefetch_coefficient",
    "ssd_mem_bw",
    "supported_sharding_types",
]
