"""``torchrec quantize``: a trained model with tables of fewer bits, and what it loses by them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowwise.cli.console import console, table
from rowwise.cli.evaluate import rows_of
from rowwise.cli.reading import open_source

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from torchrec.datasets.source import TableSource
    from torchrec.inference import Predictor
    from torchrec.metrics import Report

_BATCH = 8192


class Precision(str, Enum):
    """What the numbers of tables become."""

    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"
    FP16 = "fp16"
    BF16 = "bf16"


def quantize(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of the run.", show_default=False)
    ],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="Data with labels to compare on: files, folders, patterns. Default: the validation data of the run.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[Precision, typer.Option(help="Bits of the tables.")] = Precision.INT8,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the new bundle. Default: model-int8, say, in the run.",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[
        bool,
        typer.Option(
            "--clip", help="Search for the bounds of each row that lose least: with few bits."
        ),
    ] = False,
) -> None:
    """Write a bundle of a trained model with smaller tables, and say what it loses against floats.

    The folder is for `torchrec predict`, `torchrec evaluate` and `torchrec.inference.load`, as a run is. It cannot be
    trained on.

    $ torchrec quantize runs/experiment --to int8
    $ torchrec quantize runs/experiment test.parquet --to int4 --clip -o small
    """
    from torchrec.bundle import save_bundle
    from torchrec.experiment.files import FILE_NAME, dump_experiment
    from torchrec.heap import keep_freed_memory
    from torchrec.inference import Predictor, load
    from torchrec.modules.embedding_configs import data_type_to_dtype
    from torchrec.quant.convert import quantize_embeddings
    from torchrec.types import DataType

    if clip and to in (Precision.FP16, Precision.BF16):
        raise ValueError(f"`--clip` should come with int8, int4 or int2. Received {to.value}.")
    keep_freed_memory()
    predictor = load(run)
    experiment = predictor.experiment
    source = (
        open_source(data, predictor, run, experiment.data.drop) if data else _validation(predictor)
    )
    dtype = data_type_to_dtype(DataType[to.name])
    model = quantize_embeddings(predictor.model, dtype, inplace=False, search_clipping=clip)
    small = Predictor(experiment, predictor.transform, model)
    before, after = _measured(predictor, source), _measured(small, source)
    folder = run / f"model-{to.value}" if output is None else output
    documents = {FILE_NAME: dump_experiment(experiment)}
    save_bundle(folder, model, predictor.transform, experiment.model, documents=documents)
    console().print(_table(before, after, to))
    sizes = [_table_bytes(one.model) for one in (predictor, small)]
    console().print(
        f"{rows_of(before):,.0f} rows; tables of {sizes[0]:,} bytes became {sizes[1]:,}: {folder}",
        markup=False,
    )


def _validation(predictor: Predictor) -> TableSource:
    from torchrec.experiment.sources import sources_of

    source = sources_of(predictor.experiment).valid
    if source is None:
        raise ValueError(
            "The run should have validation data to compare on. Received none: name files with labels as DATA."
        )
    return source


def _measured(predictor: Predictor, source: TableSource) -> Report:
    from torchrec.datasets.transform import GroupedTransform
    from torchrec.metrics import GroupedMetrics
    from torchrec.training.evaluation import evaluate
    from torchrec.training.run_tasks import tasks_of

    experiment = predictor.experiment
    grouped = GroupedTransform(
        predictor.transform, GroupedMetrics(experiment.group_metrics).columns
    )
    source.require(grouped.columns, "Features, labels and weights of the experiment")
    batches = (
        grouped(part.slice(start, _BATCH))
        for part in source.scan(grouped.columns)
        for start in range(0, part.num_rows, _BATCH)
    )
    return evaluate(predictor.model, tasks_of(experiment), batches, lambda batch: batch).report


def _table_bytes(model: nn.Module) -> int:
    """Return the bytes of the tables of a model."""
    from torchrec.modules.collection import collections_in
    from torchrec.quant.collections import QuantizedCollection

    rows = [
        table.weight
        for module in model.modules()
        if isinstance(module, QuantizedCollection)
        for table in module.quantized_tables().values()
    ]
    rows += [
        shard.weight
        for _, collection in collections_in(model)
        for config in collection.table_store().table_configs()
        for shard in collection.table_store().table_shards(config.name)
    ]
    return sum(weight.nbytes for weight in rows)


def _table(before: Report, after: Report, to: Precision) -> Table:
    from torchrec.metrics.names import title_of

    rows = []
    for key in before:
        pair = [before[key], after[key]]
        rows.append(
            [title_of(key), *(f"{value:.6f}" for value in pair), f"{pair[1] - pair[0]:+.6f}"]
        )
    return table(["", "float", to.value, "difference"], rows)
