"""Where the rows of an experiment are: its files, by part, with the columns that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torchrec.datasets.drawn_negatives import DrawnNegatives, NegativeSampling
from torchrec.datasets.expression import parse_expression
from torchrec.datasets.features import (
    MultiHotFeature,
    SequenceFeature,
    TextType,
    number_columns,
    text_columns,
)
from torchrec.datasets.files import DataFile, resolve_files
from torchrec.datasets.negatives import KeptNegatives
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import FractionSplit, TimeSplit, find_time_split
from torchrec.datasets.text_types import schema_of
from torchrec.datasets.transform.labels import Label
from torchrec.experiment._messages import check_column
from torchrec.experiment.rows import SampledNegativesSection
from torchrec.experiment.schema import DataSection, Experiment
from torchrec.experiment.tables import cache_folder, is_made, made, strings_of

if TYPE_CHECKING:
    import pyarrow as pa


class Sources(NamedTuple):
    """Where the rows of training, validation and test are; None where there are none."""

    train: TableSource
    valid: TableSource | None
    test: TableSource | None

    @property
    def given(self) -> list[TableSource]:
        """Those of validation and test that have files of their own."""
        return [one for one in (self.valid, self.test) if one is not None and one.split is None]

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
    check_columns(experiment, with_drawn_negatives(train, data).schema)
    given = {
        name: train.over(_files(experiment, paths, train.schema))
        for name, paths in (("valid", data.valid), ("test", data.test))
        if paths
    }
    train_rows = _thinned(train, data)
    valid = 0.0 if "valid" in given else data.split.valid
    test = 0.0 if "test" in given else data.split.test
    if valid + test == 0:
        return _with_drawn(Sources(train_rows, given.get("valid"), given.get("test")), data)
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
    found = Sources(
        train_rows.of(split),
        given.get("valid") or (train.of(for_valid) if valid else None),
        given.get("test") or (train.of(for_test) if test else None),
    )
    return _with_drawn(found, data)


def with_drawn_negatives(source: TableSource, data: DataSection) -> TableSource:
    """Return rows with negatives that are drawn from them, always the same, if the experiment asks for such."""
    if data.sampled_negatives is None:
        return source
    sampling = replace(_sampling(data.sampled_negatives), redraw=False)
    return source.with_drawn(DrawnNegatives(sampling, [source]))


def _with_drawn(sources: Sources, data: DataSection) -> Sources:
    """Return rows with drawn negatives; none is of a pair of its own part, or of training."""
    if data.sampled_negatives is None:
        return sources
    train, *others = sources
    sampling = _sampling(data.sampled_negatives)
    fixed = replace(sampling, redraw=False)
    valid, test = (one and one.with_drawn(DrawnNegatives(fixed, [train, one])) for one in others)
    return Sources(train.with_drawn(DrawnNegatives(sampling, [train])), valid, test)


def _sampling(section: SampledNegativesSection) -> NegativeSampling:
    values = section.model_dump()
    return NegativeSampling(**{**values, "item": tuple(section.item)})


def _thinned(train: TableSource, data: DataSection) -> TableSource:
    """Return the rows of training without the negatives that are left out."""
    if data.label is None or data.negatives == 1:
        return train
    return train.with_negatives(KeptNegatives(data.label, data.negatives, data.split.seed))


def _files(experiment: Experiment, paths: Sequence[str], schema: pa.Schema) -> list[DataFile]:
    """Return the files to read: those that paths mean, or those that are made of them, with strings as in training."""
    data = experiment.data
    files = resolve_files(paths, data.format)
    if not is_made(data, files):
        return files
    typed = data.model_copy(update={"types": strings_of(schema) | data.types})
    return _made(experiment.model_copy(update={"data": typed}), files)


def _made(experiment: Experiment, files: Sequence[DataFile]) -> list[DataFile]:
    """Return the files that are made of some files."""
    folder = cache_folder(experiment.output)
    return made(experiment.data, files, folder, features=experiment.features)


def _train_source(experiment: Experiment) -> TableSource:
    """Return all rows of the training files, with the types that the experiment asks for."""
    data, features = experiment.data, experiment.features or {}
    files = resolve_files(data.train, data.format)
    if data.cache and experiment.features is None:
        raise ValueError(
            "`data.cache` should be given with `features`, which say what columns of text hold. Received none: "
            "`torchrec init` writes them."
        )
    if is_made(data, files):  # where it is text, it was read as the section says
        if data.types and files[0].format in ("csv", "tsv"):
            names = TableSource(files, dialect=data.dialect).names
            for column in data.types:
                check_column("data.types", column, names)
        return TableSource(_made(experiment, files), drop=data.drop)
    if files[0].format == "parquet":
        if data.types:
            raise ValueError(
                "`data.types` should be given only for CSV and TSV files: Parquet files say what their "
                f"columns hold. Received it for '{files[0].path}'."
            )
        return TableSource(files, dialect=data.dialect, drop=data.drop)
    strings: dict[str, TextType] = dict.fromkeys(text_columns(features), "string")
    numbers = number_columns(features)
    source = TableSource(
        files,
        dialect=data.dialect,
        drop=data.drop,
        schema=schema_of(strings | data.types),
        assumed=numbers,
    )
    for column in data.types:
        check_column("data.types", column, source.names)
    return source


def require_ranked_labels(
    experiment: Experiment, sources: Mapping[str, TableSource | None]
) -> None:
    """Refuse labels below 0 of tasks that are measured within groups, before anything is trained.

    Args:
        experiment: its tasks of numbers; others have no such labels.
        sources: what is measured, by what it is called.

    Raises:
        ValueError: there is one.
    """
    for name, task in (experiment.tasks or {}).items():
        metrics = experiment.metrics if task.metrics is None else task.metrics
        if task.kind != "regression" or not metrics:
            continue
        label = Label(task.label, "regression")
        for what, source in sources.items():
            for table in () if source is None else source.scan(label.columns):
                least = float(label.read(table).min())
                if least < 0:
                    raise ValueError(
                        f"`tasks.{name}.label` '{task.label}' should not be below 0 to be measured by "
                        f"{metrics[0]}. Received {least:g} for {what}: leave such rows out, or give the "
                        f"task no metrics within groups, `tasks.{name}.metrics: []`."
                    )


def check_columns(experiment: Experiment, schema: pa.Schema) -> None:
    """Check that every column which an experiment reads is in the data.

    Args:
        experiment: label, rows to drop, split by time and features name columns.
        schema: of the data.

    Raises:
        ValueError: a column is not there; the message gives the nearest that is.
    """
    names = schema.names
    for key in ("label", "drop"):
        text = getattr(experiment.data, key)
        if text in names and not text.isidentifier():
            raise ValueError(
                f"`data.{key}` should have the name of a column that is no word in backticks, as in "
                f"`{text}`. Received '{text}'."
            )
        if text is not None and text not in names:
            for column in sorted(parse_expression(text).columns):
                check_column(f"data.{key}", column, names)
    if experiment.data.weight is not None:
        check_column("data.weight", experiment.data.weight, names)
    for name, task in (experiment.tasks or {}).items():
        if task.label not in names:
            for column in sorted(parse_expression(task.label).columns):
                check_column(f"tasks.{name}.label", column, names)
        if task.group is not None:
            check_column(f"tasks.{name}.group", task.group, names)
    split = experiment.data.split
    if split.by == "time" and split.column is not None:
        check_column("data.split.column", split.column, names)
    for name, feature in (experiment.features or {}).items():
        key = f"features.{name}" if feature.column is None else f"features.{name}.column"
        check_column(key, feature.column or name, names)
        if isinstance(feature, MultiHotFeature | SequenceFeature) and feature.weights is not None:
            check_column(f"features.{name}.weights", feature.weights, names)
