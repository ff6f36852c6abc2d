"""Models that take one object with all of a batch, as generated batches of benchmarks are."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from torchrec.fx.proxies import is_proxy
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class ModelInput(Protocol):
    """What the models read of a batch."""

    @property
    def float_features(self) -> Tensor:
        """Dense features, ``(B, dense features)``."""

    @property
    def idlist_features(self) -> KeyedJaggedTensor:
        """Ids."""

    @property
    def label(self) -> Tensor:
        """Labels ``(B,)`` between 0 and 1; read while training."""


def loss_and_predictions(predictions: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of predictions taken as logits, and them, detached.

    Args:
        predictions: ``(B, 1)``.
        label: ``(B,)``.

    Raises:
        ValueError: there is not one label a sample.
    """
    logits = predictions.squeeze(-1)
    if not is_proxy(label) and label.shape != logits.shape:
        raise ValueError(
            f"`label` should have shape ({logits.size(0)},). Received {tuple(label.shape)}."
        )
    return binary_cross_entropy_with_logits(logits, label.to(logits.dtype)), predictions.detach()


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean loss by weight. A graph comes here with batches that have no weights, too.

    Args:
        logits: ``(B,)``.
        labels: ``(B,)`` between 0 and 1.
        weights: ``(B,)``; None: all samples count the same.
    """
    if weights is None:
        return binary_cross_entropy_with_logits(logits, labels.float())
    weights = weights.to(logits.dtype)
    losses = binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    return losses @ weights / weights.sum()
