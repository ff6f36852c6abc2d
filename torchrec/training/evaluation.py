"""The metrics of a model as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn

from torchrec.datasets.utils import Batch
from torchrec.metrics import Report
from torchrec.metrics.report import join_reports
from torchrec.training.compared import loss_of_ranks
from torchrec.training.task import Task, predictions_of
from torchrec.training.task_metrics import TaskMetrics
from torchrec.training.world import ALONE, World


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        report: the metrics, with curves.
        loss: the mean loss; of several tasks the sum of their means.
        samples_per_second: how fast it was.
    """

    report: Report
    loss: float
    samples_per_second: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    tasks: Sequence[Task],
    data: Iterable[Batch],
    place: Callable[[Batch], Batch],
    world: World = ALONE,
) -> Evaluation:
    """Evaluate a model in evaluation mode, as it is saved and will predict: in float32, not compiled.

    Args:
        model: the model, in evaluation mode.
        tasks: what it predicts.
        data: batches.
        place: brings a batch to the device of the model.
        world: the ranks that evaluate together, each its share of the data, in as many batches. Default:
            this process alone.

    Raises:
        ValueError: if there are no samples, or an output is NaN.
    """
    began = perf_counter()
    metrics = {task.target: TaskMetrics(task) for task in tasks}
    # Losses that no metric tells are summed over the samples.
    unmeasured = [
        task for task in tasks if task.measured_loss not in metrics[task.target].compute()
    ]
    sums = {task.target: torch.zeros((), dtype=torch.float64) for task in unmeasured}
    samples, weight = 0.0, torch.zeros((), dtype=torch.float64)
    for batch in map(place, data):
        output = model(batch.dense_features, batch.sparse_features)
        predictions = predictions_of(output, tasks, batch)
        size = predictions[0].targets.numel()
        samples += size
        for each in predictions:
            metrics[each.task.target].update(each, batch.groups)
            # Of samples that are compared, a rank that has none hears as well.
            if each.task in unmeasured and (size or each.groups is not None):
                sums[each.task.target] = sums[each.task.target] + loss_of_ranks(each, 1, world)
        if unmeasured:
            weight = weight + (
                size if batch.weights is None else batch.weights.sum(dtype=torch.float64)
            )
    totals = [samples, float(weight), *(float(sums[task.target]) for task in unmeasured)]
    samples, of_all, *losses = world.total(totals, "an evaluation")
    if not samples:
        raise ValueError("`data` should have samples to evaluate on. Received none.")
    metrics, *rest = world.gather(metrics, "metrics of an evaluation")
    for other in rest:
        for target, merged in metrics.items():
            merged.merge(other[target])
    reports = {target: each.compute(curves=True) for target, each in metrics.items()}
    means = {task.target: loss / of_all for task, loss in zip(unmeasured, losses, strict=True)}
    loss = sum(
        means[task.target] if task in unmeasured
        else reports[task.target][str(task.measured_loss)]
        for task in tasks
    )  # fmt: skip
    seconds = perf_counter() - began
    return Evaluation(join_reports(reports), loss, samples / max(seconds, 1e-9))
