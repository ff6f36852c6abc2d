"""What is to be predicted of samples, how much each counts, and what they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from torchrec.datasets.data_error import DataError
from torchrec.datasets.transform.columns import (
    Array,
    Source,
    kind_of,
    read_ids,
    read_numbers,
    require_columns,
    stored,
    whole,
)
from torchrec.datasets.transform.labels import Label, TargetKind

LABELS = "labels"  # the name of the only target, as `Batch.labels` has it


@dataclass(frozen=True)
class Target:
    """One thing that is to be predicted of a sample.

    Args:
        label: a column, or an expression over columns such as ``"rating > 3"``.
        kind: ``"click"``, a yes or no, 0 and 1; ``"regression"``, a number; ``"multiclass"`` and
            ``"ordinal"``, one of some classes, whole numbers from 0 on, which are in order if ordinal.
            Default ``"click"``.
        classes: how many classes there are. Default none, for the other kinds.

    Raises:
        ValueError: ``classes`` is missing, below 2, or given for a kind without.

    Example:
        >>> Target("rating - 1", "multiclass", classes=5).width, Target("rating > 3").width
        (5, 1)
    """

    label: str
    kind: TargetKind = "click"
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.kind in ("multiclass", "ordinal"):
            if self.classes is None or self.classes < 2:
                raise ValueError(
                    f"`classes` should be how many classes the label '{self.label}' of kind "
                    f"{self.kind} has, 2 or more. Received {self.classes}."
                )
        elif self.classes is not None:
            raise ValueError(
                f"`classes` should be given for the kinds multiclass and ordinal. Received "
                f"{self.classes} for the label '{self.label}' of kind {self.kind}."
            )

    @property
    def width(self) -> int:
        """How many numbers a model gives for it: one a class, or one between two that are in order."""
        if self.classes is None:
            return 1
        return self.classes - (self.kind == "ordinal")

    def scores(self, outputs: Tensor) -> Tensor:
        r"""Return what a model's outputs say: a probability, a number, or a probability a class.

        Of a click :math:`\sigma(z)`, of a number :math:`z`, of classes :math:`\mathrm{softmax}(z)`, and
        of classes in order, where :math:`\sigma(z_k)` is the probability of a class above ``k`` of those
        that are not below it, :math:`(1 - \sigma(z_k)) \prod_{j < k} \sigma(z_j)`.

        Args:
            outputs: ``(B, width)``.

        Returns:
            ``(B,)``; of classes ``(B, classes)``.

        Example:
            >>> Target("rating", "ordinal", classes=3).scores(torch.zeros(1, 2))
            tensor([[0.5000, 0.2500, 0.2500]])
        """
        if self.kind == "regression":
            return outputs.squeeze(1)
        if self.kind == "click":
            return torch.sigmoid(outputs.squeeze(1))
        if self.kind == "multiclass":
            return torch.softmax(outputs, dim=1)
        ones = outputs.new_ones(len(outputs), 1)
        above = torch.cat([ones, torch.sigmoid(outputs).cumprod(dim=1)], dim=1)
        return above * torch.cat([torch.sigmoid(-outputs), ones], dim=1)


class Outcomes:
    """Reads targets, weights and groups of samples.

    Args:
        targets: by name.
        weight: a column of how much each sample counts. None: 1 each.
        groups: columns of what the samples belong to, such as a user or a query.

    Attributes:
        columns: the columns that they read, each once.
    """

    def __init__(
        self, targets: Mapping[str, Target], weight: str | None, groups: Sequence[str]
    ) -> None:
        self.labels = {
            name: Label(target.label, target.kind, target.classes)
            for name, target in targets.items()
        }
        self._weight, self._groups = weight, list(groups)
        found = [column for label in self.labels.values() for column in label.columns]
        self.label_columns = list(dict.fromkeys(found))
        weights = [] if weight is None else [weight]
        self.columns = list(dict.fromkeys([*found, *weights, *groups]))

    def read(self, table: pa.Table) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Tensor]]:
        """Return targets by name, weights, and groups by column of all samples, ``(B,)`` each."""
        targets = {name: torch.from_numpy(one.read(table)) for name, one in self.labels.items()}
        groups = {column: _group_ids(table, column) for column in self._groups}
        return targets, self._weights(table), groups

    def unknown(self, rows: int) -> dict[str, Tensor]:
        """Return targets that nobody knows: NaN, ``(rows,)`` each."""
        return {name: torch.full((rows,), torch.nan) for name in self.labels or (LABELS,)}

    def _weights(self, table: pa.Table) -> Tensor | None:
        if self._weight is None:
            return None
        require_columns(table.column_names, [Source("weight", self._weight)])
        values = whole(table.column(self._weight))
        if kind_of(values.type) not in ("integers", "numbers"):
            raise ValueError(
                f"The column of weights '{self._weight}' should hold numbers. Received "
                f"{stored(values.type)}."
            )
        numbers = read_numbers(values)
        if numbers.missing is not None:
            raise DataError(
                f"The column of weights '{self._weight}' should hold numbers. Received "
                f"{len(numbers.missing)} missing ones among {len(values)}.",
                {"drop": f"{_written(self._weight)} is None"},
            )
        if len(numbers.values) and numbers.values.min() < 0:
            raise ValueError(
                f"The column of weights '{self._weight}' should hold numbers of 0 or more. Received "
                f"{numbers.values.min():g}."
            )
        return torch.from_numpy(numbers.values.astype(np.float32))


def _group_ids(table: pa.Table, column: str) -> Tensor:
    source = Source("groups", column)
    require_columns(table.column_names, [source])
    ids, valid = read_ids(whole(table.column(column)), source)
    groups: Array = ids.astype(np.int64)
    if valid is not None:
        raise DataError(
            f"The column of groups '{column}' should have an id in each row. Received "
            f"{int((~valid).sum())} missing ones among {len(groups)}.",
            {"drop": f"{_written(column)} is None"},
        )
    return torch.from_numpy(groups)


def _written(column: str) -> str:
    """Return a column as an expression names it."""
    return column if column.isidentifier() else f"`{column}`"
