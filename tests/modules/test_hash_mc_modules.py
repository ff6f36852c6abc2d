"""Maps by multi-probe hashing, alone and in collections of tables."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    OptimizerType,
)
from torchrec.modules import hash_mc_evictions
from torchrec.modules.hash_mc_evictions import (
    HashZchEvictionConfig,
    HashZchEvictionPolicyName,
)
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule, TrainInputMapper
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import ManagedCollisionCollection

T = torch.tensor
IDS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -1, -2, -3, -4, -5, 10**18, 2**63 - 1, -(2**63)]
POLICY = HashZchEvictionPolicyName
SINGLE = {
    "eviction_policy_name": POLICY.SINGLE_TTL_EVICTION,
    "eviction_config": HashZchEvictionConfig([], single_ttl=2),
}
LRU = {"eviction_policy_name": POLICY.LRU_EVICTION}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The hour that policies see."""
    found = SimpleNamespace(hour=500)
    found.time = lambda: found.hour * 3600.0
    monkeypatch.setattr(hash_mc_evictions, "time", found)
    return found


def new(rows: int = 24, buckets: int = 1, **options) -> HashZchManagedCollisionModule:
    return HashZchManagedCollisionModule(rows, torch.device("cpu"), buckets, name="t", **options)


def features(**ids: list[int]) -> dict[str, JaggedTensor]:
    return {
        name: JaggedTensor(T(part, dtype=torch.int64), lengths=torch.ones(len(part)).long())
        for name, part in ids.items()
    }


def look_up(mcm: HashZchManagedCollisionModule, ids: list[int]) -> list[int]:
    return mcm(features(f=ids))["f"].values().tolist()


# Rows of states that were saved elsewhere: these numbers are another implementation's.

ROWS_1 = [8, 5, 10, 21, 3, 10, 15, 12, 11, 9, 4, 1, 9, 23, 18, 21, 1, 14, 7, 15]
ROWS_2 = [8, 29, 10, 45, 3, 34, 15, 36, 11, 33, 4, 25, 33, 23, 42, 21, 25, 14, 31, 15]
ROWS_3 = [8, 29, 58, 21, 27, 58, 15, 36, 59, 9, 28, 49, 57, 47, 18, 69, 25, 38, 31, 39]


@pytest.mark.parametrize(("buckets", "rows"), [(1, ROWS_1), (2, ROWS_2), (3, ROWS_3)])
def test_rows_of_ids_without_one(buckets: int, rows: list[int]) -> None:
    mcm = new(24 * buckets, buckets, is_inference=True)
    assert look_up(mcm, IDS) == rows
    assert look_up(mcm.train(), IDS) == rows
    assert mcm.open_slots().tolist() == [24 * buckets]


@pytest.mark.parametrize(
    ("options", "ids", "rows"),
    [
        (
            {"buckets": 2, "input_hash_size": 100},
            [0, 1, 2, 3, 49, 50, 51, 99],
            [8, 5, 10, 21, 4, 34, 26, 42],
        ),
        (
            {"buckets": 3, "input_hash_size": 100},
            [0, 1, 2, 3, 33, 34, 66, 67, 98, 99],
            [8, 5, 10, 21, 6, 29, 45, 46, 59, 66],
        ),
        (
            {"buckets": 2, "inference_dispatch_div_train_world_size": True},
            [0, 1, 2, 3, 4, 5, 6, 7],
            [8, 32, 5, 29, 10, 34, 21, 45],
        ),
        (
            {"opt_in_prob": 50, "percent_reserved_slots": 25},
            list(range(20)),
            [20, 23, 22, 21, 21, 22, 21, 18, 23, 21, 22, 19, 22, 21, 23, 21, 18, 18, 18, 23],
        ),
    ],
    ids=["ranges-2", "ranges-3", "local", "reserved"],
)
def test_rows_by_options(options, ids, rows) -> None:
    buckets = options.pop("buckets", 1)
    assert look_up(new(24 * buckets, buckets, is_inference=True, **options), ids) == rows


def test_uneven_buckets() -> None:
    mcm = new(20, 3, is_inference=True, output_segments=[0, 4, 10, 20])
    rows = [0, 9, 18, 1, 7, 18, 3, 4, 11, 1, 8, 19, 0, 7, 15, 3, 4, 10, 0, 9]
    assert look_up(mcm, list(range(20))) == rows
    assert mcm.buckets() == 3


def test_an_id_is_found_where_a_saved_state_has_it() -> None:
    mcm = new(24, 1, is_inference=True, max_probe=3)
    for slot, found in {10: 10, 11: 11, 12: 12, 13: 10, 9: 10}.items():
        identities = torch.full((24, 1), 77)
        identities[slot] = 5
        mcm._hash_zch_identities.copy_(identities)
        assert look_up(mcm, [5]) == [found]


