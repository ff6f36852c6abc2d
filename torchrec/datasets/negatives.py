"""Which rows are kept where only a share of the negatives is wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from torchrec.datasets.split import FractionSplit
from torchrec.datasets.transform.labels import Label

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_STREAM = 2**32  # of other numbers than the split of the same seed goes by


@dataclass(frozen=True)
class KeptNegatives:
    """Keeps all rows with label 1, and a share of those with label 0, always the same.

    Which are kept depends on seed, file and row alone: not on the order of reading, nor on the epoch.

    Args:
        label: column or expression of the label.
        share: of the rows with label 0 that are kept, above 0 and at most 1.
        seed: which are kept. Default 0.

    Example:
        >>> import pyarrow as pa
        >>> clicks = pa.table({"click": [0, 1] * 5000})
        >>> kept = KeptNegatives("click", share=0.1)
        >>> chance = kept.by_chance("log.csv", 0, 10_000)
        >>> mask = kept.keep(clicks, chance)
        >>> int(mask[1::2].sum()), 450 < int(mask[0::2].sum()) < 550
        (5000, True)
    """

    label: str
    share: float
    seed: int = 0
    _label: Label = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                "`share` should be a share of the negatives above 0 and at most 1. Received "
                f"{self.share}."
            )
        object.__setattr__(self, "_label", Label(self.label))

    @property
    def columns(self) -> Set[str]:
        """Names of the columns that it reads."""
        return set(self._label.columns)

    def by_chance(self, file: str, first_row: int, rows: int) -> NDArray[np.bool_]:
        """Say which of some rows of a file are kept whatever their label is."""
        split = FractionSplit(valid=0.0, test=1.0 - self.share, seed=self.seed + _STREAM)
        return split.keep_rows(file, first_row, rows)

    def keep(self, table: pa.Table, by_chance: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Say which rows of a table are kept.

        Args:
            table: with the columns of the label.
            by_chance: what `by_chance` says of its rows.
        """
        kept: NDArray[np.bool_] = by_chance | (self._label.read(table) == 1)
        return kept
