"""Tables and maps together: an id's vector is the one that it trained, whatever happens to rows."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    OptimizerType,
)
from torchrec.modules.collection import collections_in
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
    evict,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.optim import owner_of
from torchrec.optim.keyed import KeyedOptimizerWrapper

D = 2


class OwnDistanceLFU(DistanceLFU_EvictionPolicy):
    """Goes through the metadata contract."""


def make(
    rows: int = 4,
    interval: int = 1,
    policy=None,
    pooled: bool = True,
    mch_size: int | None = None,
    remapped: bool = False,
    **options,
):
    kind, collection, managed = (
        (EmbeddingBagConfig, EmbeddingBagCollection, ManagedCollisionEmbeddingBagCollection)
        if pooled
        else (EmbeddingConfig, EmbeddingCollection, ManagedCollisionEmbeddingCollection)
    )
    size = rows + (mch_size or 0)
    tables = [kind(size, D, "t", feature_names=["f"], **options)]
    policy = LFU_EvictionPolicy() if policy is None else policy
    maps = {
        "t": MCHManagedCollisionModule(rows, "cpu", policy, interval, mch_size=mch_size, name="t")
    }
    return managed(collection(tables=tables), ManagedCollisionCollection(maps, tables), remapped)


def features(*ids: int) -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lists({"f": [[i] for i in ids]})


def weight_of(module) -> torch.Tensor:
    return module._embedding_module._tables.weights()[0]


def vectors(module) -> dict[int, list[float]]:
    ids, found = module.export_rows("t")
    return dict(zip(ids.tolist(), found.tolist(), strict=True))


def rows_of(module, *ids: int) -> list[int]:
    return module._managed_collision_collection.maps()["t"].rows_of(torch.tensor(ids)).tolist()


def train(module, *ids: int, optimizer=None) -> None:
    output, _ = module(features(*ids))
    values = output["f"].values() if isinstance(output, dict) else output["f"]
    values.sum().backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


# What comes out.


@pytest.mark.parametrize("remapped", [False, True])
def test_pooled(remapped):
    module = make(remapped=remapped)
    output, rows = module(KeyedJaggedTensor.from_lists({"f": [[7, 8], [], [8]]}))
    weight = weight_of(module)
    assert torch.equal(output["f"], torch.stack([weight[0] + weight[1], 0 * weight[0], weight[1]]))
    assert rows.to_lists() == {"f": [[0, 1], [], [1]]} if remapped else rows is None


def test_sequences():
    module = make(pooled=False, remapped=True)
    output, rows = module(KeyedJaggedTensor.from_lists({"f": [[7, 8], [], [8]]}))
    assert torch.equal(output["f"].values(), weight_of(module)[[0, 1, 1]])
    assert output["f"].lengths().tolist() == [2, 0, 1]
    assert rows.to_lists() == {"f": [[0, 1], [], [1]]}


def test_names_in_the_state():
    names = list(make().state_dict())
    inside = "_managed_collision_collection._managed_collision_modules.t."
    assert all(n.startswith((inside, "_embedding_module.")) for n in names)
    assert names[-1] == "_embedding_module.embedding_bags.t.weight"


# Evicted rows start as new ones.


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.1, amsgrad=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1, initial_accumulator_value=0.5),
    "rprop": lambda ps: torch.optim.Rprop(ps, lr=0.1),
    "sparse_adam": lambda ps: torch.optim.SparseAdam(ps, lr=0.1),
}


def row_state(module, optimizer, row: int) -> dict[str, list[float]]:
    weight = weight_of(module)
    return {
        name: value[row].tolist()
        for name, value in optimizer.state[weight].items()
        if isinstance(value, torch.Tensor) and value.shape[:1] == weight.shape[:1]
    }


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "keyed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_an_optimizer_is_reset(name, wrapped):
    sparse = name == "sparse_adam"
    module = make(3, sparse=sparse)
    optimizer = OPTIMIZERS[name](list(module.parameters()))
    if wrapped:
        optimizer = KeyedOptimizerWrapper(dict(module.named_parameters()), OPTIMIZERS[name])
    for _ in range(3):
        train(module, 1, 2, 1, optimizer=optimizer)
    kept, lost = row_state(module, optimizer, 0), row_state(module, optimizer, 1)
    assert lost
    assert any(value != [0.0] * D for value in lost.values())
    module(features(9, 9, 9, 9))  # takes the row of 2
    assert rows_of(module, 1, 2, 9) == [0, -1, 1]
    weight_of(module).grad = torch.zeros_like(weight_of(module))  # nothing to learn this time
    if sparse:
        weight_of(module).grad = weight_of(module).grad.to_sparse(1)
    optimizer.step()
    start = {"sum": 0.5, "step_size": 0.1}
    expected = {state: [start.get(state, 0.0)] * D for state in lost}
    found = row_state(module, optimizer, 1)
    assert found.keys() == expected.keys()
    assert all(value == pytest.approx(expected[state]) for state, value in found.items())
    if sparse:
        assert row_state(module, optimizer, 0) == kept
    else:
        assert row_state(module, optimizer, 0) != expected


@pytest.mark.parametrize(
    "kind",
    [OptimizerType.ADAM, OptimizerType.ROWWISE_ADAGRAD, OptimizerType.PARTIAL_ROWWISE_ADAM],
)
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequence"])
def test_state_of_a_fused_table_is_reset(kind, pooled):
    module = make(3, pooled=pooled, optimizer=kind, lr=0.1)
    for _ in range(3):
        train(module, 1, 2, 1)
    state = module._embedding_module.fused_optimizer.state[weight_of(module)]
    tensors = [value for value in state.values() if value.dim() and len(value) == 3]
    assert all(bool((value[:2] != 0).any(1).all()) for value in tensors)
    module(features(9, 9, 9, 9))
    assert all(bool((value[1] == 0).all()) for value in tensors)
    assert all(bool((value[0] != 0).any()) for value in tensors)


def test_learning_rates_of_another_optimizer_reset_too():
    module = make(3, optimizer=OptimizerType.ADAGRAD)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    train(module, 1, 2, 2, optimizer=optimizer)
    sums = module._embedding_module.fused_optimizer.state[weight_of(module)]["sum"]
    assert (sums[:2] > 0).all()
    module(features(9, 9, 9))
    assert (sums > 0).all(1).tolist() == [False, True, False]


def test_a_state_that_is_loaded_calls_waiting_resets_off():
    module = make(3)
    optimizer = torch.optim.Adagrad(module.parameters(), lr=0.1)
    train(module, 1, 2, optimizer=optimizer)
    saved = copy.deepcopy([module.state_dict(), optimizer.state_dict()])
    module(features(7, 7, 7))  # takes a row, whose state the next step is to reset
    assert rows_of(module, 1, 2, 7).count(-1) == 1
    module.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(module, 1, 2, optimizer=optimizer)
    state = optimizer.state[weight_of(module)]["sum"]
    assert state.tolist() == [[2.0] * D, [2.0] * D, [0.0] * D]


def test_resets_that_wait_take_bounded_memory():
    """For an optimizer that does not step; those of a fused table do not wait at all."""
    module, fused = make(4), make(4, optimizer=OptimizerType.ADAM, lr=0.1)
    for first in range(3, 60, 3):
        for each in (module, fused):
            each(features(*[first, first + 1, first + 2] * first))  # come more often than others
        assert sum(part.numel() for part in owner_of(weight_of(module)).evicted) <= 2 * 4
    assert set(torch.cat(owner_of(weight_of(module)).evicted).tolist()) == {0, 1, 2}
    assert owner_of(weight_of(fused)).evicted == []


def test_a_waiting_gradient_is_not_for_the_next_id():
    module = make(3)
    train(module, 1, 2, 2)  # accumulates, no step
    module(features(9, 9))
    assert weight_of(module).grad.tolist() == [[0, 0], [2, 2], [0, 0]]
    fused = make(3, optimizer=OptimizerType.SGD, lr=1.0)
    with fused._embedding_module.fused_optimizer.accumulate():
        train(fused, 1, 2, 2)
    before = vectors(fused)
    train(fused, 9, 9)
    after = vectors(fused)
    assert after[2] == pytest.approx([before[2][0] - 2, before[2][1] - 2])
    fresh = make(3, optimizer=OptimizerType.SGD, lr=1.0)
    fresh.load_state_dict(fused.state_dict())
    evict({"t": torch.tensor([0])}, fresh._embedding_module)
    start = weight_of(fresh)[0].tolist()
    assert after[9] == pytest.approx([start[0] - 2, start[1] - 2])


def test_sparse_gradients_that_wait_are_dropped():
    module = make(3, sparse=True)
    train(module, 1, 2, 2)
    module(features(9, 9))
    assert weight_of(module).grad.to_dense().tolist() == [[0, 0], [2, 2], [0, 0]]


@pytest.mark.parametrize("custom", [False, True])
def test_new_rows_start_as_the_configuration_says(custom):
    options = (
        {"init_fn": lambda w: w.fill_(7)}
        if custom
        else {"weight_init_min": 2, "weight_init_max": 3}
    )
    module = make(50, **options)
    with torch.no_grad():
        weight_of(module).zero_()
    before = torch.get_rng_state()
    module(features(*range(30)))
    assert torch.equal(torch.get_rng_state(), before)  # draws from a generator of its own
    drawn = weight_of(module)[:30]
    if custom:
        assert (drawn == 7).all()
    else:
        assert bool(((drawn >= 2) & (drawn < 3)).all())
        assert drawn.unique().numel() == drawn.numel()
    assert (weight_of(module)[30:] == 0).all()


def test_evict_of_rows_that_are_none_changes_nothing():
    tables = make(4)._embedding_module
    before = tables.embedding_bags["t"].weight.detach().clone()
    for wrong in (4, -1):
        with pytest.raises(IndexError, match=rf"table 't' should be in \[0, 4\). Received {wrong}"):
            evict({"t": torch.tensor([0, wrong])}, tables)
    with pytest.raises(TypeError, match=r"Rows of table 't' should be int64. Received torch.bool"):
        evict({"t": torch.tensor([True])}, tables)
    assert torch.equal(tables.embedding_bags["t"].weight, before)


def test_evict_of_nothing_and_of_no_collection():
    module = make()
    before = weight_of(module).clone()
    evict({"t": None}, module._embedding_module)
    evict({"t": torch.empty(0, dtype=torch.int64)}, module._embedding_module)
    assert torch.equal(weight_of(module), before)
    with pytest.raises(TypeError, match="`ebc` should be a collection of tables, such as an Emb"):
        evict({}, torch.nn.Linear(1, 1))


def test_evict_of_collections_around_others():
    module = make(3, init_fn=torch.nn.init.ones_)
    fused = FusedEmbeddingBagCollection(
        [EmbeddingBagConfig(3, D, "t", feature_names=["f"], init_fn=torch.nn.init.ones_)],
        torch.optim.SGD,
        {"lr": 0.1},
    )
    for each in (module, fused):
        (weight,) = (shard.weight for shard in each.table_store().table_shards("t"))
        torch.nn.init.zeros_(weight)
        evict({"t": torch.tensor([1])}, each)
        assert weight.tolist() == [[0] * D, [1] * D, [0] * D]


def test_managed_collections_are_collections():
    module = make(3)
    assert [(path, found) for path, found in collections_in(torch.nn.Sequential(module))] == [
        ("0", module)
    ]
    assert [config.name for config in module.table_store().table_configs()] == ["t"]


# Saving and loading.


def run(module, batches, optimizer=None) -> None:
    for ids in batches:
        train(module, *ids, optimizer=optimizer)


@pytest.mark.parametrize("policy", [LRU_EvictionPolicy, DistanceLFU_EvictionPolicy, OwnDistanceLFU])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "adam"])
def test_a_resumed_run_is_the_same_to_the_last_bit(policy, fused):
    ids = torch.randint(0, 20, (20, 12), generator=torch.Generator().manual_seed(4)).tolist()
    options = {"optimizer": OptimizerType.ADAM, "lr": 0.1} if fused else {}

    def start(seed):
        torch.manual_seed(seed)
        module = make(9, 3, policy(), **options)
        if fused:
            return module, module._embedding_module.fused_optimizer
        return module, torch.optim.Adam(module.parameters(), lr=0.1)

    whole, optimizer = start(0)
    run(whole, ids[:10], optimizer)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    run(whole, ids[10:], optimizer)
    resumed, optimizer = start(1)
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    run(resumed, ids[10:], optimizer)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("size", [3, 6, 12])
def test_vectors_and_state_move_with_their_ids(size):
    options = {"optimizer": OptimizerType.ADAGRAD, "lr": 0.1}
    module = make(6, 1, **options)
    run(module, [[1, 2, 3, 4, 5], [1, 3, 5], [5, 3], [99]])
    optimizer = module._embedding_module.fused_optimizer
    saved, state = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    sums = dict(zip(*[t.tolist() for t in reversed(held_with(module, "sum"))], strict=True))
    expected, unknown = vectors(module), weight_of(module)[-1].tolist()

    other = make(size, 1, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.load_state_dict(saved)
    other._embedding_module.fused_optimizer.load_state_dict(other.fit_optimizer_state(state))
    found = vectors(other)
    assert found == {i: expected[i] for i in found}
    assert weight_of(other)[size - 1].tolist() == unknown
    moved = dict(zip(*[t.tolist() for t in reversed(held_with(other, "sum"))], strict=True))
    assert moved == {i: sums[i] for i in found}
    if size == 3:
        assert set(found) == {3, 5}
        assert str(other.load_reports["t"]) == "2 ids kept, 3 dropped"
        assert [str(w.message) for w in caught] == [
            "Map 't' has another size now: 2 ids kept, 3 dropped."
        ]
    else:
        assert set(found) == {1, 2, 3, 4, 5}
        assert not caught
        assert ("t" in other.load_reports) == (size == 12)
    train(other, 5, 77, 99)


def held_with(module, state):
    rows, ids = module._managed_collision_collection.maps()["t"].held()
    values = module._embedding_module.fused_optimizer.state[weight_of(module)][state]
    return values[rows].sum(1), ids


# Rows by the original id.


def test_rows_go_in_and_come_out_by_id():
    module = make(4, optimizer=OptimizerType.ADAGRAD, lr=0.1)
    train(module, -5, 2**62, 2**62)
    ids, found = module.export_rows("t")
    assert ids.tolist() == [-5, 2**62]
    assert torch.equal(found, weight_of(module)[:2])
    module.load_rows("t", torch.tensor([2**62, 77]), torch.tensor([[1.0, 2], [3, 4]]))
    assert vectors(module)[77] == [3, 4]
    assert rows_of(module, 77) == [2]
    output, _ = module.eval()(features(77, 2**62, 123))
    assert output["f"].tolist()[:2] == [[3, 4], [1, 2]]
    ids, found = module.export_rows("t", torch.tensor([77, -5], dtype=torch.int32))
    assert (ids.dtype, ids.tolist(), found[0].tolist()) == (torch.int64, [77, -5], [3, 4])
    module.load_rows("t", torch.tensor([2**62]), torch.tensor([[0.0, 0]]), reset_state=True)
    sums = module._embedding_module.fused_optimizer.state[weight_of(module)]["sum"]
    assert (sums != 0).any(1).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("ids", "shape", "message"),
    [
        ([1, 1], (2, D), "`ids` of table 't' should be distinct"),
        ([1], (1, D + 1), r"`vectors` of table 't' should have the shape \(1, 2\)"),
        ([1, 2, 3, 4], (4, D), r"should be at most as many as free rows \(3\). Received 4"),
    ],
)
def test_rows_that_do_not_fit_change_nothing(ids, shape, message):
    module = make(4)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        module.load_rows("t", torch.tensor(ids), torch.zeros(shape))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_unknown_tables_and_ids():
    module = make()
    with pytest.raises(ValueError, match=r"`table` should be one of \['t'\]. Received 'x'"):
        module.export_rows("x")
    with pytest.raises(IndexError, match=r"of table 't' should hold rows. Received 5, which holds"):
        module.export_rows("t", torch.tensor([5]))
    with pytest.raises(TypeError, match=r"should be integers. Received torch.float32"):
        module.export_rows("t", torch.tensor([5.0]))


def test_tables_without_a_map_are_as_ever():
    tables = [
        EmbeddingBagConfig(4, D, "t", feature_names=["f"]),
        EmbeddingBagConfig(3, D, "plain", feature_names=["g"]),
    ]
    maps = {"t": MCHManagedCollisionModule(4, "cpu", LFU_EvictionPolicy(), 1), "plain": None}
    module = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=tables), ManagedCollisionCollection(maps, tables)
    )
    output, _ = module(KeyedJaggedTensor.from_lists({"f": [[10**9]], "g": [[2]]}))
    plain = module._embedding_module.embedding_bags["plain"].weight
    assert torch.equal(output["g"][0], plain[2])
    module.load_rows("plain", torch.tensor([0]), torch.ones(1, D))
    assert module.export_rows("plain", torch.tensor([0]))[1].tolist() == [[1, 1]]
    assert list(module.stats()) == ["t"]
    with pytest.raises(IndexError, match=r"Ids of feature 'g' should be in \[0, 3\)"):
        module(KeyedJaggedTensor.from_lists({"f": [[1]], "g": [[3]]}))


def test_tables_that_share_a_map_reset_together():
    shared = MCHManagedCollisionModule(3, "cpu", LFU_EvictionPolicy(), 1)
    tables = [
        EmbeddingBagConfig(3, d, name, feature_names=["f"], init_fn=torch.nn.init.ones_)
        for name, d in (("deep", 4), ("wide", 1))
    ]
    module = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=tables),
        ManagedCollisionCollection({"deep": shared, "wide": shared}, tables),
    )
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    output, _ = module(features(5, 6))
    assert output.keys() == ["f@deep", "f@wide"]
    assert (output.values() == 1).all()
    module.load_rows("wide", torch.tensor([6]), torch.tensor([[3.0]]))
    saved = module.state_dict()
    module.load_state_dict(saved)
    assert module.export_rows("wide")[1].tolist() == [[1], [3]]


def test_a_map_that_fails_leaves_no_row_of_another_table_as_it_was():
    def residual(ids, size):
        if 13 in ids.tolist():
            raise ValueError("unlucky")
        return ids % size

    tables = [
        EmbeddingBagConfig(3, D, "first", feature_names=["f"], init_fn=torch.nn.init.ones_),
        EmbeddingBagConfig(3, D, "last", feature_names=["g"], init_fn=torch.nn.init.ones_),
    ]
    maps = {
        "first": MCHManagedCollisionModule(3, "cpu", LFU_EvictionPolicy(), 1, name="first"),
        "last": MCHManagedCollisionModule(
            1, "cpu", LFU_EvictionPolicy(), 1, mch_size=2, mch_hash_func=residual, name="last"
        ),
    }
    module = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=tables), ManagedCollisionCollection(maps, tables)
    )
    for weight in module.parameters():
        torch.nn.init.zeros_(weight)
    with pytest.raises(ValueError, match="unlucky"):
        module(KeyedJaggedTensor.from_lists({"f": [[5, 6]], "g": [[7, 7, 13]]}))
    first, last = module.parameters()
    assert first.tolist() == [[1] * D, [1] * D, [0] * D]
    module(KeyedJaggedTensor.from_lists({"f": [[5]], "g": [[7]]}))
    assert last.tolist() == [[1] * D, [0] * D, [0] * D]


def test_evictions_of_a_map_that_was_called_by_hand_are_reset_by_the_next_look_up():
    module = make(3, init_fn=torch.nn.init.ones_)
    torch.nn.init.zeros_(weight_of(module))
    maps = module._managed_collision_collection
    maps(features(5))
    module(features(5))
    assert weight_of(module).tolist() == [[1] * D, [0] * D, [0] * D]
    assert maps.evict() == {"t": None}


# Mistakes.


def test_collections_of_other_tables_are_refused():
    t = EmbeddingBagConfig(4, D, "t", feature_names=["f"])
    u = EmbeddingBagConfig(4, D, "u", feature_names=["g"])
    maps = {n: MCHManagedCollisionModule(4, "cpu", LFU_EvictionPolicy(), 1) for n in "tu"}
    managed = ManagedCollisionEmbeddingBagCollection
    both, one = EmbeddingBagCollection(tables=[t, u]), EmbeddingBagCollection(tables=[t])
    with pytest.raises(ValueError, match=r"should have table 'u' \(with the map None"):
        managed(both, ManagedCollisionCollection(maps, [t]))
    with pytest.raises(ValueError, match=r"should have the tables \['t'\]. Received 'u', too"):
        managed(one, ManagedCollisionCollection(maps, [t, u]))
    other = EmbeddingBagConfig(4, D, "t", feature_names=["x"])
    with pytest.raises(ValueError, match="`feature_names` of table 't' should be the same in both"):
        managed(one, ManagedCollisionCollection(maps, [other]))
    with pytest.raises(TypeError, match=r"should be a ManagedCollisionCollection. Received dict"):
        managed(one, maps)  # type: ignore[arg-type]
    sequences = EmbeddingCollection(tables=[EmbeddingConfig(4, D, "t", feature_names=["f"])])
    with pytest.raises(TypeError, match="`embedding_bag_collection` should be an EmbeddingBagColl"):
        managed(sequences, ManagedCollisionCollection(maps, [t]))  # type: ignore[arg-type]


def test_masks_of_remapped_bags():
    module = make()
    batch = KeyedJaggedTensor.from_lists({"f": [[7, 8], [], [8]]})
    assert module.lookup_remapped_lengths_mask(batch).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="which keep none"):
        module.lookup_remapped_lengths_mask_and_runtime_meta(batch)


@pytest.mark.filterwarnings(  # torch's own tracing warns about its own insides
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_compiles_with_breaks_around_the_maps():
    torch._dynamo.reset()
    module, plain = make(4, 2), make(4, 2)
    plain.load_state_dict(module.state_dict())
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda batch: module(batch)[0].values().sin(), backend=counter)
    frames = []
    for ids in ([1, 2, 3], [1, 4, 4], [5, 5, 5], [1, 5, 4], [2, 4, 1], [7, 7, 2]):
        expected = plain(features(*ids))[0].values().sin()
        assert torch.equal(compiled(features(*ids)), expected)
        frames.append(counter.frame_count)
    assert frames[-1] == frames[2]  # evictions and new ids compile nothing anew
    torch._dynamo.reset()


# Whatever happens.

ACTIONS = st.one_of(
    st.tuples(st.just("train"), st.lists(st.integers(-4, 9), min_size=1, max_size=8)),
    st.tuples(st.just("eval"), st.lists(st.integers(-4, 9), min_size=1, max_size=5)),
    st.tuples(st.just("reload"), st.integers(0, 0)),
    st.tuples(st.just("resize"), st.integers(2, 9)),
    st.tuples(st.just("load_rows"), st.integers(-4, 9)),
)


@pytest.mark.parametrize("residual", [None, 3], ids=["unknown", "residual"])
@pytest.mark.parametrize("policy", [LFU_EvictionPolicy, LRU_EvictionPolicy, OwnDistanceLFU])
@given(
    rows=st.integers(2, 7),
    interval=st.integers(1, 3),
    actions=st.lists(ACTIONS, max_size=14),
)
def test_the_vector_of_an_id_is_the_one_that_it_trained(policy, residual, rows, interval, actions):
    """Against a dictionary id -> vector, with SGD at a learning rate of 1 and gradients of 1.

    So a vector loses 1 for each time that its id comes; a new row starts at 100.
    """
    options = {
        "mch_size": residual,
        "init_fn": lambda weight: weight.fill_(100),
        "optimizer": OptimizerType.SGD,
        "lr": 1.0,
    }
    module = make(rows, interval, policy(), **options)
    expected: dict[int, float] = {}
    for action, argument in actions:
        if action == "train":
            train(module, *argument)
            changed = set(vectors(module))
            # Who lost its row is forgotten; who has one now starts anew, and has learnt this batch.
            expected = {i: v for i, v in expected.items() if i in changed}
            for i in changed:
                expected[i] = expected.get(i, 100.0) - argument.count(i)
        elif action == "eval":
            module.eval()
            output = module(features(*argument))[0]["f"]
            for i, vector in zip(argument, output.tolist(), strict=True):
                if i in expected:
                    assert vector == [expected[i]] * D
            module.train()
        elif action == "load_rows":
            free = module._managed_collision_collection.open_slots()["t"]
            if argument in expected or int(free):
                module.load_rows("t", torch.tensor([argument]), torch.full((1, D), 55.0))
                expected[argument] = 55.0
        else:
            rows = rows if action == "reload" else argument
            saved = copy.deepcopy(module.state_dict())
            module = make(rows, interval, policy(), **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module.load_state_dict(saved)
            kept = set(vectors(module))
            assert len(kept) == min(len(expected), rows - (residual is None))
            expected = {i: v for i, v in expected.items() if i in kept}
        mcm = module._managed_collision_collection.maps()["t"]
        mcm.validate_state()
        held_rows, ids = mcm.held()
        assert len(set(held_rows.tolist())) == len(ids)
        assert mcm.rows_of(ids).tolist() == held_rows.tolist()
        assert vectors(module) == {i: [v] * D for i, v in expected.items()}


def test_rows_of_a_map_in_the_middle_of_a_table_move_with_their_ids():
    def made(rows: int):
        table = EmbeddingBagConfig(rows + 5, 2, "t", feature_names=["f"])
        mcm = MCHManagedCollisionModule(
            rows, "cpu", LFU_EvictionPolicy(), 1, name="t", output_global_offset=3
        )
        return ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=[table]), ManagedCollisionCollection({"t": mcm}, [table])
        )

    small, large = made(4), made(9)
    small(features(70, 80, 90))
    large.load_state_dict(small.state_dict())
    ids = torch.tensor([70, 80, 90])
    assert torch.equal(large.export_rows("t", ids)[1], small.export_rows("t", ids)[1])
    (before,), (after,) = small.parameters(), large.parameters()
    assert torch.equal(after[:3], before[:3])
    assert torch.equal(after[-2:], before[-2:])
