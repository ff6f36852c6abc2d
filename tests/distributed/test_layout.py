"""Layouts of tables: seven ways to cut one up, and plans that are read and checked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec.distributed import layout
from torchrec.distributed.layout import Shard, check_supported, shards_of, spec_of
from torchrec.distributed.types import (
    BoundsCheckMode,
    CacheParams,
    DataType,
    EnumerableShardingSpec,
    KeyValueParams,
    ParameterSharding,
    ShardMetadata,
)

pytestmark = pytest.mark.once


def sizes(shards: list[Shard]) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    return [(shard.rank, shard.offsets, shard.sizes) for shard in shards]


def test_a_whole_table_is_on_one_rank():
    assert layout.table_wise((10, 4), rank=2) == [Shard(2, range(10), range(4))]


def test_a_replica_is_on_every_rank():
    assert sizes(layout.data_parallel((10, 4), 2)) == [(0, (0, 0), (10, 4)), (1, (0, 0), (10, 4))]


@pytest.mark.parametrize(
    ("rows", "world_size", "expected"),
    [
        (10, 4, [3, 3, 3, 1]),
        (7, 4, [2, 2, 2, 1]),
        (3, 4, [1, 1, 1, 0]),
        (5, 4, [2, 2, 1, 0]),
        (1, 3, [1, 0, 0]),
        (8, 1, [8]),
    ],
)
def test_rows_are_rounded_up_and_the_last_ranks_have_fewer(rows, world_size, expected):
    shards = layout.row_wise((rows, 6), range(world_size))
    assert [shard.sizes for shard in shards] == [(n, 6) for n in expected]
    assert [shard.rows.start for shard in shards] == [sum(expected[:i]) for i in range(world_size)]
    assert [shard.rank for shard in shards] == list(range(world_size))


@pytest.mark.parametrize(
    ("given_sizes", "expected"),
    [([5, 3, 2], [5, 3, 2]), ([7, 7], [7, 3]), ([0, 10], [0, 10]), ([10, 4, 1], [10, 0, 0])],
)
def test_rows_are_as_many_as_asked(given_sizes, expected):
    shards = layout.row_wise((10, 6), range(len(given_sizes)), given_sizes)
    assert [len(shard.rows) for shard in shards] == expected


def test_rows_without_room():
    with pytest.raises(
        ValueError, match=r"`sizes` should have room for 10 rows. Received \[5, 4\]"
    ):
        layout.row_wise((10, 6), range(2), [5, 4])


def test_a_rank_may_have_several_shards_of_columns():
    assert sizes(layout.column_wise((10, 6), [1, 0, 1])) == [
        (1, (0, 0), (10, 2)),
        (0, (0, 2), (10, 2)),
        (1, (0, 4), (10, 2)),
    ]


def test_columns_of_uneven_sizes():
    shards = layout.column_wise((10, 7), [0, 1, 2], [4, 1, 9])
    assert [shard.columns for shard in shards] == [range(0, 4), range(4, 5), range(5, 7)]


def test_columns_that_do_not_divide():
    with pytest.raises(
        ValueError, match=r"divide evenly into 3 shards, on ranks \[0, 1, 1\]. Received 64 columns"
    ):
        layout.column_wise((10, 64), [0, 1, 1])
    with pytest.raises(ValueError, match=r"room for 64 columns. Received \[32, 16\], 48 in all"):
        layout.column_wise((10, 64), [0, 1], [32, 16])


def test_hosts():
    host = range(2, 4)
    assert sizes(layout.table_row_wise((7, 6), host)) == [(2, (0, 0), (4, 6)), (3, (4, 0), (3, 6))]
    assert sizes(layout.table_column_wise((7, 6), host)) == [
        (2, (0, 0), (7, 3)),
        (3, (0, 3), (7, 3)),
    ]
    shards = layout.table_column_wise((7, 6), host, [2, 2, 2])
    assert [shard.rank for shard in shards] == [2, 3, 2]


def test_a_grid_has_columns_by_host_and_rows_by_rank():
    shards = layout.grid_shard((5, 6), [range(2, 4), range(0, 2)])
    assert sizes(shards) == [
        (2, (0, 0), (3, 3)),
        (3, (3, 0), (2, 3)),
        (0, (0, 3), (3, 3)),
        (1, (3, 3), (2, 3)),
    ]


LAYOUTS = {
    "table_wise": lambda shape, w: layout.table_wise(shape, w - 1),
    "row_wise": lambda shape, w: layout.row_wise(shape, range(w)),
    "column_wise": lambda shape, w: layout.column_wise(
        shape, [i % w for i in range(shape[1])], [1] * shape[1]
    ),
    "table_row_wise": lambda shape, w: layout.table_row_wise(shape, range(w // 2, w)),
    "table_column_wise": lambda shape, w: layout.table_column_wise(
        shape, range(w), [-(-shape[1] // 2)] * 2
    ),
    "grid_shard": lambda shape, w: layout.grid_shard(
        shape, [range(w)] * 3, [-(-shape[1] // 3)] * 3
    ),
}


@given(rows=st.integers(1, 20), columns=st.integers(1, 9), world_size=st.integers(1, 5))
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_covers_a_table_once_and_is_read_back(kind, rows, columns, world_size):
    shards = LAYOUTS[kind]((rows, columns), world_size)
    count = torch.zeros(rows, columns)
    for shard in shards:
        count[shard.rows.start : shard.rows.stop, shard.columns.start : shard.columns.stop] += 1
    assert bool((count == 1).all())
    sharding = ParameterSharding(
        kind, "dense", [shard.rank for shard in shards], sharding_spec=spec_of(shards)
    )
    read = shards_of("t", (rows, columns), sharding, world_size)
    assert [(s.rank, s.offsets, s.sizes) for s in read] == sizes(shards)


def test_replicas_are_read_from_the_type_alone():
    sharding = ParameterSharding("data_parallel", "dense", [0, 1])
    assert shards_of("t", (3, 2), sharding, 3) == layout.data_parallel((3, 2), 3)


def test_placements():
    spec = spec_of(layout.row_wise((4, 2), range(4)), "cuda", local_size=2)
    assert [str(shard.placement) for shard in spec.shards] == [
        "rank:0/cuda:0",
        "rank:1/cuda:1",
        "rank:2/cuda:0",
        "rank:3/cuda:1",
    ]
    spec = spec_of(layout.row_wise((4, 2), range(2)), ["cpu", "meta"])
    assert [str(shard.placement) for shard in spec.shards] == ["rank:0/cpu", "rank:1/meta"]
    with pytest.raises(ValueError, match=r"for each of 2 shards. Received \['cpu'\]"):
        spec_of(layout.row_wise((4, 2), range(2)), ["cpu"])


def plan(*shards: tuple[list[int], list[int], str | None], ranks=None, kind="row_wise"):
    spec = EnumerableShardingSpec([ShardMetadata([0, 0], [1, 1], placement="rank:0/cpu")])
    # Afterwards: PyTorch refuses shards that overlap, without a word of whose they are.
    spec.shards = [ShardMetadata(o, s, placement=p) for o, s, p in shards]
    return ParameterSharding(kind, "dense", ranks, spec)


FAULTS = {
    "rank": (
        plan(([0, 0], [5, 4], "rank:0/cpu"), ([5, 0], [5, 4], "rank:2/cpu")),
        r"on ranks 0 to 1. Received one with placement rank:2/cpu",
    ),
    "no rank": (
        plan(([0, 0], [10, 4], "cpu")),
        r"on ranks 0 to 1. Received one with placement cpu",
    ),
    "no placement": (plan(([0, 0], [10, 4], None)), r"Received one with placement None"),
    "rows outside": (
        plan(([0, 0], [5, 4], "rank:0/cpu"), ([5, 0], [6, 4], "rank:1/cpu")),
        r"inside its 10 rows and 4 columns. Received, for rank 1, offsets \[5, 0\] and sizes \[6, 4\]",
    ),
    "columns outside": (plan(([0, 0], [10, 5], "rank:0/cpu")), r"for rank 0, offsets \[0, 0\]"),
    "one dimension": (plan(([0], [10], "rank:0/cpu")), r"sizes \[10\]"),
    "overlapping rows": (
        plan(([0, 0], [6, 4], "rank:0/cpu"), ([5, 0], [5, 4], "rank:1/cpu")),
        r"not overlap. Received rows 0 to 5, columns 0 to 3 on rank 0 and rows 5 to 9, columns 0 to 3 on rank 1",
    ),
    "overlapping columns": (
        plan(([0, 0], [10, 3], "rank:0/cpu"), ([0, 2], [10, 2], "rank:1/cpu")),
        r"not overlap. Received rows 0 to 9, columns 0 to 2 on rank 0",
    ),
    "twice the same": (
        plan(([0, 0], [10, 4], "rank:0/cpu"), ([0, 0], [10, 4], "rank:1/cpu")),
        r"not overlap",
    ),
    "rows left out": (
        plan(([0, 0], [5, 4], "rank:0/cpu"), ([6, 0], [4, 4], "rank:1/cpu")),
        r"all its 10 rows and 4 columns. Received none of rows 5 to 5, columns 0 to 3",
    ),
    "last rows left out": (plan(([0, 0], [9, 4], "rank:0/cpu")), r"none of rows 9 to 9"),
    "columns left out": (
        plan(([0, 0], [10, 3], "rank:0/cpu")),
        r"none of rows 0 to 9, columns 3 to 3",
    ),
    "a corner left out": (
        plan(
            ([0, 0], [5, 2], "rank:0/cpu"),
            ([5, 0], [5, 2], "rank:1/cpu"),
            ([0, 2], [5, 2], "rank:0/cpu"),
        ),
        r"none of rows 5 to 9, columns 2 to 3",
    ),
    "no shards": (plan(), r"none of rows 0 to 9"),
    "other ranks": (
        plan(([0, 0], [10, 4], "rank:0/cpu"), ranks=[1]),
        r"on ranks \[1\], as its `ranks` say. Received shards on ranks \[0\]",
    ),
    "no spec": (
        ParameterSharding("row_wise", "dense"),
        r"row_wise, should have an EnumerableShardingSpec. Received None",
    ),
    "unknown type": (
        ParameterSharding("wise", "dense"),
        r"should have a sharding type of data_parallel, .*grid_shard. Received 'wise'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_plan_name_table_and_module(fault):
    sharding, message = FAULTS[fault]
    with pytest.raises(ValueError, match=r"Table 'user' of module 'sparse.ebc'.*" + message):
        shards_of("user", (10, 4), sharding, 2, module="sparse.ebc")


def test_empty_shards_overlap_with_nothing():
    sharding = plan(
        ([0, 0], [10, 4], "rank:0/cpu"),
        ([10, 0], [0, 4], "rank:1/cpu"),
        ([3, 0], [0, 4], "rank:1/cpu"),
    )
    assert len(shards_of("user", (10, 4), sharding, 2)) == 3


@pytest.mark.parametrize(
    "option",
    [
        {"cache_params": CacheParams()},
        {"enforce_hbm": True},
        {"stochastic_rounding": True},
        {"output_dtype": DataType.FP16},
        {"key_value_params": KeyValueParams()},
        {"bounds_check_mode": BoundsCheckMode.WARNING},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_without_an_effect_are_refused(option):
    sharding = ParameterSharding("data_parallel", "dense", **option)
    with pytest.raises(
        ValueError, match=rf"Table 'user' of module 'm' should .*{next(iter(option))}"
    ):
        check_supported("user", sharding, module="m")


@pytest.mark.parametrize("kernel", ["fused_uvm", "key_value", "quant", ""])
def test_kernels_that_are_not_there_are_refused(kernel):
    with pytest.raises(ValueError, match=rf"Table 'user'.*dense or fused. Received '{kernel}'"):
        check_supported("user", ParameterSharding("data_parallel", kernel))


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"enforce_hbm": False},
        {"stochastic_rounding": False},
        {"bounds_check_mode": BoundsCheckMode.FATAL},
        {"bounds_check_mode": BoundsCheckMode.V2_FATAL},
    ],
    ids=str,
)
def test_options_that_ask_for_what_is_so_anyway(option):
    check_supported("user", ParameterSharding("row_wise", "fused", **option))
