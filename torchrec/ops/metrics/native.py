"""Sums and areas of tasks on the native library, of float32; others take plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops.metrics import reference

_lib: Any = native


def _is_plain(predictions: Tensor, labels: Tensor, weights: Tensor | None) -> bool:
    float32 = torch.float32
    return (
        predictions.dtype is float32
        and labels.dtype is float32
        and (weights is None or weights.dtype is float32)
    )


def _fill(
    kernel: Any,
    predictions: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    results: tuple[int, ...],
    *options: float,
) -> Tensor:
    """Have a kernel write results of every task, ``(*results, T)``."""
    reference.require_samples(predictions, labels, weights)
    predictions, labels = predictions.contiguous(), labels.contiguous()
    weights = None if weights is None else weights.contiguous()
    tasks, samples = predictions.shape
    found = predictions.new_empty((*results, tasks), dtype=torch.float64)
    kernel(
        predictions.data_ptr(),
        labels.data_ptr(),
        0 if weights is None else weights.data_ptr(),
        tasks,
        samples,
        *options,
        found.data_ptr(),
        torch.get_num_threads(),
    )
    return found


def weighted_sums(predictions: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """See ``reference.weighted_sums``."""
    if not _is_plain(predictions, labels, weights):
        return reference.weighted_sums(predictions, labels, weights)
    return _fill(_lib.weighted_sums, predictions, labels, weights, (5,))


def cross_entropy_sums(
    predictions: Tensor, labels: Tensor, weights: Tensor | None, eta: float
) -> Tensor:
    """See ``reference.cross_entropy_sums``."""
    if not _is_plain(predictions, labels, weights):
        return reference.cross_entropy_sums(predictions, labels, weights, eta)
    reference.require_eta(eta)
    return _fill(_lib.cross_entropy_sums, predictions, labels, weights, (), eta)


def threshold_sums(
    predictions: Tensor, labels: Tensor, weights: Tensor | None, threshold: float
) -> Tensor:
    """See ``reference.threshold_sums``."""
    if not _is_plain(predictions, labels, weights):
        return reference.threshold_sums(predictions, labels, weights, threshold)
    return _fill(_lib.threshold_sums, predictions, labels, weights, (4,), threshold)


def roc_areas(predictions: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """See ``reference.roc_areas``."""
    if not _is_plain(predictions, labels, weights):
        return reference.roc_areas(predictions, labels, weights)
    return _fill(_lib.roc_areas, predictions, labels, weights, ())