def test_state_has_the_names_and_shapes_of_the_api(clock) -> None:
    def shapes(**options):
        state = new(16, 2, **options).state_dict()
        return {name: (tuple(t.shape), t.dtype) for name, t in state.items()}

    identities = {"_hash_zch_identities": ((16, 1), torch.int64)}
    bucket = {"_hash_zch_bucket": ((1, 1), torch.int64)}
    meta = {"_hash_zch_metadata": ((16, 1), torch.int32)}
    assert shapes() == identities | bucket
    assert shapes(persist_hash_zch_bucket=False) == identities
    assert shapes(**LRU) == identities | meta | bucket
    assert shapes(**SINGLE, is_inference=True) == identities | bucket
    numbers = {"_hash_zch_runtime_meta": ((16, 4), torch.int64)}
    assert shapes(write_runtime_meta_dim=4) == identities | numbers | bucket
    numbers = {"_hash_zch_runtime_meta": ((16, 1), torch.int64)}
    assert shapes(track_id_freq=True) == identities | numbers | bucket


# Learning.


def test_new_ids_get_rows_and_keep_them() -> None:
    mcm = new(8, 2)
    ids = [4, 10**15, 4, -6, 8, 7, -1]
    rows = look_up(mcm, ids)
    assert rows[0] == rows[2]
    assert len(set(rows[:-1])) == 5  # -1 has none of its own
    assert look_up(mcm, ids) == look_up(mcm.eval(), ids) == rows
    assert mcm.evict() is None
    assert mcm.open_slots().tolist() == [3]
    held, known = mcm.held()
    assert dict(zip(known.tolist(), held.tolist(), strict=True)) == dict(
        zip(ids[:-1], rows, strict=False)
    )
    assert mcm.rows_of(T([8, 9, -1])).tolist() == [rows[4], -1, -1]
    mcm.validate_state()


def test_without_a_policy_a_full_map_shares() -> None:
    mcm = new(3)
    first = look_up(mcm, [1, 2, 3])
    assert sorted(first) == [0, 1, 2]
    state = copy.deepcopy(mcm.state_dict())
    rows = look_up(mcm, [4, 5, 1])
    assert rows[2] == first[0]
    assert mcm.evict() is None
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), mcm.state_dict().values(), strict=True)
    )
    assert (
        str(mcm.stats())
        == "3 of 3 rows held, 16.7 % of 6 ids had one, 3 inserted, 0 evicted, 0 rejected"
    )


def test_lifetimes(clock) -> None:
    mcm = new(2, **SINGLE)
    one, two = look_up(mcm, [1, 2])
    clock.hour = 501
    look_up(mcm, [1])
    clock.hour = 502
    assert look_up(mcm, [3]) == look_up(mcm.eval(), [3])  # both live until the hour is over
    assert mcm.train().evict() is None
    clock.hour = 503  # 2 came last at 500
    assert look_up(mcm, [3, 4])[0] == two
    assert mcm.evict().tolist() == [two]
    clock.hour = 504
    assert look_up(mcm, [4]) == [one]
    assert mcm.evict().tolist() == [one]
    assert mcm.evict() is None
    assert mcm.rows_of(T([1, 2, 3, 4])).tolist() == [-1, -1, two, one]


def test_an_id_that_comes_again_is_not_evicted_though_its_time_was_over(clock) -> None:
    mcm = new(1, **SINGLE)
    look_up(mcm, [1])
    clock.hour = 600
    assert look_up(mcm, [1, 2, 1]) == [0, 0, 0]
    assert mcm.evict() is None
    assert mcm.held()[1].tolist() == [1]


def test_lifetimes_by_feature(clock) -> None:
    config = HashZchEvictionConfig(["f", "g"], per_feature_ttl=[1, 5])
    mcm = new(3, eviction_policy_name=POLICY.PER_FEATURE_TTL_EVICTION, eviction_config=config)
    mcm(features(f=[1, 2], g=[3, 2]))
    rows = mcm.rows_of(T([1, 2, 3])).tolist()
    clock.hour = 502  # 2 is one of both features, and lives as long as the longer one
    assert mcm(features(g=[], f=[4, 5]))["f"].values().tolist()[0] == rows[0]
    assert mcm.rows_of(T([1, 2, 3, 4, 5])).tolist() == [-1, rows[1], rows[2], rows[0], -1]
    with pytest.raises(ValueError, match=r"should have all of its features.*without 'h'"):
        mcm(features(h=[1]))


