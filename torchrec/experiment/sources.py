"""Where the rows of an experiment are: its files, by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torchrec.datasets.features import TextType, number_columns, text_columns
from torchrec.datasets.files import resolve_files
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import FractionSplit, TimeSplit, find_time_split
from torchrec.datasets.text_types import schema_of
from torchrec.experiment.files import check_column, check_columns
from torchrec.experiment.schema import Experiment


class Sources(NamedTuple):
    """Where the rows of training, validation and test are; None where there are none."""

    train: TableSource
    valid: TableSource | None
    test: TableSource | None

    def retyped(self, types: Mapping[str, TextType]) -> Sources:
        """Return the same rows, those of text with other types of columns whose type was not given."""
        valid, test = (one and one.retyped(types) for one in self[1:])
        return Sources(self.train.retyped(types), valid, test)


def sources_of(experiment: Experiment, types: Mapping[str, TextType] | None = None) -> Sources:
    """Return where the rows of training, validation and test are.

    What has no files of its own is split off the training data. Columns have the types that they
    have in the training data.

    Args:
        experiment: its data, and its features as far as they say what the columns of text files are.
        types: of columns of text files that the experiment says nothing about. Default: what their
            first lines show.

    Raises:
        ValueError: files are missing or damaged, lack a column that the experiment names, or rows
            cannot be split as the section says.
    """
    data = experiment.data
    train = _train_source(experiment)
    if types:
        train = train.retyped(types)
    check_columns(experiment, train.schema)
    given = {
        name: train.over(resolve_files(paths, data.format))
        for name, paths in (("valid", data.valid), ("test", data.test))
        if paths
    }
    valid = 0.0 if "valid" in given else data.split.valid
    test = 0.0 if "test" in given else data.split.test
    if valid + test == 0:
        return Sources(train, given.get("valid"), given.get("test"))
    split: FractionSplit | TimeSplit
    if data.split.by == "fraction":
        split = FractionSplit(valid, test, seed=data.split.seed)
    elif data.split.column is None:
        raise ValueError("`data.split.column` should name the column of time. Received none.")
    else:
        train.require([data.split.column], "`data.split`")
        times = train.scan([data.split.column])
        split = find_time_split(times, data.split.column, valid, test)
    for_valid, for_test = split.of("valid"), split.of("test")
    return Sources(
        train.of(split),
        given.get("valid") or (train.of(for_valid) if valid else None),
        given.get("test") or (train.of(for_test) if test else None),
    )


def _train_source(experiment: Experiment) -> TableSource:
    """Return all rows of the training files, with the types that the experiment asks for."""
    data, features = experiment.data, experiment.features or {}
    files = resolve_files(data.train, data.format)
    if files[0].format == "parquet":
        if data.types:
            raise ValueError(
                "`data.types` should be given only for CSV and TSV files: Parquet files say what their "
                f"columns hold. Received it for '{files[0].path}'."
            )
        return TableSource(
            files,
            columns=data.columns,
            delimiter=data.delimiter,
            drop=data.drop,
            decimal=data.decimal,
            missing=data.missing,
        )
    text: dict[str, TextType] = dict.fromkeys(text_columns(features), "string")
    assumed = number_columns(features)
    source = TableSource(
        files,
        columns=data.columns,
        delimiter=data.delimiter,
        drop=data.drop,
        schema=schema_of(text | data.types),
        assumed=assumed,
        decimal=data.decimal,
        missing=data.missing,
    )
    for column in data.types:
        check_column("data.types", column, source.names)
    return source
