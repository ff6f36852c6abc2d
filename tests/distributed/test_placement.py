"""Where the rows of tables are."""

from __future__ import annotations

import pytest

from torchrec.distributed.layout import grid_shard
from torchrec.distributed.placement import TablePlacement

pytestmark = pytest.mark.once


def test_ranks_with_some_of_the_same_rows_are_refused():
    # Two ranks have half of the rows each, of some columns; one has all rows of the others.
    shards = grid_shard((7, 8), [range(2), range(2, 3)], [2, 6])
    with pytest.raises(
        ValueError, match=r"table 't' should hold the same ranges of rows\. Received range\(0, 4\)"
    ):
        TablePlacement("t", shards)


def test_ranks_with_the_same_rows_make_one_band():
    shards = grid_shard((7, 8), [range(2), range(2, 4)], [2, 6])
    bands = TablePlacement("t", shards).bands
    assert [(band.rows, band.ranks) for band in bands] == [
        (range(4), (0, 2)),
        (range(4, 7), (1, 3)),
    ]
