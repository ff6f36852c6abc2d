"""Ways to place tables, and what they take: each field of topologies and wishes has its effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.distributed.planner.test_changes import model
from tests.distributed.table_sharder import TableSharder
from torchrec import DataType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator, get_partition_by_type
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingOffloadStats,
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
    calculate_shard_storages,
    get_num_poolings,
)
from torchrec.distributed.planner.types import (
    BasicCommsBandwidths,
    ParameterConstraints,
    PartLookup,
    Perf,
    PlannerError,
    SharderData,
    ShardingOption,
    Storage,
    Topology,
)
from torchrec.distributed.planner.utils import build_sharder_data_map
from torchrec.distributed.types import PipelineType, ShardingType, StorageUsageType

pytestmark = pytest.mark.once

ALL = [kind.value for kind in ShardingType]


def ways(tables, wishes=None, sharder=None, world_size=4, host=2, batch_size=8, **topology):
    given = Topology(world_size, "cpu", local_world_size=host, **topology)
    enumerator = EmbeddingEnumerator(given, batch_size, wishes)
    found = enumerator.enumerate(tables, [sharder or TableSharder()])
    assert enumerator.last_stored_search_space is found
    return found


def way(kind="table_wise", wishes=None, shape=(100, 16), **options) -> ShardingOption:
    wished = ParameterConstraints(sharding_types=[kind], **(wishes or {}))
    (found,) = ways(model(t=shape), {"t": wished}, **options)
    return found


def total(option: ShardingOption) -> Perf:
    whole = Perf(0, 0, 0, 0)
    for shard in option.shards:
        whole += shard.perf
    return whole


def test_on_the_cpu_every_type_is_on_offer():
    wishes = {"t": ParameterConstraints(sharding_types=ALL, min_partition=4)}
    found = ways(model(t=(100, 16)), wishes, EmbeddingBagCollectionSharder())
    assert [option.sharding_type for option in found] == [
        "table_wise",
        "row_wise",
        "column_wise",
        "table_row_wise",
        "table_column_wise",
        "grid_shard",
        "data_parallel",
    ]
    assert [option.num_shards for option in found] == [1, 4, 4, 2, 4, 8, 4]
    assert all(option.total_perf > 0 and option.total_storage.ddr > 0 for option in found)


def test_copies_are_for_tables_that_an_optimizer_trains():
    fused = {option.sharding_type for option in ways(model(t=(100, 16)))}
    assert "data_parallel" not in fused
    from tests.distributed.table_sharder import collection

    assert "data_parallel" in {o.sharding_type for o in ways(collection(t=(100, 16)))}


def test_ways_that_come_to_the_same_are_one():
    # Of 16 columns in one part, on one host: whole, by rows.
    found = {option.sharding_type for option in ways(model(t=(100, 16)), host=4)}
    assert found == {"table_wise", "row_wise"}
    found = {option.sharding_type for option in ways(model(t=(100, 16)), host=2)}
    assert found == {"table_wise", "row_wise", "table_row_wise"}
    wishes = {"t": ParameterConstraints(sharding_types=["table_column_wise"])}
    assert len(ways(model(t=(100, 16)), wishes)) == 1


def test_what_shards_are_dealt_out_to():
    by = {kind: get_partition_by_type(kind) for kind in ALL}
    assert by["grid_shard"] == "multi_host"
    assert by["table_row_wise"] == by["table_column_wise"] == "host"
    assert by["data_parallel"] == by["row_wise"] == "uniform"
    with pytest.raises(ValueError, match=r"`sharding_type` should be one of.*Received 'wise'"):
        get_partition_by_type("wise")


def test_ranks_of_wishes_are_checked():
    for field in ("ranks", "forbidden_ranks"):
        wishes = {"t": ParameterConstraints(**{field: [4]})}
        with pytest.raises(PlannerError, match=rf"`{field}` from 0 to 3. Received \[4\]"):
            ways(model(t=(10, 4)), wishes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pooling_factors", [-1.0], "of 0 or more. Received -1.0"),
        ("pooling_factors", [float("nan")], "of 0 or more. Received nan"),
        ("pooling_factors", [1.0, 2.0], r"of one or each of its features \['t'\]. Received 2"),
        ("num_poolings", [-2.0], "of 0 or more. Received -2.0"),
        ("batch_sizes", [-8], "of 1 or more. Received -8"),
        ("batch_sizes", [0], "of 1 or more. Received 0"),
        ("batch_sizes", [8.0], r"as a list of whole numbers. Received \[8.0\]"),
        ("pooling_factors", ["3"], r"as a list of numbers. Received \['3'\]"),
        ("pooling_factors", 3.0, "as a list of numbers. Received 3.0"),
        ("ranks", 1, "as a list of whole numbers. Received 1"),
        ("forbidden_ranks", [0.5], r"as a list of whole numbers. Received \[0.5\]"),
        ("sharding_types", "table_wise", "as a list of text. Received 'table_wise'"),
        ("compute_kernels", "fused", "as a list of text. Received 'fused'"),
        ("together_with", ["b"], r"as text. Received \['b'\]"),
        ("feature_names", ["q"], r"of \['t'\]. Received \['q'\]"),
        ("min_partition", [8], r"as a whole number. Received \[8\]"),
        ("min_partition", 0, "of 1 or more. Received 0"),
        ("min_partition", -4, "of 1 or more. Received -4"),
    ],
)
def test_values_of_wishes_are_checked(field, value, message):
    wishes = {"t": ParameterConstraints(**{field: value})}
    with pytest.raises(
        PlannerError, match=f"Table 't' of module '' should have `{field}` {message}"
    ):
        ways(model(t=(10, 4)), wishes)


def test_wishes_are_of_their_type_and_for_others():
    title = "Table 't' of module '' should "
    with pytest.raises(PlannerError, match=f"{title}have its wishes as ParameterConstraints"):
        ways(model(t=(10, 4)), {"t": {"ranks": [0]}})
    alone = {"t": ParameterConstraints(together_with="t")}
    with pytest.raises(PlannerError, match=f"{title}go together with another table. Received"):
        ways(model(t=(10, 4)), alone)
    given = ParameterConstraints(
        sharding_types=("table_wise",), ranks=range(2), batch_sizes=[np.int64(8)]
    )
    assert len(ways(model(t=(10, 4)), {"t": given})) == 1


@pytest.mark.parametrize(
    ("field", "value", "parts"),
    [
        ("ddr_mem_bw", 1e6, {"fwd_compute", "bwd_compute"}),
        ("intra_host_bw", 1e3, {"fwd_comms", "bwd_comms", "input_dist_comms"}),
        ("inter_host_bw", 1e3, {"fwd_comms", "bwd_comms", "input_dist_comms"}),
        ("pod_size", 4, {"fwd_comms", "bwd_comms", "input_dist_comms"}),
        ("bwd_compute_multiplier", 5.0, {"bwd_compute"}),
        (
            "generalized_comms_bandwidths",
            BasicCommsBandwidths(1e3, 1e3),
            {"fwd_comms", "bwd_comms", "input_dist_comms"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fields_of_topologies_count(field, value, parts):
    before, after = total(way()), total(way(**{field: value}))
    changed = {name for name in vars(before) if getattr(before, name) != getattr(after, name)}
    assert changed == parts


def test_weighted_and_uneven_tables_count():
    heavy = {"weighted_feature_bwd_compute_multiplier": 3.0}
    plain, weighted = total(way(**heavy)), total(way(wishes={"is_weighted": True}, **heavy))
    assert weighted.bwd_compute == pytest.approx(3 * plain.bwd_compute)
    assert weighted.input_dist_comms > plain.input_dist_comms  # a weight with each id
    slow = {"uneven_sharding_perf_multiplier": 2.0}
    even, uneven = ((100, 16), (101, 16))
    assert total(way("row_wise", shape=even, **slow)) == total(way("row_wise", shape=even))
    twice = total(way("row_wise", shape=uneven)).scaled(2.0)
    assert total(way("row_wise", shape=uneven, **slow)) == twice


@pytest.mark.parametrize(
    "wishes",
    [
        {"pooling_factors": [5.0]},
        {"num_poolings": [3.0]},
        {"batch_sizes": [80]},
    ],
    ids=lambda wishes: next(iter(wishes)),
)
def test_what_is_known_of_a_table_takes_time(wishes):
    for kind in ALL:
        assert total(way(kind, wishes)).total > total(way(kind)).total, kind


def test_long_bags_send_sums_and_short_ones_rows():
    # Of two bands, rows are sent up to two ids a bag.
    short, long = (
        total(way("row_wise", {"pooling_factors": [n]}, world_size=2, host=2)) for n in (2.0, 20.0)
    )
    assert long.fwd_comms == short.fwd_comms
    assert long.input_dist_comms > short.input_dist_comms


def test_numbers_on_the_way_have_fewer_bits():
    registry = get_qcomm_codecs_registry(
        QCommsConfig(forward_precision=CommType.FP16, backward_precision=CommType.FP32)
    )
    sharder = EmbeddingBagCollectionSharder(qcomm_codecs_registry=registry)
    before, after = total(way(sharder=EmbeddingBagCollectionSharder())), total(way(sharder=sharder))
    assert after.fwd_comms == pytest.approx(before.fwd_comms / 2)
    assert after.bwd_comms == before.bwd_comms
    half = total(way(wishes={"output_dtype": DataType.FP16}))
    assert half.fwd_comms == pytest.approx(total(way()).fwd_comms / 2)


def test_inference_has_no_backward_pass():
    topology = Topology(4, "cpu")
    (option,) = ways(model(t=(100, 16)), {"t": ParameterConstraints(sharding_types=["table_wise"])})
    data = build_sharder_data_map({option.module_type_key: TableSharder()})
    trained = option.total_storage
    EmbeddingPerfEstimator(topology, is_inference=True).estimate([option], data)
    EmbeddingStorageEstimator(topology, is_inference=True).estimate([option], data)
    perf = total(option)
    assert perf.bwd_compute == perf.bwd_comms == 0
    assert perf.fwd_compute > 0
    # The state of row-wise Adagrad, and ids in order of rows.
    assert trained.ddr - option.total_storage.ddr == 100 * 4 + 4 * 8 * 16


def storages(**options) -> Storage:
    given = {
        "sharder_data": SharderData({}, {}, StorageUsageType.DEFAULT),
        "sharding_type": "table_wise",
        "tensor": torch.empty(100, 16, device="meta"),
        "compute_device": "cpu",
        "compute_kernel": "dense",
        "shard_sizes": [[100, 16]],
        "batch_sizes": [8],
        "world_size": 2,
        "local_world_size": 2,
        "input_lengths": [3.0],
        "num_poolings": [1.0],
        "caching_ratio": 0.25,
        "is_pooled": True,
        "input_data_type_size": 8,
        "output_data_type_size": 4,
    } | options
    (found,) = calculate_shard_storages(**given)
    return found


def test_storages_by_hand():
    # Of two ranks, 8 samples and 3 ids each: 4 bytes an id, 8 a bag; and 16 an id, in order of rows for an update.
    ids, each, weights = 2 * 8 * (3 * 4 + 8), 2 * 8 * 16 * 4, 100 * 16 * 4
    entries = 2 * 8 * 3 * 16
    # Half of the vectors are in a message; of more than two ids a bag, an update packs the gradients.
    vectors = round(2.5 * each) + entries
    assert storages() == Storage(0, 2 * weights + ids + vectors)
    fewer = 2 * 8 * (4 + 16)
    assert storages(input_lengths=[2.0]) == Storage(0, 2 * weights + ids + vectors - each - fewer)
    assert storages(is_inference=True) == Storage(0, weights + ids + vectors - each - entries)
    ahead = {"pipeline_type": PipelineType.TRAIN_SPARSE_DIST}
    assert storages(**ahead) == Storage(0, 2 * weights + 2 * ids)
    peak = {"count_ephemeral_storage_cost": True}
    assert storages(**ahead, **peak) == Storage(0, 2 * weights + 2 * ids + vectors)
    fetched = {"pipeline_type": PipelineType.TRAIN_PREFETCH_SPARSE_DIST}
    assert storages(**fetched) == Storage(0, 2 * weights + 3 * ids)
    near = storages(compute_device="cuda")
    assert near == Storage(2 * weights + ids + vectors, 0)
    host = SharderData({}, {}, StorageUsageType.BASE)
    cached = {"compute_device": "cuda", "compute_kernel": "fused_uvm_caching"}
    found = storages(sharder_data=host, **cached)
    assert found.ddr == 2 * weights
    assert found.hbm == weights // 2 + ids + vectors
    for refused in ("multipass_prefetch_max_pass", "key_value_params", "use_virtual_table"):
        with pytest.raises(ValueError, match=rf"`{refused}` should not be given"):
            storages(**{refused: 1})


def test_kernels_of_accelerators_read_other_memories():
    from torchrec.distributed.planner._rates import BandwidthRates

    topology = Topology(1, "cuda")
    rates = BandwidthRates(topology, load_factor=0.5)
    times = {
        kernel: rates.lookup_ms(PartLookup(1e6, 1e6, 64, 1e9, kernel))
        for kernel in ("fused", "fused_uvm_caching", "fused_uvm", "key_value")
    }
    assert sorted(times, key=times.__getitem__) == list(times)
    ahead = BandwidthRates(topology, load_factor=0.5, prefetches=True)
    assert ahead.lookup_ms(PartLookup(1e6, 1e6, 64, 1e9, "fused_uvm_caching")) == times["fused"]


def test_poolings_are_those_wished_for():
    option = way(wishes={"num_poolings": [3.0]})
    assert get_num_poolings(None, option) == [3.0]
    assert get_num_poolings({"t": ParameterConstraints(num_poolings=[2.0])}, option) == [2.0]


def test_miss_rates():
    hist = torch.tensor([6.0, 2.0, 2.0])
    bins = torch.tensor([0.0, 2.0, 4.0, 6.0])
    sizes = torch.tensor([0.0, 1, 2, 3, 5, 10])
    rates = EmbeddingOffloadStats.estimate_cache_miss_rate(sizes, hist, bins)
    torch.testing.assert_close(
        rates, torch.tensor([1.0, 0.4, 0.4, 0.2, 0.0, 0.0]), check_dtype=False
    )
    stats = EmbeddingOffloadStats(0.3, 100, torch.ones(4), height=100)
    assert [stats.expected_miss_rate(clf) for clf in (0.1, 0.25, 0.5, 0.75, 1.0)] == [
        0.75,
        0.75,
        0.5,
        0.25,
        0.0,
    ]
    with pytest.raises(
        ValueError, match=r"`mrc_hist_counts` should have one dimension. Received 2"
    ):
        EmbeddingOffloadStats(0.3, 100, torch.ones(2, 2), height=4)
