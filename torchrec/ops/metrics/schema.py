"""The operators of metrics in the dispatcher: schemas and shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import define
from torchrec.ops.metrics import native, reference

_SAMPLES = "Tensor predictions, Tensor labels, Tensor? weights"


def _fake(results: tuple[int, ...]) -> Any:
    def shapes(
        predictions: Tensor, labels: Tensor, weights: Tensor | None, *options: float
    ) -> Tensor:
        reference.require_samples(predictions, labels, weights)
        return predictions.new_empty((*results, predictions.shape[0]), dtype=torch.float64)

    return shapes


weighted_sums: Any = define(
    f"weighted_sums({_SAMPLES}) -> Tensor",
    reference=reference.weighted_sums,
    fake=_fake((5,)),
    native_kernel=native.weighted_sums,
)
cross_entropy_sums: Any = define(
    f"cross_entropy_sums({_SAMPLES}, float eta) -> Tensor",
    reference=reference.cross_entropy_sums,
    fake=_fake(()),
    native_kernel=native.cross_entropy_sums,
)
threshold_sums: Any = define(
    f"threshold_sums({_SAMPLES}, float threshold) -> Tensor",
    reference=reference.threshold_sums,
    fake=_fake((4,)),
    native_kernel=native.threshold_sums,
)
roc_areas: Any = define(
    f"roc_areas({_SAMPLES}) -> Tensor",
    reference=reference.roc_areas,
    fake=_fake(()),
    native_kernel=native.roc_areas,
)