def test_longest_unseen(clock) -> None:
    mcm = new(3, **LRU)
    look_up(mcm, [1, 2, 3])
    assert look_up(mcm, [4])[0] in range(3)
    assert mcm.evict() is None  # all came in this hour
    clock.hour = 501
    look_up(mcm, [1, 3])
    two = int(mcm.rows_of(T([2])))
    clock.hour = 502
    look_up(mcm, [3])
    assert look_up(mcm, [4]) == [two]
    assert mcm.evict().tolist() == [two]
    assert mcm.rows_of(T([2])).tolist() == [-1]


def test_ids_are_taken_in_the_order_of_the_batch(clock) -> None:
    mcm = new(1, **LRU)
    look_up(mcm, [1])
    clock.hour = 501
    assert look_up(mcm, [1, 2]) == [0, 0]
    assert mcm.evict() is None  # 1 came first and keeps its row
    clock.hour = 502
    assert look_up(mcm, [2, 1]) == [0, 0]
    assert mcm.evict().tolist() == [0]
    assert mcm.held()[1].tolist() == [2]


def test_read_only_features_learn_nothing() -> None:
    mcm = new(8)
    found = mcm(features(f_readonly=[1, 2], f=[2, 3], g_readonly=[3, 4]))
    assert mcm.held()[1].sort().values.tolist() == [2, 3]
    assert found["f_readonly"].values()[1] == found["f"].values()[0]
    assert found["g_readonly"].values()[0] == found["f"].values()[1]
    mcm = new(8, read_only_suffix="_x")
    mcm(features(f_readonly=[1], g_x=[2]))
    assert mcm.held()[1].tolist() == [1]
    assert new(8)(features(f_readonly=[5]))["f_readonly"].values().shape == (1,)


def test_opting_in(clock) -> None:
    torch.manual_seed(0)
    mcm = new(1000, 2, opt_in_prob=30, percent_reserved_slots=10, **LRU)
    assert mcm.get_reserved_slots_per_bucket() == 50
    reserved = set(mcm.get_indices_of_reserved_slots_per_bucket().tolist())
    assert reserved == {*range(450, 500), *range(950, 1000)}
    ids = list(range(400)) * 2
    rows = look_up(mcm, ids)
    assert rows[:400] == rows[400:]
    own = mcm.rows_of(T(ids[:400]))
    assert 80 < int((own >= 0).sum()) < 160
    assert all(
        (row in reserved) == (mine < 0) for row, mine in zip(rows, own.tolist(), strict=False)
    )
    stats = mcm.stats()
    assert stats.rows == 900
    assert stats.rejected == 2 * int((own < 0).sum())
    assert mcm.open_slots().tolist() == [900 - stats.occupied]
    look_up(mcm, ids)
    assert int((mcm.rows_of(T(ids[:400])) >= 0).sum()) > stats.occupied


def test_ids_are_left_out(clock) -> None:
    mcm = new(2, disable_fallback=True)
    rows = look_up(mcm, [1, 2])
    weights, lengths = T([0.1, 0.2, 0.3, 0.4]), T([3, 0, 1])
    jt = JaggedTensor(T([1, 3, 2, 4]), weights, lengths)
    found = mcm({"f": jt})["f"]
    assert found.values().tolist() == rows
    assert found.lengths().tolist() == [2, 0, 0]
    assert torch.equal(found.weights(), weights[[0, 2]])
    found = mcm({"f": jt}, mutate_miss_lengths=False)["f"]
    assert found.values().tolist() == [rows[0], -1, rows[1], -1]
    assert torch.equal(found.lengths(), lengths)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_find_learns_nothing(training: bool) -> None:
    mcm = new(8)
    row = look_up(mcm, [1])
    mcm.train(training)
    found = mcm.find(features(f=[1, 2]))["f"].values().tolist()
    assert found[:1] == row
    assert mcm.held()[1].tolist() == [1]


def test_modes() -> None:
    mcm = new(8)
    mcm.reset_inference_mode()
    assert not mcm.training
    look_up(mcm.train(), [1])
    assert not mcm.held()[1].numel()
    mcm.reset_training_mode()
    look_up(mcm, [1])
    mcm.reset_intrainer_bulk_eval_mode()
    look_up(mcm, [2])
    assert mcm.held()[1].tolist() == [1]
    with pytest.raises(ValueError, match="`is_inference` of map 't' should be False"):
        new(8, is_inference=True, **LRU).reset_training_mode()


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    mcm = new(8, tb_logging_frequency=2)
    with caplog.at_level(logging.INFO):
        for ids in ([1], [2], [3]):
            look_up(mcm, ids)
    assert [r.getMessage() for r in caplog.records] == [
        "Map 't' after 2 batches: 2 of 8 rows held, 0.0 % of 2 ids had one, 2 inserted, 0 evicted, "
        "0 rejected"
    ]


# Numbers by row.


