"""The data of an experiment: sources by split, the transform fitted to them, and loaders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torchrec._files import naming
from torchrec.datasets.features import text_columns
from torchrec.datasets.files import resolve_files
from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import FractionSplit, TimeSplit, find_time_split
from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.transform.labels import Label
from torchrec.experiment.files import check_columns
from torchrec.experiment.infer import infer_features
from torchrec.experiment.schema import DataSection, Experiment

if TYPE_CHECKING:
    import pyarrow as pa

_EVALUATION_BATCH = 4096


class RunData:
    """What a run reads.

    Args:
        experiment: says what.
        kept: folder for the fitted transform.
        fit: False: take what is kept there, as a run does that is taken up. Default True.

    Attributes:
        transform: fitted to the training data.
        train, valid, test: batches; None where there is no such data.
        train_batches: in an epoch; None if only reading tells, and nothing asks for it.
        notices: what a person should know.
    """

    def __init__(self, experiment: Experiment, kept: Path, fit: bool = True) -> None:
        data, options = experiment.data, experiment.training
        train, valid, test = sources_of(experiment)
        check_columns(experiment, train.schema)
        self.notices: list[str] = []
        self._rows = train.rows
        self.transform = self._transform(experiment, train, kept, fit)
        if self._rows is None and options.schedule.decay != "constant":
            self._rows = sum(table.num_rows for table in train.scan(self.transform.columns[-1:]))
        rows = self._rows
        self.train_batches = None if rows is None else -(-rows // options.batch_size)
        self.train = Loader(
            train,
            self.transform,
            options.batch_size,
            shuffle_window=data.shuffle_window,
            seed=options.seed,
            workers=data.workers,
        )
        size = max(options.batch_size, _EVALUATION_BATCH)
        self.valid, self.test = (
            None
            if source is None or not self._has_rows(source, name)
            else Loader(source, self.transform, size, shuffle_window=0, workers=data.workers)
            for name, source in (("validation", valid), ("test", test))
        )
        if options.early_stopping is not None and self.valid is None:
            raise ValueError(
                "`training.early_stopping` should have validation data to go by: `data.valid`, or "
                "`data.split.valid` above 0. Received none."
            )

    def _has_rows(self, source: TableSource, name: str) -> bool:
        if next(iter(source.scan(self.transform.columns[-1:])), None) is not None:
            return True
        self.notices.append(f"There are no rows for {name}: it is left out.")
        return False

    def _transform(
        self, experiment: Experiment, train: TableSource, kept: Path, fit: bool
    ) -> FeatureTransform:
        """Return the transform, fitted, and keep it."""
        if not fit:
            return FeatureTransform.load(kept)
        data, features = experiment.data, experiment.features
        if next(iter(train.scan(Label(data.label).columns)), None) is None:
            left_out = f"`data.drop` '{data.drop}' and " if data.drop else ""
            raise ValueError(
                f"`data.train` should have rows to train on. Received none: {left_out}`data.split` "
                "leave no row."
            )
        if features is None:
            inference = infer_features(train, data.label, data.drop)
            self.notices += inference.warnings
            features = inference.features
        transform = FeatureTransform(features, data.label)
        transform.fit(self._counted(train.scan(transform.columns)))
        beside = kept.with_name(f".writing-{kept.name}")
        shutil.rmtree(beside, ignore_errors=True)
        with naming(kept):
            transform.save(beside)
            for path in beside.iterdir():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
            shutil.rmtree(kept, ignore_errors=True)
            beside.rename(kept)
        return transform

    def _counted(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Count rows on their way, if they all come by."""
        rows = 0
        for table in tables:
            rows += table.num_rows
            yield table
        self._rows = rows


def sources_of(
    experiment: Experiment,
) -> tuple[TableSource, TableSource | None, TableSource | None]:
    """Return where the rows of training, validation and test are.

    What has no files of its own is split off the training data. Columns have the types that they
    have in the training data.

    Args:
        experiment: its data, and its features as far as they say what the columns of text files are.

    Raises:
        ValueError: files are missing or damaged, or rows cannot be split as the section says.
    """
    data = experiment.data
    train = _source(data, data.train, None, text_columns(experiment.features or {}))
    given = {
        name: _source(data, paths, train.schema, [])
        for name, paths in (("valid", data.valid), ("test", data.test))
        if paths
    }
    valid = 0.0 if "valid" in given else data.split.valid
    test = 0.0 if "test" in given else data.split.test
    if valid + test == 0:
        return train, given.get("valid"), given.get("test")
    split: FractionSplit | TimeSplit
    if data.split.by == "fraction":
        split = FractionSplit(valid, test, seed=data.split.seed)
    elif data.split.column is None:
        raise ValueError("`data.split.column` should name the column of time. Received none.")
    else:
        train.require([data.split.column], "`data.split`")
        times = train.scan([data.split.column])
        split = find_time_split(times, data.split.column, valid, test)
    return (
        train.of(split),
        given.get("valid") or (train.of(split.of("valid")) if valid else None),
        given.get("test") or (train.of(split.of("test")) if test else None),
    )


def _source(
    data: DataSection, paths: list[str], schema: pa.Schema | None, text: list[str]
) -> TableSource:
    """Return the rows of files, with types that are given, or of text those of some columns."""
    import pyarrow as pa

    files = resolve_files(paths, data.format)
    if schema is None and files[0].format != "parquet":
        schema = pa.schema([(name, pa.string()) for name in text])
    return TableSource(files, columns=data.columns, drop=data.drop, schema=schema)
