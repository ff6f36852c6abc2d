"""Losses that compare the samples of a batch, of which each rank has a share."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.training.task import Prediction
from torchrec.training.world import World

__all__ = ["loss_of_ranks"]


def loss_of_ranks(
    prediction: Prediction, total: Tensor | float, world: World, label_smoothing: float = 0.0
) -> Tensor:
    """Return the part that a batch of this rank has in the mean loss of all samples of some batches.

    Where samples are compared with those of other ranks, each rank finds the loss of all of them, and its gradient
    by its own outputs. Their number is that of one process: the loss that is returned is the share of one rank in
    it, its gradient that of the whole, as that of the other ranks goes by their outputs.

    Args:
        prediction: for a task.
        total: the weight of all these samples; see `Task.loss_of`.
        world: the ranks, all of which call this.
        label_smoothing: see `Prediction.loss`. Default 0.

    Example:
        >>> from torchrec.training.task import Task
        >>> from torchrec.training.world import ALONE
        >>> outputs, targets = torch.zeros(2), torch.tensor([0.0, 1.0])
        >>> loss_of_ranks(Prediction(Task(), outputs, targets, None), 2, ALONE)  # log(2)
        tensor(0.6931)
    """
    if world.size == 1 or prediction.groups is None:
        return prediction.loss(total, label_smoothing)
    loss = _of_all(prediction, world).loss(total, label_smoothing)
    return loss - (loss * (1.0 - 1.0 / world.size)).detach()


def _of_all(prediction: Prediction, world: World) -> Prediction:
    """Return the samples of all ranks, in their order; only this rank's outputs have a gradient."""
    own = prediction._replace(outputs=prediction.outputs.detach())
    of_ranks = world.gather(own[1:], "samples that are compared")
    outputs, targets, weights, groups = zip(*of_ranks, strict=True)
    parts = [*outputs[: world.rank], prediction.outputs, *outputs[world.rank + 1 :]]
    return prediction._replace(
        outputs=torch.cat(parts),
        targets=torch.cat(targets),
        weights=None if prediction.weights is None else torch.cat(weights),
        groups=torch.cat(groups),
    )
