"""Sums and areas of tasks in plain PyTorch: the specification, right on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def require_samples(predictions: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    """Refuse what is not of the same samples of the same tasks."""
    if predictions.dim() != 2:
        raise ValueError(
            f"`predictions` should be two-dimensional. Received {list(predictions.shape)}."
        )
    for name, x in (("labels", labels), ("weights", weights)):
        if x is not None and x.shape != predictions.shape:
            raise ValueError(
                f"`{name}` should be {list(predictions.shape)}, as `predictions`. Received {list(x.shape)}."
            )


def require_eta(eta: float) -> None:
    """Refuse bounds that leave nothing between them."""
    if not 0 < eta < 0.5:
        raise ValueError(f"`eta` should be above 0 and below 0.5. Received {eta}.")


def _in_double(
    predictions: Tensor, labels: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    require_samples(predictions, labels, weights)
    labels = labels.double()
    return (
        predictions.double(),
        labels,
        torch.ones_like(labels) if weights is None else weights.double(),
    )


def weighted_sums(predictions: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sums of weight, and of weight times label, prediction, squared and absolute error, ``(5, T)``."""
    p, y, w = _in_double(predictions, labels, weights)
    error = y - p
    summed = (w, w * y, w * p, w * error.square(), w * error.abs())
    return torch.stack([x.sum(-1) for x in summed])


def cross_entropy_sums(
    predictions: Tensor, labels: Tensor, weights: Tensor | None, eta: float
) -> Tensor:
    """Return the sum of cross-entropies in bits, ``(T,)``; predictions are taken to lie between eta and 1 - eta."""
    require_eta(eta)
    p, y, w = _in_double(predictions, labels, weights)
    p = p.clamp(eta, 1 - eta)
    yes, no = p.log2(), (1 - p).log2()
    # A label that is no number makes a sum of both, as it would not where it is between them.
    likelihood = torch.where(y == 1, yes, torch.where(y == 0, no, y * yes + (1 - y) * no))
    return -(w * likelihood).sum(-1)


def threshold_sums(
    predictions: Tensor, labels: Tensor, weights: Tensor | None, threshold: float
) -> Tensor:
    """Return the weight of true positives, false positives, false negatives and what is right, ``(4, T)``.

    Chosen is what reaches the threshold, which is of the type of the predictions. A prediction or a label that is
    not finite makes the sums of its task NaN.
    """
    p, y, w = _in_double(predictions, labels, weights)
    dtype = predictions.dtype
    rounded = torch.tensor(threshold, dtype=dtype if dtype.is_floating_point else None).item()
    chosen = p >= rounded
    positive = w * y
    summed = (
        torch.where(chosen, positive, 0.0),
        torch.where(chosen, w - positive, 0.0),
        torch.where(chosen, 0.0, positive),
        torch.where(chosen.double() == y, w, 0.0),
    )
    return torch.stack([x.sum(-1) for x in summed]) + ((p + y) * 0.0).sum(-1)


def roc_areas(predictions: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the area under the ROC curve, ``(T,)``.

    The share of pairs of a positive and a negative that are in order, a tie half a one. With labels between 0 and
    1, a sample is so much of a positive, and the rest of it a negative. 0.5 without either class, NaN with a NaN.
    """
    p, y, w = _in_double(predictions, labels, weights)
    found = [_area(*rows) for rows in zip(p, y, w, strict=True)]
    return torch.stack(found) if found else p.new_empty(0)


def _area(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    order = scores.argsort()
    scores = scores[order]
    positives = (weights * labels)[order]
    negatives = weights[order] - positives
    # Runs of one score: all of one count as tied.
    last = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    last[:-1] = scores[1:] != scores[:-1]
    below = torch.cat((negatives.new_zeros(1), negatives.cumsum(0)[last]))
    up_to = torch.cat((positives.new_zeros(1), positives.cumsum(0)[last]))
    area = (up_to.diff() * (below[1:] + below[:-1])).sum() / 2
    pairs = up_to[-1] * below[-1]
    value = torch.where(pairs == 0, 0.5, area / pairs)
    # A NaN is the last of the scores in order.
    return torch.where(scores[-1:].isnan().any(), torch.nan, value)
