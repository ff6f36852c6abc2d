"""Outputs of a model that a metric asks for beside predictions, labels and weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def required_input(
    metric: object, name: str, required_inputs: Mapping[str, Tensor] | None
) -> Tensor:
    """Return an output by name.

    Args:
        metric: who asks for it.
        name: of the output.
        required_inputs: outputs by name.

    Raises:
        ValueError: if it is not there.

    Example:
        >>> required_input("ndcg", "session_id", {"session_id": torch.tensor([1, 2])})
        tensor([1, 2])
    """
    if required_inputs is None or name not in required_inputs:
        raise ValueError(
            f"`required_inputs` of {type(metric).__name__} should have '{name}'. Received "
            f"{sorted(required_inputs or {})}."
        )
    return required_inputs[name].detach()


def per_sample(metric: object, name: str, values: Tensor, labels: Tensor) -> Tensor:
    """Return an output as a row a task: its own, or one for all tasks.

    Args:
        metric: who asks for it.
        name: of the output.
        values: ``(B,)`` or ``(T, B)``.
        labels: ``(T, B)``.

    Raises:
        ValueError: if there is not one for each sample.
    """
    size = labels.shape[-1]
    if values.numel() == size:
        return values.reshape(1, -1).expand(len(labels), -1)
    if values.shape == labels.shape:
        return values
    raise ValueError(
        f"`{name}` of {type(metric).__name__} should have one for each of {size} samples. Received "
        f"{tuple(values.shape)}."
    )


def sample_weights(weights: Tensor | None, labels: Tensor, predictions: Tensor) -> Tensor:
    """Return weights in float64, 1 each if there are none, and NaN where label or prediction is.

    What is no number has no place in an order: so it makes a sum of weights NaN as it would a sum of
    predictions.

    Args:
        weights: ``(T, B)`` or None.
        labels: ``(T, B)``.
        predictions: ``(T, B)``.

    Example:
        >>> sample_weights(None, torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, torch.nan]]))
        tensor([[1., nan]], dtype=torch.float64)
    """
    given = torch.ones_like(labels, dtype=torch.float64) if weights is None else weights.double()
    return torch.where(labels.isnan() | predictions.isnan(), torch.nan, given)
