"""Counts of ids that no row of their own stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from torchrec.checks import require_integer, require_type
from torchrec.modules._recomputation import is_recomputation
from torchrec.ops import is_transformed, outside_transforms

__all__ = ["add_counts", "counts_by_table", "set_counts"]


def add_counts(total: Tensor, out_of_range: Tensor) -> None:
    """Add what a look-up has counted, but for one that runs again for its backward pass.

    Args:
        total: by table, int64; added to.
        out_of_range: of one look-up, likewise.
    """
    if is_recomputation():
        return
    if is_transformed():
        with outside_transforms(out_of_range) as counts:
            total.add_(counts)
    else:
        total.add_(out_of_range)


def counts_by_table(total: Tensor, tables: Sequence[str], reset: bool) -> dict[str, int]:
    """Return how many ids have been counted for each table.

    Args:
        total: by table, int64.
        tables: their names.
        reset: start again from 0.
    """
    counts = dict(zip(tables, total.tolist(), strict=True))
    if reset:
        total.zero_()
    return counts


def set_counts(total: Tensor, counts: Mapping[str, int], number: Callable[[str], int]) -> None:
    """Go on counting from other numbers.

    Args:
        total: by table, int64; written to.
        counts: by table; others stay as they are.
        number: gives the place of a table, or raises a ValueError for one that is not there.
    """
    require_type(counts, "`counts`", Mapping)
    for table, count in counts.items():
        require_integer(count, f"`counts` of table {table!r}", least=0)
        total[number(table)] = count
