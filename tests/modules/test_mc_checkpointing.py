"""Activation checkpointing runs a forward pass again: maps learn from the first one only."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.modules import mixed_tables
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, OptimizerType
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
    probabilistic_threshold_filter,
)


class OwnDistanceLFU(DistanceLFU_EvictionPolicy):
    """Goes through the metadata contract."""


def nested(function, x: torch.Tensor) -> torch.Tensor:
    """Checkpoint a checkpoint; twice and half change no bit of anything."""
    two, half = torch.full((1,), 2.0), torch.full((1,), 0.5)
    inner = partial(checkpoint, function, use_reentrant=False)
    return checkpoint(lambda y: inner(y) * two, x, use_reentrant=False) * half


WAYS = {
    "plain": lambda function, x: function(x),
    "checkpoint": partial(checkpoint, use_reentrant=False),
    "reentrant": partial(checkpoint, use_reentrant=True),
    "nested": nested,
}
CHECKPOINTS = [way for way in WAYS if way != "plain"]


def scaled(module, features, way: str) -> torch.Tensor:
    """Return the outputs, squashed, and times 1: the backward pass needs both factors."""
    x = torch.ones(1, requires_grad=True)

    def region(x):
        output, _ = module(features)
        if isinstance(output, dict):
            values = torch.cat([jt.values().flatten() for jt in output.values()])
        else:
            values = output.values()
        return values.sigmoid() * x

    return WAYS[way](region, x)


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "sequence"])
@pytest.mark.parametrize("policy", [LRU_EvictionPolicy, OwnDistanceLFU])
@pytest.mark.parametrize("way", CHECKPOINTS)
def test_training_is_the_same_to_the_last_bit(way, policy, pooled):
    states, stats = [], []
    for each in ("plain", way):
        torch.manual_seed(0)
        module = mixed_tables.make(pooled, policy, 2, OptimizerType.ADAGRAD, lr=0.1)
        optimizers = mixed_tables.outer_optimizers(module, lr=0.1)
        generator = torch.Generator().manual_seed(1)
        for _ in range(10):
            features = mixed_tables.random_batch(generator)
            scaled(module, features, each).pow(2).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        states.append(module.state_dict())
        stats.append(module.stats())
    assert stats[0] == stats[1]
    assert all(each.evicted > 3 for each in stats[0].values())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def drawing(draws: list[torch.Tensor]):
    """Return a region whose map draws random numbers in its first pass, and that then draws some."""
    module = make(4, policy=partial(LFU_EvictionPolicy, probabilistic_threshold_filter))

    def region(x):
        rows, _ = module(bags(1, 2, 3))
        draws.append(torch.rand(3))
        return rows.values().sum() * x.sin() * draws[-1].sum()

    return region


@pytest.mark.parametrize("way", CHECKPOINTS)
def test_random_numbers_are_those_of_the_first_pass(way):
    """A filter draws in the first pass only; dropout behind it, say, must draw the same in both."""
    draws: list[torch.Tensor] = []
    region = drawing(draws)
    before = torch.get_rng_state()
    WAYS[way](region, torch.ones(1, requires_grad=True)).backward()
    assert len(draws) > 1
    assert all(torch.equal(draws[0], each) for each in draws)
    torch.set_rng_state(before)
    assert not torch.equal(torch.rand(3), draws[0])  # the filter did draw


def test_random_numbers_that_were_not_set_back_are_not_touched():
    draws: list[torch.Tensor] = []
    region = drawing(draws)
    x = torch.ones(1, requires_grad=True)
    output = checkpoint(region, x, use_reentrant=False, preserve_rng_state=False)
    before = torch.get_rng_state()
    output.backward()
    torch.set_rng_state(before)
    assert torch.equal(torch.rand(3), draws[1])


def test_evaluation_counts_once():
    stats = []
    for way in ("plain", "checkpoint"):
        module = mixed_tables.make()
        features = mixed_tables.random_batch(torch.Generator().manual_seed(1))
        scaled(module, features, "plain").sum().backward()
        module.eval()
        scaled(module, features, way).sum().backward()
        stats.append(module.stats())
    assert stats[0] == stats[1]


# Several forward passes before a backward pass.


def make(rows: int = 3, interval: int = 1, policy=LFU_EvictionPolicy, mch_size=None):
    table = EmbeddingBagConfig(
        rows + (mch_size or 0), 1, "t", feature_names=["f"], init_fn=torch.nn.init.ones_
    )
    t = MCHManagedCollisionModule(rows, "cpu", policy(), interval, mch_size=mch_size, name="t")
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=[table]), ManagedCollisionCollection({"t": t}, [table])
    )


def bags(*ids: int) -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lists({"f": [[i] for i in ids]})


@pytest.mark.parametrize("way", CHECKPOINTS)
@pytest.mark.parametrize("mch_size", [None, 2], ids=["unknown", "residual"])
def test_rows_are_those_of_the_first_pass_though_the_map_advanced(way, mch_size):
    gradients = []
    for each in ("plain", way):
        module = make(4, mch_size=mch_size)
        module(bags(1, 1, 1, 2, 2))
        (weight,) = module.parameters()
        with torch.no_grad():
            weight.copy_(torch.arange(len(weight))[:, None])
        module._managed_collision_collection.maps()["t"]._eviction_interval = 3
        first = scaled(module, bags(1, 2, 7), each)  # 7 has no row of its own
        second = scaled(module, bags(7, 7, 1), each)  # and gets one
        assert module.export_rows("t")[0].tolist()[:3] == [1, 2, 7]
        first.pow(2).sum().backward()
        second.pow(2).sum().backward()
        gradients.append(weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("way", CHECKPOINTS)
def test_a_row_that_changed_hands_has_no_right_gradient(way):
    module = make()
    first = scaled(module, bags(1, 2, 2), way)
    scaled(module, bags(9, 9, 9), way)  # takes the row of 1
    message = (
        r"Rows of table 't' should keep their ids until the forward pass that looked them up runs "
        r"again in its backward pass \(activation checkpointing\). Received 1 that a later look-up"
    )
    with pytest.raises(RuntimeError, match=message):
        first.sum().backward()


def test_a_row_that_came_back_to_its_id_has_lost_its_vector_all_the_same():
    module = make(2)
    first = scaled(module, bags(1), "checkpoint")
    module(bags(9, 9))
    module(bags(1, 1, 1))
    assert module.export_rows("t")[0].tolist() == [1]
    with pytest.raises(RuntimeError, match="Received 1 that a later look-up gave to other ids"):
        first.sum().backward()


def test_rows_given_by_hand_count_as_changed():
    module = make(3)
    first = scaled(module, bags(1), "checkpoint")
    module.load_rows("t", torch.tensor([5]), torch.ones(1, 1))
    first.sum().backward()  # 5 took a free row
    first = scaled(module, bags(1), "checkpoint")
    module._managed_collision_collection.maps()["t"]._rows.clear()
    module.load_rows("t", torch.tensor([5]), torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="Received 1 that a later look-up gave to other ids"):
        first.sum().backward()


def test_which_of_two_passes_runs_again_must_not_matter():
    module = make(2, policy=LRU_EvictionPolicy)
    (weight,) = module.parameters()
    same = [scaled(module, bags(1), "checkpoint") for _ in range(2)]
    same[0].sum().backward()
    same[1].sum().backward()
    assert weight.grad[0].item() == pytest.approx(2 * 0.19661194)
    module._managed_collision_collection.maps()["t"]._eviction_interval = 2
    early = scaled(module, bags(5), "checkpoint")  # without a row
    late = scaled(module, bags(5), "checkpoint")
    message = (
        "look-ups of the same ids in table 't' that activation checkpointing runs again should"
    )
    with pytest.raises(RuntimeError, match=message):
        (early + late).sum().backward()


def test_the_same_batch_again_and_again():
    module = make(2, 2, policy=LRU_EvictionPolicy)
    for _ in range(5):  # rows change from one pass to the next, but none is left to run again
        scaled(module, bags(3), "checkpoint").sum().backward()
    assert module.stats()["t"].ids == 5


def test_passes_that_ran_again_are_forgotten():
    module = make()
    remembered = module._managed_collision_collection.maps()["t"]._first_passes
    for first in range(5):
        scaled(module, bags(first), "checkpoint").sum().backward()
        assert len(remembered._passes) == 1


def test_a_second_backward_pass_sees_the_same_rows():
    module = make(2)
    (weight,) = module.parameters()
    output = scaled(module, bags(3), "checkpoint").sum()
    output.backward(retain_graph=True)
    output.backward()
    assert weight.grad.flatten().tolist() == pytest.approx([2 * 0.19661194, 0])


def test_look_ups_that_are_no_recomputation_are_refused_in_a_backward_pass():
    module = make()
    output = scaled(module, bags(1), "plain")
    output.register_hook(lambda _: module(bags(4)) and None)
    with pytest.raises(RuntimeError, match="Received 1 ids that were not looked up together"):
        output.sum().backward()


def test_passes_are_remembered_only_where_they_may_run_again():
    module = make()
    remembered = module._managed_collision_collection.maps()["t"]._first_passes
    for first in range(40):
        scaled(module, bags(first), "plain")
    assert len(remembered._passes) == 0
    for first in range(40):
        scaled(module, bags(first), "checkpoint")
    assert len(remembered._passes) == remembered.LIMIT
    twin = copy.deepcopy(module)._managed_collision_collection.maps()["t"]._first_passes
    assert len(twin._passes) == 0
    module.load_state_dict(module.state_dict())
    assert len(remembered._passes) == 0


@pytest.mark.parametrize("way", CHECKPOINTS)
def test_the_halves_of_a_look_up(way):
    t = MCHManagedCollisionModule(3, "cpu", LRU_EvictionPolicy(), 1, name="t")
    rows = []

    def region(x):
        ids = {"f": bags(1, 2)["f"]}
        rows.append(t.remap(t.profile(t.preprocess(ids)))["f"].values().tolist())
        return x.sin() * 2

    output = WAYS[way](region, torch.ones(1, requires_grad=True))
    t({"f": bags(8, 9)["f"]})  # takes both rows
    if way == "plain":
        output.backward()
    else:
        with pytest.raises(RuntimeError, match="Received 2 that a later look-up gave"):
            output.backward()
    assert rows == [[0, 1]]
    assert t.stats().ids == 4


class ForwardOnly(MCHManagedCollisionModule):
    """A map of the user's: it has what the API asks for, and no more."""

    map_keys = MCHManagedCollisionModule.__mro__[1].map_keys


@pytest.mark.parametrize("way", CHECKPOINTS)
def test_maps_of_the_user_learn_once(way):
    table = EmbeddingBagConfig(3, 1, "t", feature_names=["f"])
    t = ForwardOnly(3, "cpu", LRU_EvictionPolicy(), 1, name="t")
    module = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=[table]), ManagedCollisionCollection({"t": t}, [table])
    )
    for _ in range(3):
        scaled(module, bags(1, 2), way).sum().backward()
    assert (t.stats().ids, t._current_iter) == (6, 3)
    assert t.evict() is None