def test_frequencies(clock) -> None:
    mcm = new(2, track_id_freq=True, **SINGLE)
    one, two = look_up(mcm, [1, 2, 1, 3])[:2]
    assert mcm.lookup_custom_runtime_meta(T([one, two])).tolist() == [[2], [1]]
    look_up(mcm.eval(), [1])
    clock.hour = 503
    look_up(mcm.train(), [4, 2])
    assert mcm.lookup_custom_runtime_meta(T([one, two])).tolist() == [[1], [2]]


def test_numbers_of_the_callers(clock) -> None:
    mcm = new(4, write_runtime_meta_dim=2, **SINGLE)
    one, two = look_up(mcm, [1, 2])
    mcm.update_runtime_meta(T([1, 9]), T([one, two]), T([[1, 2], [3, 4]]))
    assert mcm.lookup_runtime_meta(T([1, 9, 2]), T([one, two, two])).tolist() == [
        [1, 2],
        [-1, -1],
        [0, 0],
    ]
    mcm.update_runtime_meta(T([2]), T([two]), T([7]))
    assert mcm.lookup_custom_runtime_meta(T([two])).tolist() == [[7, 7]]
    found = mcm.remap(features(f=[1, 3]), write_weights=T([[5, 6], [8, 9]]))["f"].values()
    assert mcm.lookup_custom_runtime_meta(found).tolist() == [[5, 6], [8, 9]]
    with pytest.raises(
        IndexError, match=r"`remapped_ids` of map 't' should be in \[0, 4\). Received -1"
    ):
        mcm.lookup_custom_runtime_meta(T([-1]))
    with pytest.raises(ValueError, match="should have 2 numbers for each of 1 ids"):
        mcm.update_runtime_meta(T([2]), T([two]), T([[7, 8, 9]]))
    assert new(4).lookup_runtime_meta(T([5, 6]), T([1, 2])).tolist() == [-1, -1]
    with pytest.raises(ValueError, match="should have `write_runtime_meta_dim` or `track_id_freq`"):
        new(4).lookup_custom_runtime_meta(T([1]))
    with pytest.raises(ValueError, match="should have `write_runtime_meta_dim` or `track_id_freq`"):
        new(4).remap(features(f=[1]), write_weights=T([[1]]))
    free = mcm.open_slots()
    with pytest.raises(ValueError, match="should have 2 numbers for each of 1 ids"):
        mcm.remap(features(f=[77]), write_weights=T([[7, 8, 9]]))
    assert torch.equal(mcm.open_slots(), free)  # it was refused before the map has learnt


@pytest.mark.parametrize("row", [-7, 1, 4, 99], ids=["below", "another's", "free", "beyond"])
def test_numbers_are_kept_for_rows_that_their_id_holds(row) -> None:
    mcm = new(6, 2, write_runtime_meta_dim=2)
    assert look_up(mcm, [1, 2, 4]) == [5, 1, 0]
    mcm.update_runtime_meta(T([1, 4]), T([5, row]), T([[3, 4], [8, 9]]))
    assert mcm.lookup_runtime_meta(T([4, 1]), T([row, 5])).tolist() == [[-1, -1], [3, 4]]
    assert mcm.lookup_custom_runtime_meta(T([0, 1, 2, 3, 4])).count_nonzero() == 0
    with pytest.raises(ValueError, match=r"`remapped_ids` of map 't'.* each of 2 ids"):
        mcm.lookup_runtime_meta(T([1, 4]), T([5]))


# State, and parts.


def test_state_there_and_back(clock) -> None:
    mcm = new(6, 2, write_runtime_meta_dim=1, **LRU)
    rows = look_up(mcm, [1, 2, 3])
    other = new(6, 2, write_runtime_meta_dim=1, **LRU)
    state = mcm.state_dict() | {"_scalar_logger._scalar_logger_steps": T([5])}
    other.load_state_dict(state)
    assert look_up(other.eval(), [1, 2, 3]) == rows
    with torch.device("meta"):
        empty = HashZchManagedCollisionModule(6, "meta", 2, write_runtime_meta_dim=1, **LRU)
    empty.load_state_dict(mcm.state_dict(), assign=True)
    assert look_up(empty.eval(), [1, 2, 3]) == rows
    made = HashZchManagedCollisionModule(6, "meta", 2, **LRU).to_empty(device="cpu")
    assert made.open_slots().tolist() == [6]
    assert look_up(made, [1, 2, 3]) == rows
    assert look_up(copy.deepcopy(mcm), [1, 2, 3]) == rows


