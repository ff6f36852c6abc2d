"""What metrics ask of the samples of some tasks: sums over a batch, and areas under curves.

All take predictions and labels ``(T, B)``, and weights alike or None, which counts 1 each; all results are in
float64. Nothing is differentiable.
"""

from torchrec.ops.metrics.schema import (
    cross_entropy_sums,
    roc_areas,
    threshold_sums,
    weighted_sums,
)

__all__ = ["cross_entropy_sums", "roc_areas", "threshold_sums", "weighted_sums"]
