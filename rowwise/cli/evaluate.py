"""``torchrec evaluate``: the metrics of a trained model on files."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowwise.cli.console import console, is_first_rank, table
from rowwise.cli.reading import RANKS_WAIT, open_source, say_counts

if TYPE_CHECKING:
    from rich.table import Table

    from torchrec.datasets.source import TableSource
    from torchrec.datasets.synthetic import Limits
    from torchrec.metrics import Report


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
) -> None:
    """Measure a trained model on data with labels.

    Label and rows to leave out are those of the experiment. Of generated data, what is best possible
    stands beside. Under torchrun, each rank measures its share.

    $ torchrec evaluate runs/experiment test.parquet
    $ torchrec evaluate runs/experiment 'log/day_*.parquet' --json result.json
    """
    import torch

    from torchrec.checks import did_you_mean
    from torchrec.datasets.transform.labels import Label
    from torchrec.files import write_file
    from torchrec.heap import keep_freed_memory
    from torchrec.inference import load
    from torchrec.metrics import BinaryMetrics
    from torchrec.training.ranks import joined_ranks

    keep_freed_memory()
    predictor = load(run)
    section = predictor.experiment.data
    source = open_source(data, predictor, section.drop)
    label = Label(section.label)
    if not set(label.columns) & set(source.names):
        raise ValueError(
            f"Data to evaluate on should have the label, `data.label` '{label.text}' of the experiment. "
            f"Received '{source.files[0].path}' without '{label.columns[0]}'"
            f"{did_you_mean(label.columns[0], source.names) or ';'} `torchrec predict` needs none."
        )
    source.require(label.columns, f"`data.label` '{label.text}' of the experiment")
    columns = list(dict.fromkeys([*predictor.input_columns, *label.columns]))
    with joined_ranks(RANKS_WAIT) as world:
        metrics = BinaryMetrics()
        for part in islice(source.scan(columns), world.rank, None, world.size):
            metrics.update(predictor.logits(part), torch.from_numpy(label.read(part)))
        metrics, *others = world.gather(metrics, "metrics")
        for other in others:
            metrics.merge(other)
        report = metrics.compute()
        console().print(_table(report, _limits(source)))
        say_counts(predictor, source, world)
    for name, why in report.undefined.items():
        console().print(f"{name} is not defined: {why}", markup=False)
    if json_file is not None and is_first_rank():
        write_file(json_file, json.dumps(report.to_json(), indent=2) + "\n")


def _limits(source: TableSource) -> Limits | None:
    """Return what is best possible, if the data are one generated file."""
    from torchrec.datasets.synthetic import read_limits

    if len(source.files) != 1 or source.files[0].format != "parquet":
        return None
    return read_limits(source.files[0].path)


def _table(report: Report, limits: Limits | None) -> Table:
    head = [f"{report.samples:,} rows", "", "best possible"][: 2 if limits is None else 3]
    best = {} if limits is None else asdict(limits)
    return table(
        head,
        [
            [name, f"{getattr(report, key):.4f}", f"{best[key]:.4f}" if key in best else ""][
                : len(head)
            ]
            for key, name in (
                ("auc", "AUC"),
                ("ne", "normalised entropy"),
                ("logloss", "log loss"),
                ("calibration", "calibration"),
            )
        ],
    )