def test_states_that_do_not_fit() -> None:
    mcm = new(12, 2)
    look_up(mcm, [1, 2, 3, 4])
    with pytest.raises(
        RuntimeError, match=r"_hash_zch_bucket should be 3, `total_num_buckets`.*Received 2"
    ):
        new(12, 3).load_state_dict(mcm.state_dict())
    mcm._hash_zch_identities.copy_(mcm._hash_zch_identities.roll(1, 0))
    with pytest.raises(ValueError, match="should lie within `max_probe`"):
        mcm.validate_state()
    with pytest.raises(RuntimeError, match="should lie within `max_probe`"):
        new(12, 2).load_state_dict(mcm.state_dict())
    without = new(12, 2, persist_hash_zch_bucket=False)
    with pytest.raises(RuntimeError, match=r"Missing key.*_hash_zch_bucket"):
        new(12, 2).load_state_dict(without.state_dict())
    without.load_state_dict(new(12, 2).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for _hash_zch_bucket"):
        new(12, 2).load_state_dict(new(12, 2).state_dict() | {"_hash_zch_bucket": T([2, 2])})


@pytest.mark.parametrize("options", [{}, LRU], ids=["without", "with"])
def test_a_map_for_inference_takes_what_one_with_a_policy_learnt(clock, options) -> None:
    trained = new(6, 2, **LRU)
    rows = look_up(trained, [1, 2, 3])
    serving = new(6, 2, is_inference=True, **options)
    serving.load_state_dict(trained.state_dict())
    assert look_up(serving, [1, 2, 3]) == rows
    trained.reset_inference_mode()  # it has hours still, and takes them up with its training
    with pytest.raises(RuntimeError, match=r"Missing key.*_hash_zch_metadata"):
        trained.load_state_dict(serving.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*_hash_zch_metadata"):
        new(6, 2).load_state_dict(trained.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"output_segments": [0, 7, 12, 19, 24]},
        {},
        {"input_hash_size": 90},
        {"inference_dispatch_div_train_world_size": True, "input_hash_size": 90},
        {"opt_in_prob": 100, "percent_reserved_slots": 30, "output_segments": [0, 7, 12, 19, 24]},
    ],
    ids=["uneven", "even", "ranges", "local", "reserved"],
)
def test_parts_give_the_rows_of_the_whole(options) -> None:
    whole = new(24, 4, **options)
    bounds = options.get("output_segments", [0, 6, 12, 18, 24])
    ids = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    rows = T(look_up(whole, ids.tolist()))
    span = -(-options.get("input_hash_size", 0) // 4)
    buckets = ids // span if span else ids % 4
    for first, end in ((0, 2), (2, 3), (3, 4)):
        part = whole.rebuild_with_output_id_range((bounds[first], bounds[end]), bounds)
        assert part.is_sharded
        assert part.output_offset == bounds[first]
        assert part.output_size() == bounds[end] - bounds[first]
        mine = (buckets >= first) & (buckets < end)
        assert look_up(part, ids[mine].tolist()) == rows[mine].tolist()
        held, known = part.held()
        assert torch.equal(whole.rows_of(known), held)
        state = part.state_dict()["_hash_zch_identities"]
        assert torch.equal(state, whole._hash_zch_identities[bounds[first] : bounds[end]])
        stranger = int(ids[~mine][0])
        with pytest.raises(
            ValueError, match=f"feature 'f' of table 't' should be of the buckets.*{stranger}"
        ):
            look_up(part, [stranger])
    assert not whole.is_sharded
    with pytest.raises(ValueError, match="`output_id_range` of map 't' should begin and end"):
        whole.rebuild_with_output_id_range((0, 8))
    with pytest.raises(ValueError, match="`output_segments` of map 't' should be among"):
        whole.rebuild_with_output_id_range((0, bounds[2]), [0, 8, 24])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "`zch_size` of map 't' should be at least 1"),
        ({"rows": 17, "buckets": 2}, "`zch_size` of map 't' should be a multiple of its 2 buckets"),
        ({"buckets": 0}, "`total_num_buckets`"),
        ({"max_probe": 0}, "`max_probe`"),
        ({"read_only_suffix": ""}, "`read_only_suffix` of map 't' should have a character"),
        ({"input_hash_size": -1}, "`input_hash_size`"),
        ({"start_bucket": 1}, "`end_bucket`"),
        ({"end_bucket": 2}, "`end_bucket`"),
        ({"output_segments": [0, 5]}, "give it `zch_size`"),
        ({"output_segments": [0, 12, 13, 24], "buckets": 2}, "should begin where buckets do"),
        ({"opt_in_prob": 50}, "`opt_in_prob` of map 't' should be from 1 to 100"),
        ({"opt_in_prob": 0, "percent_reserved_slots": 5}, "`opt_in_prob`"),
        ({"percent_reserved_slots": 5}, "`opt_in_prob`"),
        ({"percent_reserved_slots": 100, "opt_in_prob": 5}, r"should be in \[0, 100\)"),
        ({"percent_reserved_slots": 1, "opt_in_prob": 5}, "at least one row of a bucket"),
        ({"eviction_config": SINGLE["eviction_config"]}, "should come with `eviction_policy_name`"),
        (
            {"enable_per_feature_lookups": True},
            "`enable_per_feature_lookups` of map 't' should be False",
        ),
        ({"no_bag": True}, "`no_bag` of map 't' should be False"),
        ({"track_id_freq": True, "write_runtime_meta_dim": 1}, "`track_id_freq` of map 't'"),
        ({"write_runtime_meta_dim": -1}, "`write_runtime_meta_dim`"),
        ({"tb_logging_frequency": -1}, "`tb_logging_frequency`"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        new(**{"rows": 24, **options})


def test_ids_may_be_a_column(clock) -> None:
    columns = T([[1, 9], [2, 9], [3, 9]])
    rows = new(6, 2, **LRU)({"f": JaggedTensor(columns[:, 0], lengths=T([2, 1]))})["f"].values()
    assert rows.tolist() == look_up(new(6, 2, **LRU), [1, 2, 3])


def test_ids_that_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"feature 'f' of table 't' should be in \[0, 100\).*Received -3"
    ):
        look_up(new(24, 2, input_hash_size=100), [5, -3])
    with pytest.raises(ValueError, match="Received 100"):
        look_up(new(24, 2, input_hash_size=100), [5, 100])
    with pytest.raises(TypeError, match="Ids of feature 'f' of table 't' should be integers"):
        new()({"f": JaggedTensor(T([1.0]), lengths=T([1]))})
    with pytest.raises(NotImplementedError, match="replicas"):
        new().sync_identities(True, 1, [0], None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_segments": [0, 5.0, 24], "buckets": 2}, "`output_segments` of map 't'.*float"),
        ({"percent_reserved_slots": "5", "opt_in_prob": 5}, "`percent_reserved_slots` of map 't'"),
        ({"read_only_suffix": None}, "`read_only_suffix` should be a str. Received None"),
        ({"eviction_policy_name": "LRU_EVICTION"}, "`eviction_policy_name` of map 't'.*'LRU"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_of_other_types(options, message) -> None:
    with pytest.raises(TypeError, match=message):
        new(**options)


def test_input_mapper() -> None:
    ids = T([1, 2, 3, -5, 105, 106])
    found = TrainInputMapper(0, 2, T([8, 8]), T([0, 8]))(ids)
    assert [part.tolist() for part in found] == [ids.tolist(), [8] * 6, [8, 0, 8, 8, 8, 0]]
    offsets = TrainInputMapper(0, 2, T([8, 8]), T([0, 8]))(ids, T([8]))[2]
    assert offsets.tolist() == [0, -8, 0, 0, 0, -8]
    found = TrainInputMapper(0, 2, T([8, 8]), T([0, 8]), True)(ids)
    assert found[0].tolist() == [0, 1, 1, -3, 52, 53]
    found = TrainInputMapper(200, 2, T([8, 8]), T([0, 8]), True)(T([1, 2, 3, 150, 105, 106]))
    assert [part.tolist() for part in found] == [[1, 2, 3, 50, 5, 6], [8] * 6, [0, 0, 0, 8, 8, 8]]
    with pytest.raises(ValueError, match="`size_per_rank` of map 'unnamed' should have a number"):
        TrainInputMapper(0, 4, T([8, 8]), T([0, 8]))
    with pytest.raises(ValueError, match=r"should be in \[0, 200\)"):
        TrainInputMapper(200, 2, T([8, 8]), T([0, 8]))(T([200]))


# In collections. Table "a" trains itself and shares its map with "b", which an optimizer trains; "c" has rows as ids.

TABLES = {"a": (4, 2, ["f", "g"]), "b": (5, 3, ["f"]), "c": (6, 1, ["h"])}


def collection(pooled: bool = True, **options):
    kind = EmbeddingBagConfig if pooled else EmbeddingConfig
    tables = [
        kind(
            rows,
            dim,
            name,
            feature_names=names,
            init_fn=lambda w: w.fill_(100.0),
            **({"optimizer": OptimizerType.ADAGRAD, "lr": 1.0} if name == "a" else {}),
        )
        for name, (rows, dim, names) in TABLES.items()
    ]
    shared = new(4, 1, **options)
    maps = ManagedCollisionCollection({"a": shared, "b": shared, "c": None}, tables)
    if pooled:
        made = EmbeddingBagCollection(tables=tables)
        return ManagedCollisionEmbeddingBagCollection(made, maps, return_remapped_features=True)
    made = EmbeddingCollection(tables=tables)
    return ManagedCollisionEmbeddingCollection(made, maps, return_remapped_features=True)


def batch(f: list[int], g: list[int]) -> KeyedJaggedTensor:
    size = max(len(f), len(g))
    bags = {"g": g, "h": [0] * size, "f": f}
    return KeyedJaggedTensor.from_lists(
        {k: [[i] for i in v] + [[]] * (size - len(v)) for k, v in bags.items()}
    )


def step(module, features, optimizer) -> KeyedJaggedTensor:
    output, rows = module(features)
    if isinstance(output, dict):
        sum(jt.values().sum() for jt in output.values()).backward()
    else:
        output.values().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return rows


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequence"])
def test_evicted_rows_start_anew_in_every_table(clock, pooled: bool) -> None:
    module = collection(pooled, **SINGLE)
    weights = {n.split(".")[-2]: w for n, w in module.named_parameters()}
    yours = torch.optim.Adagrad([weights["b"], weights["c"]], lr=1.0)
    step(module, batch([1, 2], [3, 2]), yours)
    step(module, batch([1, 2], [3, 3]), yours)
    mcm = module._managed_collision_collection.maps()["a"]
    rows = dict(zip([1, 2, 3], mcm.rows_of(T([1, 2, 3])).tolist(), strict=True))
    clock.hour = 502
    step(module, batch([2], []), yours)
    clock.hour = 503
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    output, mapped = module(batch([4, 5, 6], []))
    taken = sorted(set(mapped["f"].values().tolist()))
    assert set(taken) == {*range(4)} - {rows[2]}
    for name in "ab":
        assert (weights[name][taken] == 100).all()
        assert torch.equal(weights[name][rows[2]], before[name][rows[2]])
    assert torch.equal(weights["c"], before["c"])
    assert (weights["b"][4] == 100).all()
    gradients = (
        [jt.values() for jt in output.values()] if isinstance(output, dict) else [output.values()]
    )
    sum(values.sum() for values in gradients).backward()
    yours.step()
    for name in "ab":  # the first step of Adagrad at a rate of 1 is 1, whatever the state was
        assert torch.allclose(weights[name][taken], T(99.0))


def test_a_resumed_run_is_the_same(clock) -> None:
    def run(module, yours, hours):
        for hour in hours:
            clock.hour = 500 + hour
            generator = torch.Generator().manual_seed(hour)
            ids = torch.randint(-8, 8, (2, 5), generator=generator).tolist()
            step(module, batch(*ids), yours)

    def made():
        module = collection(**LRU)
        weights = [w for n, w in module.named_parameters() if "a.weight" not in n]
        return module, torch.optim.Adagrad(weights, lr=0.5)

    whole, resumed = made(), made()
    run(*whole, range(12))
    run(*resumed, range(5))
    saved = copy.deepcopy(
        (
            resumed[0].state_dict(),
            resumed[1].state_dict(),
            resumed[0]._embedding_module.fused_optimizer.state_dict(),
        )
    )
    again = made()
    again[0].load_state_dict(saved[0])
    again[1].load_state_dict(saved[1])
    again[0]._embedding_module.fused_optimizer.load_state_dict(saved[2])
    run(*again, range(5, 12))
    for (name, a), b in zip(
        whole[0].state_dict().items(), again[0].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_collections_drop_ids_that_are_left_out() -> None:
    module = collection(disable_fallback=True)
    features = batch([1, 2, 3, 4, 5, 6], [1, 7])
    output, rows = module(features)
    known = module._managed_collision_collection.maps()["a"].held()[1].tolist()
    assert rows.to_lists()["f"] == [
        r if i in known else []
        for i, r in zip([1, 2, 3, 4, 5, 6], rows.to_lists()["f"], strict=True)
    ]
    assert sum(map(len, rows.to_lists()["f"])) == len(set(known) & {1, 2, 3, 4, 5, 6})
    assert rows.to_lists()["h"] == features.to_lists()["h"]
    assert (output["f@a"][[not bag for bag in rows.to_lists()["f"]]] == 0).all()
    mask = module.lookup_remapped_lengths_mask(features)
    assert torch.equal(mask, rows.lengths() > 0)
    maps = module._managed_collision_collection
    kept = maps(features, mutate_miss_lengths=False)
    assert torch.equal(kept.lengths(), features.lengths())
    assert torch.equal(kept.values()[kept.values() >= 0], rows.values())


def test_dropped_ids_of_a_variable_batch() -> None:
    module = new(1, disable_fallback=True)
    maps = ManagedCollisionCollection(
        {"t": module}, [EmbeddingBagConfig(1, 2, "t", feature_names=["f", "g"])]
    )
    features = KeyedJaggedTensor(
        ["f", "g"],
        T([5, 6, 5, 6, 5]),
        torch.arange(5.0),
        T([2, 1, 2]),
        stride_per_key_per_rank=[[1], [2]],
        inverse_indices=(["f", "g"], T([[0, 0], [1, 0]])),
    )
    found = maps(features)
    assert found.values().tolist() == [0, 0, 0]
    assert found.weights().tolist() == [0, 2, 4]
    assert found.lengths().tolist() == [1, 1, 1]
    assert found.stride_per_key() == [1, 2]
    assert torch.equal(found.inverse_indices()[1], features.inverse_indices()[1])


def test_rows_by_id(clock) -> None:
    module = collection(**LRU)
    module(batch([1, 2], []))
    module.load_rows("a", T([1, 9]), T([[1.0, 2.0], [3.0, 4.0]]))
    ids, vectors = module.export_rows("a", T([9, 1]))
    assert (ids.tolist(), vectors.tolist()) == ([9, 1], [[3.0, 4.0], [1.0, 2.0]])
    assert sorted(module.export_rows("b")[0].tolist()) == [1, 2, 9]
    module.load_rows("b", T([8]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="without a row should each find a free one among the 128"):
        module.load_rows("b", T([7]), torch.zeros(1, 3))
    clock.hour = 501
    assert module(batch([7], []))[1]["f"].values().numel() == 1


def test_runtime_numbers_of_a_collection() -> None:
    module = collection(write_runtime_meta_dim=2)
    maps = module._managed_collision_collection
    ids = KeyedJaggedTensor.from_lists({"f": [[1, 2]], "g": [[3]]})
    plain = ManagedCollisionCollection(
        {"t": new(8, write_runtime_meta_dim=2)},
        [EmbeddingBagConfig(8, 2, "t", feature_names=["f", "g"])],
    )
    rows = plain(ids)
    plain.maps()["t"].update_runtime_meta(ids.values(), rows.values(), T([[1, 2], [3, 4], [5, 6]]))
    assert plain.lookup_custom_runtime_meta(rows).tolist() == [[1, 2], [3, 4], [5, 6]]
    found = plain.lookup_runtime_meta(ids, rows)
    assert found.weights().tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(ValueError, match="which keep none of 'h'"):
        maps.lookup_custom_runtime_meta(KeyedJaggedTensor.from_lists({"h": [[1]]}))


def test_a_feature_with_a_map_in_each_of_two_tables() -> None:
    tables = [EmbeddingBagConfig(8, 2, name, feature_names=["f"]) for name in ("t", "u")]
    options = {"write_runtime_meta_dim": 1, "disable_fallback": True}
    maps = {"t": new(1, **options), "u": new(8, **options)}
    both = ManagedCollisionCollection(maps, tables)
    ids = KeyedJaggedTensor.from_lists({"f": [[1, 2], [3]]})
    rows = both(ids)
    assert [len(bag) for bag in rows["f@t"].to_dense()] == [1, 0]
    assert [len(bag) for bag in rows["f@u"].to_dense()] == [2, 1]
    maps["t"].update_runtime_meta(T([1]), T([0]), T([7]))
    maps["u"].update_runtime_meta(ids.values(), rows["f@u"].values(), T([4, 5, 6]))
    assert both.lookup_custom_runtime_meta(rows).flatten().tolist() == [7, 4, 5, 6]
    kept = both(ids, mutate_miss_lengths=False)
    found = both.lookup_runtime_meta(ids, kept).weights().flatten().tolist()
    assert found == [7, -1, -1, 4, 5, 6]


def test_a_forward_pass_that_runs_again_finds_its_rows(clock) -> None:
    module = collection(track_id_freq=True, opt_in_prob=60, percent_reserved_slots=25, **SINGLE)
    mcm = module._managed_collision_collection.maps()["a"]
    features, seen = batch([1, 2, 3, 4], [5]), []

    def region(x):
        output, rows = module(features)
        seen.append((rows.values(), torch.rand(1)))
        return output.values() * x

    checkpoint(region, torch.ones(1, requires_grad=True), use_reentrant=False).sum().backward()
    assert len(seen) == 2
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert int(mcm._hash_zch_runtime_meta.sum()) == mcm.stats().occupied


@pytest.mark.filterwarnings(  # torch's own tracing warns about its own insides
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_in_a_compiled_program(clock) -> None:
    eager, compiled = collection(**LRU), collection(**LRU)
    function = torch.compile(compiled, backend="eager")
    for ids in ([1, 2, 3], [4, 5, 1]):
        clock.hour += 1
        expected, found = eager(batch(ids, [])), function(batch(ids, []))
        assert torch.equal(expected[0].values(), found[0].values())
        assert torch.equal(expected[1].values(), found[1].values())


def test_ids_may_come_preprocessed() -> None:
    tables = [EmbeddingBagConfig(8, 2, "t", feature_names=["f"])]
    ManagedCollisionCollection({"t": new(8)}, tables, need_preprocess=False)
