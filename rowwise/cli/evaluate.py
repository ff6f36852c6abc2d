"""``torchrec evaluate``: the metrics of a trained model on files."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowwise.cli.console import console, is_first_rank, table
from rowwise.cli.reading import RANKS_WAIT, open_source, say_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pyarrow as pa
    from rich.table import Table
    from torch import nn

    from torchrec.datasets.source import TableSource
    from torchrec.datasets.synthetic import Limits
    from torchrec.datasets.utils import Batch
    from torchrec.metrics import Report
    from torchrec.training.task import Task
    from torchrec.training.task_metrics import TaskMetrics


_BATCH = 8192


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Parquet, CSV or TSV: files, folders, patterns.",
            show_default=False,
        ),
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to a file, too.")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            help="Further metrics within groups: 'ndcg@10(list)'; repeatable.",
        ),
    ] = None,
) -> None:
    """Measure a trained model on data with labels.

    Label and rows to leave out are those of the experiment. Of generated data, what is best possible
    stands beside. Lists of candidates are a row a candidate, with a column that tells the lists apart.
    Under torchrun, each rank measures its share.

    $ torchrec evaluate runs/experiment test.parquet
    $ torchrec evaluate runs/experiment 'log/day_*.parquet' --json result.json
    $ torchrec evaluate runs/experiment lists.csv --metrics 'ndcg@10(list)'
    """
    from torchrec.checks import did_you_mean
    from torchrec.datasets.transform import GroupedTransform
    from torchrec.experiment.sources import with_drawn_negatives
    from torchrec.files import write_file
    from torchrec.heap import keep_freed_memory
    from torchrec.inference import load
    from torchrec.metrics import GroupedMetrics
    from torchrec.metrics.report import join_reports
    from torchrec.training.ranks import joined_ranks
    from torchrec.training.run_tasks import tasks_of

    keep_freed_memory()
    predictor = load(run)
    experiment = predictor.experiment.with_metrics(more or [])
    section = experiment.data
    source = with_drawn_negatives(open_source(data, predictor, run, section.drop), section)
    transform = predictor.transform
    labels = {
        "`data.label`" if section.label else f"`tasks.{name}.label`": label
        for name, label in transform.labels.items()
    }
    for key, label in labels.items():
        if not set(label.columns) & set(source.names):
            raise ValueError(
                f"Data to evaluate on should have the label, {key} '{label.text}' of the experiment. "
                f"Received '{source.files[0].path}' without '{label.columns[0]}'"
                f"{did_you_mean(label.columns[0], source.names) or ';'} `torchrec predict` needs none."
            )
        source.require(label.columns, f"{key} '{label.text}' of the experiment")
    groups = GroupedMetrics(experiment.group_metrics).columns
    source.require(groups, "`--metrics`" if more else "`metrics` of the experiment")
    grouped = GroupedTransform(transform, groups)
    tasks = tasks_of(experiment)
    with joined_ranks(RANKS_WAIT) as world:
        mine = islice(source.scan(grouped.columns), world.rank, None, world.size)
        measured = partial(_measured, predictor.model, tasks, _batches(grouped, mine))
        metrics, *others = world.each(measured, "an evaluation")
        for other in others:
            for name, found in other.items():
                metrics[name].merge(found)
        report = join_reports({name: found.compute(curves=True) for name, found in metrics.items()})
        console().print(_table(report, _limits(source)))
        say_counts(predictor, source, world)
    for name, why in report.undefined.items():
        console().print(f"{name} is not defined: {why}", markup=False)
    if json_file is not None and is_first_rank():
        write_file(json_file, json.dumps(report.to_json(), indent=2) + "\n")


def _measured(
    model: nn.Module, tasks: Sequence[Task], batches: Iterable[Batch]
) -> dict[str, TaskMetrics]:
    """Return the metrics of each target."""
    import torch

    from torchrec.training.task import predictions_of
    from torchrec.training.task_metrics import TaskMetrics

    metrics = {task.target: TaskMetrics(task) for task in tasks}
    for batch in batches:
        with torch.inference_mode():
            output = model(batch.dense_features, batch.sparse_features)
            for each in predictions_of(output, tasks, batch):
                metrics[each.task.target].update(each, batch.groups)
    return metrics


def _batches(transform: Callable[[pa.Table], Batch], tables: Iterable[pa.Table]) -> Iterator[Batch]:
    """Give the rows of tables some thousand at a time."""
    for part in tables:
        for start in range(0, part.num_rows, _BATCH):
            yield transform(part.slice(start, _BATCH))


def _limits(source: TableSource) -> Limits | None:
    """Return what is best possible, if the data are one generated file."""
    from torchrec.datasets.synthetic import read_limits

    if len(source.files) != 1 or source.files[0].format != "parquet":
        return None
    return read_limits(source.files[0].path)


def _table(report: Report, limits: Limits | None) -> Table:
    from torchrec.metrics.interval import metric_text
    from torchrec.metrics.names import title_of

    head = [f"{rows_of(report):,.0f} rows", "", "best possible"][: 2 if limits is None else 3]
    best = {} if limits is None else asdict(limits)
    return table(
        head,
        [
            [title_of(key), _number(report, key), metric_text(best[key]) if key in best else ""][
                : len(head)
            ]
            for key in report
        ],
    )


def rows_of(report: Report) -> float:
    """Return how many rows a report is of; each task is measured on all."""
    return next(value for name, value in report.counts.items() if name.endswith("samples"))


def _number(report: Report, name: str) -> str:
    """Write a metric, with its interval of 95 % if it has one."""
    from torchrec.metrics.interval import metric_text

    interval = report.intervals.get(name)
    value = report[name]
    if interval is None:
        return metric_text(value)
    low, high = (metric_text(end, value) for end in (interval.low, interval.high))
    return f"{metric_text(value)} [{low}, {high}]"
