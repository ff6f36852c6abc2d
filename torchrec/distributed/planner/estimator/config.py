"""Hardware of which nothing else is known."""

from __future__ import annotations

from torchrec.distributed.planner.estimator.types import HardwarePerfConfig, PerfCoefficientConfig

__all__ = ["EmbeddingPerfEstimatorConfig"]


class EmbeddingPerfEstimatorConfig(HardwarePerfConfig):
    """Every byte counts once."""

    @property
    def coefficients(self) -> PerfCoefficientConfig:
        """Of all sharding types alike."""
        return PerfCoefficientConfig()
