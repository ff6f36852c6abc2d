"""Plans made by hand, and plans as JSON."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tests.distributed.table_sharder import TableSharder, collection
from torchrec.distributed.sharding_plan import (
    apply_to_all,
    calculate_shard_sizes_and_offsets,
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    get_default_sharders,
    get_module_to_default_sharders,
    grid_shard,
    placement,
    plan_digest,
    plan_from_json,
    plan_to_json,
    row_wise,
    table_column_wise,
    table_row_wise,
    table_wise,
)
from torchrec.distributed.types import (
    BoundsCheckMode,
    CacheParams,
    DataType,
    EmbeddingModuleShardingPlan,
    KeyValueParams,
    ModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
    ShardingSpec,
)
from torchrec.optim import apply_optimizer_in_backward

pytestmark = pytest.mark.once


def plan_of(generator, shape=(10, 64), world_size=4, local_size=2, device_type="cpu", **sharder):
    module = collection(t=shape)
    return construct_module_sharding_plan(
        module,
        {"t": generator},
        sharder=TableSharder(**sharder),
        local_size=local_size,
        world_size=world_size,
        device_type=device_type,
    )["t"]


def shards(sharding):
    return [
        (shard.shard_offsets, shard.shard_sizes, str(shard.placement))
        for shard in sharding.sharding_spec.shards
    ]


GENERATORS = {
    "table_wise": (table_wise(rank=3), [([0, 0], [10, 64], "rank:3/cpu")]),
    "row_wise": (
        row_wise(),
        [
            ([0, 0], [3, 64], "rank:0/cpu"),
            ([3, 0], [3, 64], "rank:1/cpu"),
            ([6, 0], [3, 64], "rank:2/cpu"),
            ([9, 0], [1, 64], "rank:3/cpu"),
        ],
    ),
    "row_wise sizes": (
        row_wise(([7, 2, 1], "cpu")),
        [
            ([0, 0], [7, 64], "rank:0/cpu"),
            ([7, 0], [2, 64], "rank:1/cpu"),
            ([9, 0], [1, 64], "rank:2/cpu"),
        ],
    ),
    "row_wise devices": (
        row_wise(([5, 5], ["cpu", "cuda"])),
        [([0, 0], [5, 64], "rank:0/cpu"), ([5, 0], [5, 64], "rank:1/cuda:1")],
    ),
    "row_wise buckets": (
        row_wise(num_buckets=5),
        [
            ([0, 0], [4, 64], "rank:0/cpu"),
            ([4, 0], [2, 64], "rank:1/cpu"),
            ([6, 0], [2, 64], "rank:2/cpu"),
            ([8, 0], [2, 64], "rank:3/cpu"),
        ],
    ),
    "column_wise": (
        column_wise(ranks=[3, 0]),
        [([0, 0], [10, 32], "rank:3/cpu"), ([0, 32], [10, 32], "rank:0/cpu")],
    ),
    "column_wise sizes": (
        column_wise(size_per_rank=[30, 4, 100]),
        [
            ([0, 0], [10, 30], "rank:0/cpu"),
            ([0, 30], [10, 4], "rank:1/cpu"),
            ([0, 34], [10, 30], "rank:2/cpu"),
        ],
    ),
    "column_wise ranks and sizes": (
        column_wise(ranks=[2, 2], size_per_rank=[60, 4]),
        [([0, 0], [10, 60], "rank:2/cpu"), ([0, 60], [10, 4], "rank:2/cpu")],
    ),
    "column_wise devices": (
        column_wise(ranks=[0, 1], device_types=["cpu", "meta"]),
        [([0, 0], [10, 32], "rank:0/cpu"), ([0, 32], [10, 32], "rank:1/meta")],
    ),
    "table_row_wise": (
        table_row_wise(host_index=1),
        [([0, 0], [5, 64], "rank:2/cpu"), ([5, 0], [5, 64], "rank:3/cpu")],
    ),
    "table_column_wise": (
        table_column_wise(host_index=1),
        [([0, 0], [10, 32], "rank:2/cpu"), ([0, 32], [10, 32], "rank:3/cpu")],
    ),
    "table_column_wise sizes": (
        table_column_wise(0, [16, 16, 32]),
        [
            ([0, 0], [10, 16], "rank:0/cpu"),
            ([0, 16], [10, 16], "rank:1/cpu"),
            ([0, 32], [10, 32], "rank:0/cpu"),
        ],
    ),
    "grid_shard": (
        grid_shard([1, 0]),
        [
            ([0, 0], [5, 32], "rank:2/cpu"),
            ([5, 0], [5, 32], "rank:3/cpu"),
            ([0, 32], [5, 32], "rank:0/cpu"),
            ([5, 32], [5, 32], "rank:1/cpu"),
        ],
    ),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_shards_and_ranks(name):
    generator, expected = GENERATORS[name]
    sharding = plan_of(generator)
    assert sharding.sharding_type == name.split()[0]
    assert shards(sharding) == expected
    assert sharding.ranks == [int(re.findall(r"\d+", at)[0]) for _, _, at in expected]


def test_data_parallel():
    assert plan_of(data_parallel()) == ParameterSharding("data_parallel", "dense", [0, 1, 2, 3])


def test_devices_are_numbered_by_host():
    sharding = plan_of(table_wise(rank=3), device_type="cuda")
    assert shards(sharding) == [([0, 0], [10, 64], "rank:3/cuda:1")]
    assert (
        shards(plan_of(table_wise(rank=3, device="cpu"), device_type="cuda"))[0][2] == "rank:3/cpu"
    )


def test_a_host_with_fewer_ranks_than_others():
    sharding = plan_of(table_row_wise(1), world_size=3, local_size=2)
    assert shards(sharding) == [([0, 0], [10, 64], "rank:2/cpu")]


def test_a_table_smaller_than_the_world_leaves_ranks_empty():
    sizes = [size for _, size, _ in shards(plan_of(row_wise(), shape=(2, 8)))]
    assert sizes == [[1, 8], [1, 8], [0, 8], [0, 8]]


FAULTS = {
    "rank": (table_wise(rank=4), r"on ranks 0 to 3. Received one with placement rank:4/cpu"),
    "ranks": (column_wise(ranks=[0, 9]), r"placement rank:9/cpu"),
    "more sizes than ranks": (row_wise(([2] * 5, "cpu")), r"placement rank:4/cpu"),
    "rows without room": (row_wise(([5, 4], "cpu")), r"room for 10 rows. Received \[5, 4\]"),
    "columns that do not divide": (column_wise(ranks=[0, 1, 2]), r"evenly into 3 .*64 columns"),
    "columns without room": (column_wise(size_per_rank=[32, 16]), r"room for 64 columns"),
    "buckets": (row_wise(num_buckets=4), r"`num_buckets` should divide 10 rows. Received 4"),
    "host": (table_row_wise(2), r"`host_index` should be from 0 to 1.*Received 2"),
    "host of columns": (table_column_wise(-1), r"`host_index`.*Received -1"),
    "hosts of a grid": (grid_shard([0, 2]), r"`host_index`.*Received 2"),
    "devices": (column_wise([0, 1], device_types=["cpu"]), r"each of 2 shards. Received \['cpu'\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_names_the_table(fault):
    generator, message = FAULTS[fault]
    with pytest.raises(ValueError, match=r"Table 't' of.*EmbeddingBagCollection.*" + message):
        plan_of(generator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: column_wise(), "`ranks` or `size_per_rank`. Received neither"),
        (lambda: column_wise([0, 1], [64]), r"for each of 2 `ranks`. Received \[64\]"),
        (lambda: row_wise(([5, 5], "cpu"), num_buckets=2), "`sizes_placement` or `num_buckets`"),
    ],
)
def test_layouts_that_say_too_little_or_too_much(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": row_wise()}, r"its tables, a, b. Received none of \['b'\], and \[\]"),
        ({"a": row_wise(), "b": row_wise(), "c": row_wise()}, r"none of \[\], and \['c'\]"),
    ],
)
def test_tables_left_out_or_unknown(given, message):
    with pytest.raises(ValueError, match=message):
        construct_module_sharding_plan(
            collection(a=(4, 4), b=(4, 4)), given, TableSharder(), 2, 2, "cpu"
        )


def test_one_layout_for_all_tables():
    module = collection(a=(4, 4), b=(6, 4))
    given = apply_to_all(module, row_wise(), TableSharder())
    plan = construct_module_sharding_plan(module, given, TableSharder(), 2, 2, "cpu")
    assert list(plan) == ["a", "b"]
    assert [size for _, size, _ in shards(plan["b"])] == [[3, 4], [3, 4]]


def test_without_a_process_group_there_is_one_rank():
    module = collection(t=(4, 4))
    plan = construct_module_sharding_plan(module, {"t": row_wise()}, TableSharder())
    assert plan["t"].ranks == [0]


def test_default_sharders():
    module = collection(t=(10, 4))
    sharders = get_module_to_default_sharders()
    assert type(module) in sharders
    assert all(sharder.module_type is kind for kind, sharder in sharders.items())
    assert len(get_default_sharders()) == len(sharders)
    given = apply_to_all(module, row_wise())
    plan = construct_module_sharding_plan(module, given, world_size=2)
    assert plan["t"].ranks == [0, 1]
    with pytest.raises(ValueError, match=r"`sharder` should be given for a Linear.*EmbeddingBag"):
        construct_module_sharding_plan(torch.nn.Linear(1, 1), {})


def test_kernels():
    assert plan_of(table_wise(0)).compute_kernel == "dense"
    assert plan_of(table_wise(0), fused_params={"learning_rate": 0.1}).compute_kernel == "fused"
    assert plan_of(table_wise(0, compute_kernel="fused")).compute_kernel == "fused"
    assert plan_of(row_wise(compute_kernel="fused")).compute_kernel == "fused"
    assert plan_of(column_wise([0], compute_kernel="fused")).compute_kernel == "fused"
    module = collection(a=(4, 4), b=(4, 4), c=(4, 4))
    marked = [module.embedding_bags["a"].weight, module.embedding_bags["c"].weight]
    apply_optimizer_in_backward(torch.optim.SGD, marked, {"lr": 0.1})
    given = {"a": row_wise(), "b": row_wise(), "c": data_parallel()}
    plan = construct_module_sharding_plan(module, given, TableSharder(), 2, 2, "cpu")
    assert [sharding.compute_kernel for sharding in plan.values()] == ["fused", "dense", "dense"]


CUTS = [
    ((10, 64), 4, 2, "table_wise", {}, [[10, 64]], [[0, 0]]),
    ((10, 64), 2, 2, "row_wise", {}, [[5, 64]] * 2, [[0, 0], [5, 0]]),
    ((3, 8), 4, 2, "row_wise", {}, [[1, 8]] * 3 + [[0, 8]], [[0, 0], [1, 0], [2, 0], [3, 0]]),
    ((10, 64), 4, 2, "column_wise", {}, [[10, 64]], [[0, 0]]),
    ((10, 64), 4, 2, "column_wise", {"dim": 20}, [[10, 32]] * 2, [[0, 0], [0, 32]]),
    ((10, 64), 4, 2, "table_column_wise", {"dim": 32}, [[10, 32]] * 2, [[0, 0], [0, 32]]),
    ((7, 30), 4, 2, "column_wise", {"dim": 16}, [[7, 30]], [[0, 0]]),
    ((5, 17), 4, 2, "column_wise", {"dim": 16}, [[5, 17]], [[0, 0]]),
    ((7, 30), 4, 2, "table_row_wise", {}, [[4, 30], [3, 30]], [[0, 0], [4, 0]]),
    ((5, 64), 4, 2, "grid_shard", {"dim": 32}, [[3, 32], [2, 32]] * 2, None),
    ((10, 4), 2, 2, "data_parallel", {}, [[10, 4]] * 2, [[0, 0]] * 2),
    ((10, 4), 3, 3, "row_wise", {"memory": [1, 1, 2]}, [[2, 4], [2, 4], [6, 4]], None),
    ((100, 4), 3, 3, "row_wise", {"buckets": 10}, [[40, 4], [30, 4], [30, 4]], None),
    ((100, 4), 3, 3, "row_wise", {"buckets": 4}, [[50, 4], [25, 4], [25, 4]], None),
]


@pytest.mark.parametrize(("shape", "world", "local", "kind", "options", "sizes", "offsets"), CUTS)
def test_cuts_without_ranks(shape, world, local, kind, options, sizes, offsets):
    found = calculate_shard_sizes_and_offsets(
        torch.empty(shape, device="meta"),
        world,
        local,
        kind,
        col_wise_shard_dim=options.get("dim"),
        device_memory_sizes=options.get("memory"),
        num_buckets=options.get("buckets"),
    )
    assert found[0] == sizes
    assert offsets is None or found[1] == offsets


def test_cuts_that_cannot_be_made():
    table = torch.empty(10, 4)
    with pytest.raises(ValueError, match=r"one size for each of 3 ranks. Received \[1, 2\]"):
        calculate_shard_sizes_and_offsets(table, 3, 3, "row_wise", device_memory_sizes=[1, 2])
    with pytest.raises(ValueError, match="'wise' is not a valid ShardingType"):
        calculate_shard_sizes_and_offsets(table, 3, 3, "wise")
    with pytest.raises(ValueError, match=r"rows and columns. Received shape \(10,\)"):
        calculate_shard_sizes_and_offsets(table[:, 0], 3, 3, "row_wise")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("cpu", 1, 2), "rank:1/cpu"),
        (("cuda", 3, 2), "rank:3/cuda:1"),
        (("meta", 0, 1), "rank:0/meta"),
        (("mtia", 1, 1), "rank:1/mtia:0"),
    ],
)
def test_placement(given, expected):
    assert placement(*given) == expected


def some_plan(**options) -> ShardingPlan:
    module = collection(a=(4, 4), b=(6, 4), c=(3, 4))
    given = {"a": row_wise(), "b": column_wise(ranks=[1, 0]), "c": data_parallel()}
    plan = construct_module_sharding_plan(module, given, TableSharder(), 2, 2, "cpu")
    for option, value in options.items():
        setattr(plan["a"], option, value)
    return ShardingPlan({"sparse.ebc": plan, "": EmbeddingModuleShardingPlan()})


OPTIONS = {
    "none": {},
    "hbm": {"enforce_hbm": False},
    "rounding": {"stochastic_rounding": True},
    "bounds": {"bounds_check_mode": BoundsCheckMode.V2_WARNING},
    "output": {"output_dtype": DataType.FP16},
    "ranks": {"ranks": None},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_plans_come_back_from_json_as_they_were(name):
    plan = some_plan(**OPTIONS[name])
    read = plan_from_json(plan_to_json(plan))
    assert read == plan
    assert isinstance(read.plan["sparse.ebc"], EmbeddingModuleShardingPlan)
    assert str(read) == str(plan)
    assert plan_digest(read) == plan_digest(plan)


def test_for_how_many_ranks_a_plan_is():
    plan = some_plan()
    assert plan_from_json(plan_to_json(plan)).world_size is None
    known = ShardingPlan(plan.plan, world_size=4)
    assert plan_from_json(plan_to_json(known)).world_size == 4
    assert known == plan
    assert plan_digest(known) == plan_digest(plan)


def test_digests_differ_where_plans_do():
    plans = [some_plan(**options) for options in OPTIONS.values()]
    plans += [ShardingPlan({}), ShardingPlan({"other": some_plan().plan["sparse.ebc"]})]
    assert len({plan_digest(plan) for plan in plans}) == len(plans)
    assert re.fullmatch("[0-9a-f]{64}", plan_digest(plans[0]))


def test_the_order_of_modules_and_tables_is_no_difference():
    plan = some_plan()
    tables = plan.plan["sparse.ebc"]
    other = ShardingPlan(
        {"": plan.plan[""], "sparse.ebc": EmbeddingModuleShardingPlan(reversed(tables.items()))}
    )
    assert plan_digest(other) == plan_digest(plan)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"cache_params": CacheParams()}, r"Table 'a' of module 'sparse.ebc'.*`cache_params`"),
        ({"key_value_params": KeyValueParams()}, r"Table 'a' of module 'sparse.ebc'.*not written"),
    ],
)
def test_what_is_not_written(option, message):
    with pytest.raises(ValueError, match=message):
        plan_to_json(some_plan(**option))


def test_plans_of_other_modules_and_specs_are_not_written():
    with pytest.raises(
        ValueError, match=r"The plan of module 'pool' should be an Embedding.*Received Mod"
    ):
        plan_to_json(ShardingPlan({"pool": ModuleShardingPlan()}))

    class Other(ShardingSpec):
        def build_metadata(self, tensor_sizes, tensor_properties):
            raise NotImplementedError

        def shard(self, tensor, src_rank=0, process_group=None):
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"EnumerableShardingSpec. Received Other"):
        plan_to_json(some_plan(sharding_spec=Other()))


def edited(change) -> str:
    data = json.loads(plan_to_json(some_plan()))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "should be JSON"),
        ("[]", "of version 1, with `modules`. Received version None"),
        (edited(lambda d: d.update(version=2)), "Received version 2"),
        (edited(lambda d: d.update(world_size="2")), "`world_size` of 1 or more. Received '2'"),
        (edited(lambda d: d.update(world_size=0)), "`world_size` of 1 or more. Received 0"),
        (edited(lambda d: d.pop("modules")), "with `modules`"),
        (edited(lambda d: d["modules"]["sparse.ebc"]["b"].update(x=1)), r"Table 'b'.*\['x'\]"),
        (edited(lambda d: d["modules"]["sparse.ebc"]["b"].pop("shards")), r"Table 'b'.*shards"),
        (
            edited(lambda d: d["modules"]["sparse.ebc"]["b"].pop("sharding_type")),
            r"Table 'b' of module 'sparse.ebc'.*sharding_type",
        ),
        (
            edited(lambda d: d["modules"]["sparse.ebc"]["b"]["shards"][0].pop("sizes")),
            r"Table 'b'.*sizes",
        ),
        (
            edited(lambda d: d["modules"]["sparse.ebc"]["b"].update(output_dtype="FP17")),
            r"Table 'b'.*FP17",
        ),
        (
            edited(lambda d: d["modules"]["sparse.ebc"]["b"]["shards"][0].update(sizes=[6, 3])),
            r"Table 'b'.*overlap",
        ),
        (edited(lambda d: d["modules"].update(a=[1])), r"Module 'a' should have .*\[1\]"),
        (edited(lambda d: d["modules"].update(a={"t": 1})), r"Module 'a' should have .*'t': 1"),
    ],
    ids=range(14),
)
def test_what_is_no_plan(text, message):
    with pytest.raises(ValueError, match=message):
        plan_from_json(text)
