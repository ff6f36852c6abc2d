"""Look at data and propose what each column is to a model: what `torchrec init` does.

A sample of the first rows tells roles (time, lists, what gives the label away); all rows, up to a
limit, are counted: nulls, ranges and distinct values, the last exactly below 65,536 and within about
0.4 % beyond. Memory is bounded whatever the size of the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice

import numpy as np
import pyarrow as pa

from torchrec.checks import did_you_mean
from torchrec.datasets.expression import parse_expression
from torchrec.datasets.features import AnyFeature, IdFeature, TextType
from torchrec.datasets.headers import looks_like_data
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_types import MisfitError
from torchrec.datasets.transform.columns import Array
from torchrec.datasets.transform.labels import Label
from torchrec.experiment._messages import listed
from torchrec.experiment.propose._decide import ColumnProposal, decide, left_out
from torchrec.experiment.propose._event_log import EventLog, find_event_log
from torchrec.experiment.propose._roles import table_name
from torchrec.experiment.propose._sharing import share_tables
from torchrec.experiment.propose._sizes import proposed_dim, updates_all_rows
from torchrec.experiment.propose._statistics import ColumnStatistics
from torchrec.experiment.propose._text import are_written_numbers
from torchrec.experiment.propose.label import label_advice

__all__ = ["Inference", "infer_features"]

_SAMPLE = 65_536


@dataclass(frozen=True)
class Inference:
    """What is proposed for some data.

    Attributes:
        label: column or expression of the label.
        drop: expression of the rows to leave out, or None.
        columns: what was found out about each column, in their order.
        rows: rows counted.
        complete: whether those are all.
        positives: share of the labels that are 1.
        types: of columns of text files whose first lines do not show them.
        sample: the first rows.
    """

    label: str
    drop: str | None
    columns: list[ColumnProposal] = field(repr=False)
    rows: int
    complete: bool
    positives: float
    types: dict[str, TextType] = field(default_factory=dict)
    sample: pa.Table | None = field(default=None, repr=False)

    @cached_property
    def event_log(self) -> EventLog | None:
        """Who did what when, if rows are events of users; else None."""
        if self.sample is None:
            return None
        return find_event_log(self.columns, self.sample, self.rows)

    @cached_property
    def features(self) -> dict[str, AnyFeature]:
        """The proposed features, by name: that of the column, without dots."""
        given = {column.name for column in self.columns}
        tables: set[str] = set()
        found: dict[str, AnyFeature] = {}
        for column in self.columns:
            if column.feature is None:
                continue
            name, feature = column.name, column.feature
            if "." in name:  # names of tables are parts of other names
                name = name.replace(".", "_")
                while name in given or name in found:
                    name += "_"
                feature = feature.model_copy(update={"column": column.name})
            own = isinstance(feature, IdFeature) and feature.table is None
            if own and table_name(name) != name:
                table = table_name(name)
                while table in given or table in tables:
                    table += "_"
                tables.add(table)
                feature = feature.model_copy(update={"table": table})
            found[name] = feature
        return found

    @property
    def notes(self) -> dict[str, str]:
        """What was seen in each column, and why it is left out where it is."""
        return {column.name: column.note for column in self.columns}

    @property
    def time_column(self) -> str | None:
        """The column of time, to split by; None if there is none."""
        return next((column.name for column in self.columns if column.is_time), None)

    @property
    def warnings(self) -> list[str]:
        """What should be looked at before training, a line each."""
        found = [
            f"Column '{column.name}' is left out: {column.reason}."
            for column in self.columns
            if column.gives_away
        ]
        if self.positives in (0, 1):
            found.insert(0, f"All labels are {self.positives:.0f}: there is nothing to learn.")
        return found

    @property
    def updates_all_rows(self) -> bool:
        """Whether the tables are small enough for a step to update all of their rows."""
        rows: dict[str, int] = {}
        for name, feature in self.features.items():
            if not isinstance(feature, IdFeature):
                continue
            rows[feature.table or name] = feature.rows or 0
        return updates_all_rows(rows.values(), self.dim)

    @property
    def dim(self) -> int:
        """One dimension for all tables; the rule is in `torchrec.experiment.propose._sizes`."""
        return proposed_dim(
            column.distinct for column in self.columns if isinstance(column.feature, IdFeature)
        )


def infer_features(
    source: TableSource | str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    label: str,
    drop: str | None = None,
    *,
    others: Sequence[TableSource] = (),
    max_rows: int = 10_000_000,
    progress: Callable[[int], None] | None = None,
) -> Inference:
    r"""Propose features for the columns of some data.

    Where a value of a text file does not fit what the first lines look like, the column is taken for
    one of numbers or strings, and everything is counted anew.

    Args:
        source: the data, or its files.
        label: the column of 0 and 1, or an expression such as ``"rating > 3"``.
        drop: an expression such as ``"rating == 3"``, true for rows to leave out. Default: that of
            ``source``.
        others: further files, such as those to test on, whose values should fit the types as well.
            Default: none.
        max_rows: rows counted at most, of each. Default ten million.
        progress: is told again and again how many rows have been counted. Default: nobody is.

    Raises:
        ValueError: label columns that are not there, labels that are not 0 and 1, no rows, or
            no column that can be a feature.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "clicks.csv")
        ...     _ = path.write_text("user,price,click\nann,1.5,0\nben,2.5,1\nann,1.0,0\n")
        ...     inference = infer_features(path, "click")
        >>> {name: feature.type for name, feature in inference.features.items()}
        {'user': 'sparse', 'price': 'dense'}
        >>> inference.notes["user"]
        '2 distinct.'
    """
    if not isinstance(source, TableSource):
        source = TableSource(source, drop=drop)
    if drop is None and source.drop is not None:
        drop = source.drop.text
    label = written_label(label, source.schema.names)
    types: dict[str, TextType] = {}
    while True:
        try:
            inference = _infer(source, label, drop, max_rows, types, progress)
            for other in others:
                _read(other.retyped(inference.types), max_rows)
            return inference
        except MisfitError as misfit:  # noqa: PERF203
            if not misfit.wider:
                raise
            types |= misfit.wider


def _written_types(
    source: TableSource, first: pa.Table, known: Collection[str]
) -> dict[str, TextType]:
    """Return types of columns of text files that are numbers as people write them: "1,234", "12 %"."""
    if source.files[0].format == "parquet":
        return {}
    return {
        field.name: "number"
        for field in first.schema
        if pa.types.is_string(field.type)
        and field.name not in known
        and are_written_numbers(field.name, first[field.name], source.dialect.decimal)
    }


def written_label(label: str, columns: Sequence[str]) -> str:
    """Return a label as an experiment has it: the name of a column that is no word in backticks.

    Args:
        label: a column or an expression.
        columns: names of the columns that there are.

    Example:
        >>> written_label("click rate", ["user", "click rate"]), written_label("a - b", ["a", "b"])
        ('`click rate`', 'a - b')
    """
    if label not in columns or label.isidentifier():
        return label
    if "`" in label:
        raise ValueError(f"The label should be a column without backticks. Received '{label}'.")
    return f"`{label}`"


def _infer(
    source: TableSource,
    label: str,
    drop: str | None,
    max_rows: int,
    types: dict[str, TextType],
    progress: Callable[[int], None] | None,
) -> Inference:
    """Propose features, where some columns of text have other types than their first lines show."""
    source, reader = source.retyped(types) if types else source, Label(label)
    read_by = dict.fromkeys(reader.columns, "the label is made from it")
    if drop is not None:
        for name in sorted(parse_expression(drop).columns):
            read_by.setdefault(name, "it decides which rows are dropped")
    _require(source, read_by, reader.columns)
    given, tables = source.given, source.scan()
    first = list(islice(tables, 1))
    for table in first:
        written = _written_types(source, table, types.keys() | given)
        if written:
            return _infer(source, label, drop, max_rows, types | written, progress)
    labels = _Labels(reader, progress)
    sample, tables = _sample(labels.observe(chain(first, tables), max_rows))
    label_column = {label.strip()}.intersection(sample.column_names)
    counted = _count(sample.drop_columns(list(label_column)), tables, given)
    sampled = np.concatenate(labels.sample)[:_SAMPLE]
    columns = [
        left_out(one, read_by[one.name])
        if one.name in read_by
        else decide(one, sample[one.name], label, sampled)
        for one in counted
    ]
    columns = share_tables(columns, counted)
    for name in label_column:  # of which more is known than statistics would tell
        proposal = ColumnProposal(name, "", reason="it is the label")
        columns.insert(sample.column_names.index(name), proposal)
    complete = labels.rows < max_rows or labels.rows == source.rows
    share = labels.positives / labels.rows
    ordered = {name: types[name] for name in source.schema.names if name in types}
    inference = Inference(label, drop, columns, labels.rows, complete, share, ordered, sample)
    if not inference.features:
        reasons = "; ".join(f"'{column.name}': {column.reason}" for column in columns)
        raise ValueError(
            f"The data should have a column that can be a feature. Received none ({reasons})."
        )
    return inference


def _read(source: TableSource, max_rows: int) -> None:
    """Read rows of text, only to see that they fit the types."""
    if source.files[0].format == "parquet":
        return
    rows = 0
    for table in source.scan():
        rows += table.num_rows
        if rows >= max_rows:
            return


class _Labels:
    """Counts the labels of tables that pass by, and keeps those of the sample."""

    def __init__(self, label: Label, progress: Callable[[int], None] | None) -> None:
        self._label = label
        self._progress = progress
        self.positives = 0.0
        self.rows = 0
        self.sample: list[Array] = []

    def observe(self, tables: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
        """Yield tables of so many rows at most, all together."""
        for table in tables:
            table = table.slice(0, most - self.rows)
            labels = self._label.read(table)
            if self.rows < _SAMPLE:
                self.sample.append(labels)
            self.positives += float(labels.sum())
            self.rows += table.num_rows
            if self._progress is not None:
                self._progress(self.rows)
            yield table
            if self.rows >= most:
                return


def _require(source: TableSource, columns: Iterable[str], of_label: Sequence[str]) -> None:
    names = source.schema.names
    for name in columns:
        if name not in names:
            key = "label" if name in of_label else "drop"
            near = did_you_mean(name, names, quote="`") or "."
            hint = ""
            if source.files[0].format != "parquet" and looks_like_data(names):
                hint = (
                    " The first line looks like data: if the files have no header, name their "
                    "columns with `--columns` (`data.columns`)."
                )
            elif near == "." and key == "label":
                hint = f" {label_advice(source)}"
            raise ValueError(
                f"`{key}` should read columns of the data. Received '{name}'{near} "
                f"Columns: {listed(names)}.{hint}"
            )


def _sample(tables: Iterator[pa.Table]) -> tuple[pa.Table, Iterator[pa.Table]]:
    """Return the first rows as one table, and all rows."""
    first: list[pa.Table] = []
    rows = 0
    for table in tables:
        first.append(table)
        rows += table.num_rows
        if rows >= _SAMPLE:
            break
    if not first:
        raise ValueError("The data should have rows. Received none.")

    return pa.concat_tables(first).slice(0, _SAMPLE), chain(first, tables)


def _count(
    sample: pa.Table, tables: Iterator[pa.Table], given: Collection[str]
) -> list[ColumnStatistics]:
    counted = [
        ColumnStatistics(name, sample[name], chosen=name in given) for name in sample.column_names
    ]
    for table in tables:
        for statistics in counted:
            statistics.add(table)
    return counted
