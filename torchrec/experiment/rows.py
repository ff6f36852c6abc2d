"""What sections of `data` say of its rows: further tables, histories, negatives that are drawn, parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from torchrec.experiment.section import Section


def _as_list(paths: object) -> object:
    """Take one path for a list of one."""
    return [paths] if isinstance(paths, str) else paths


Paths = Annotated[list[str], BeforeValidator(_as_list)]
Columns = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


# What the generators of random numbers take, and more threads than any machine has.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Annotated[int, Field(gt=0, le=1024)]


class TableSection(Section):
    """A table that `data.query` reads; files alone stand for a section that names them."""

    files: Paths = Field(min_length=1, description="as `data.train`")
    format: Literal["auto", "parquet", "csv", "tsv", "json"] = Field(
        default="auto", description="as `data.format`, of these files"
    )
    columns: list[str] | None = Field(default=None, description="as `data.columns`, of these files")
    delimiter: str | None = Field(default=None, description="as `data.delimiter`, of these files")
    encoding: str = Field(default="utf-8", description="as `data.encoding`, of these files")

    @model_validator(mode="before")
    @classmethod
    def _of_files(cls, value: object) -> object:
        return {"files": value} if isinstance(value, str | list) else value


class HistorySection(Section):
    """A column of lists, made of the rows themselves: the last items of the user before each.

    Rows of one time do not know of one another, as nothing tells which came first. For validation,
    test, evaluation and prediction on files of their own, the rows of `data.train` are events as well.
    """

    item: str = Field(min_length=1, description="the column whose values are listed, oldest first")
    user: str = Field(min_length=1, description="the column of users")
    time: str = Field(
        min_length=1, description="the column of times, or of numbers that rise with time; no text"
    )
    last: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=50, description="how many items at most"
    )
    where: str = Field(
        min_length=1,
        default="true",
        description="which rows are events, as SQL over their columns, such as `click = 1`; by default all",
    )


class SampledNegativesSection(Section):
    """Rows of what did not happen, where the data are of what did: items drawn for the user of each row.

    A row is made with the item and its columns replaced by those of another item, which the user has in
    no row of the part (for validation and test also of training); an item may be drawn twice.
    """

    user: str = Field(min_length=1, description="the column of users")
    item: Columns = Field(
        description="the column of items, or a list: it, and further columns that belong to the item"
    )
    per_positive: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=4, description="rows that are drawn for each row of the data"
    )
    by: Literal["uniform", "popularity"] = Field(
        default="uniform",
        description="all items are as likely, or each as often as it is in the data",
    )
    redraw: bool = Field(
        default=True,
        description="whether training draws others in each epoch; validation and test never do",
    )
    column: str = Field(
        min_length=1,
        default="positive",
        description="name of the column that is made: 1 in rows of the data, 0 in those that are drawn",
    )
    seed: Seed = Field(default=0, description="which are drawn")


class SplitSection(Section):
    """How `data.train` is divided where `data.valid` or `data.test` are not given."""

    by: Literal["fraction", "time"] = Field(
        default="fraction", description="by chance, or the latest samples for testing"
    )
    valid: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the samples for validation"
    )
    test: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the samples for testing"
    )
    column: str | None = Field(default=None, description="the column of time, to split by time")
    seed: Seed = Field(default=0, description="which split by chance")

    @model_validator(mode="after")
    def _check(self) -> SplitSection:
        if self.by == "time" and self.column is None:
            raise ValueError(
                "`data.split.column` should name the column of time when `data.split.by` is "
                "'time'. Received none."
            )
        if self.valid + self.test >= 1:
            raise ValueError(
                "`data.split.valid` and `data.split.test` should leave samples to train on, and sum "
                f"to less than 1. Received {self.valid} and {self.test}."
            )
        return self
