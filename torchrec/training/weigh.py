"""How much the samples of a step weigh, which their mean loss is divided by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.datasets.utils import Batch
from torchrec.training.fit_state import Progress
from torchrec.training.task import Task
from torchrec.training.world import World


def weigh(
    group: Sequence[Batch], tasks: Sequence[Task], world: World, progress: Progress
) -> tuple[int, Tensor | float]:
    """Check the batches of a step, and return how many samples all ranks have, and what a rank's weigh on average.

    Args:
        group: the batches of this rank.
        tasks: what is learned from them.
        world: the ranks.
        progress: before the step.

    Raises:
        ValueError: on all ranks, if nothing can be learned from a batch of one, or none has a sample.
    """
    if world.size == 1:
        return _checked(group, tasks, world, progress)
    samples, weight, error = 0, 0.0, None
    try:
        samples, own = _checked(group, tasks, world, progress)
        weight = float(own) if samples else 0.0
    except (ValueError, TypeError) as failed:
        error = failed
    # The one message of a step that is no exchange of vectors or gradients.
    totals = world.total([samples, weight], f"step {progress.step + 1}", error)
    if not totals[0]:
        raise ValueError(
            "`train` should give batches with samples on some rank. Received none for step "
            f"{progress.step + 1}."
        )
    return int(totals[0]), totals[1] / world.size


def _checked(
    group: Sequence[Batch], tasks: Sequence[Task], world: World, progress: Progress
) -> tuple[int, Tensor | int]:
    """Check the batches of a step, and return how many samples they have, and what these weigh."""
    sizes = [tasks[0].target_of(batch).numel() for batch in group]
    if min(sizes) == 0 and world.size == 1:
        raise ValueError(
            f"`train` should give batches with samples. Received none for step {progress.step + 1}."
        )
    for number, batch in enumerate(group, progress.batch + 1):
        for task in tasks:
            task.check(batch, f"batch {number} of epoch {progress.epoch + 1}")
    return sum(sizes), _total_weight(group, sum(sizes))


def _total_weight(group: Sequence[Batch], samples: int) -> Tensor | int:
    """Return what the samples of a step weigh together."""
    weights = [batch.weights for batch in group if batch.weights is not None]
    if not weights:
        return samples
    if len(weights) < len(group):
        raise ValueError(
            f"The batches of a step should all have weights, or none. Received {len(group)} batches, "
            f"{len(weights)} of them with weights."
        )
    # Samples that all weigh nothing have no loss, rather than one that is no number.
    total = torch.stack([each.sum(dtype=torch.float32) for each in weights]).sum()
    return total.clamp(min=torch.finfo(torch.float32).tiny)
