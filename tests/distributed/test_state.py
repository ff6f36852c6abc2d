"""States of models and optimizers whose tables are sharded: names, wholes, and what loads where."""

from __future__ import annotations

import copy
import gc
import io
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from tests.distributed.four_tables import (
    PLANS,
    TABLES,
    Model,
    assert_same,
    batch,
    plan_of,
    sharded,
    steps_of,
    train,
    wholes,
)
from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.checkpoint import ShardedCheckpoints
from torchrec.distributed.optimizer import ShardedOptimizer
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.distributed.unshard import unshard
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

pytestmark = [
    pytest.mark.once,  # what ranks tell one another does not depend on the kernels
    pytest.mark.filterwarnings(
        "ignore::UserWarning"
    ),  # of torch.distributed.checkpoint in one process
]


def results(function, world_size, *given):
    found = run(function, world_size, *given)
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


def shown(plan):
    model = sharded(plan)
    train(model, 0, 1, 2)
    state = model.fused_optimizer.state_dict()
    return {
        "kinds": {
            f"{name.split('.')[2]}/{key}": (type(value).__name__, tuple(value.shape))
            for name, values in state["state"].items()
            for key, value in values.items()
        },
        "groups": [(group["params"], group["lr"]) for group in state["param_groups"]],
        "wholes": wholes(model),
        "steps": steps_of(model),
    }


@pytest.mark.parametrize("plan", ["rows", "columns", "tables", "many"])
def test_states_are_wholes_on_all_ranks(plan):
    first, second = results(shown, 2, plan)
    names = [f"tables.embedding_bags.{name}.weight" for name in TABLES]
    for found in (first, second):
        assert found["groups"] == [
            ([n], t["lr"]) for n, t in zip(names, TABLES.values(), strict=True)
        ]
        kinds = {name: shape for name, (kind, shape) in found["kinds"].items()}
        assert kinds == {
            "user/sum": (30, 1),
            "user/step": (),
            "item/exp_avg": (11, 6),
            "item/exp_avg_sq": (11, 6),
            "item/step": (),
            "shop/exp_avg": (7, 4),
            "shop/exp_avg_sq": (7, 1),
            "shop/step": (),
            "town/step": (),
        }
        assert found["kinds"]["user/sum"][0] == "ShardedTable"
        assert set(found["steps"].values()) == {3.0}
    assert first["steps"].keys() | second["steps"].keys() == set(names)
    assert_same(first["wholes"], second["wholes"])
    # As one process has them, which takes the mean over the losses of both.
    plain = Model()
    dense = torch.optim.SGD(plain.over.parameters(), 0.1)
    for step in range(3):
        dense.zero_grad()
        (torch.stack([plain(batch(rank, step)) for rank in range(2)]).sum() / 2).backward()
        dense.step()
    for name, state in plain.tables.fused_optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if key != "step":
                torch.testing.assert_close(first["wholes"][f"tables.{name}/{key}"], value)


def state_of(model):
    return {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}


def save(folder, plan):
    model = sharded(plan)
    train(model, 0, 1, 2)
    for group in model.fused_optimizer.param_groups:
        group["lr"] *= 0.5
    dcp.save(state_of(model), checkpoint_id=folder)
    saved = wholes(model)
    train(model, 3, 4)
    return saved, wholes(model), sorted(steps_of(model).items())


def restored(folder, plan):
    """A model that has other weights and states until it loads the saved ones."""
    model = sharded(plan, device="meta")
    train(model, 7, 8)
    state = state_of(model)
    dcp.load(state, checkpoint_id=folder)
    model.load_state_dict(state["model"])
    model.fused_optimizer.load_state_dict(state["optimizer"])
    return model


def load(folder, plan):
    model = restored(folder, plan)
    loaded = wholes(model)
    rates = [group["lr"] for group in model.fused_optimizer.param_groups]
    steps = set(steps_of(model).values())
    train(model, 3, 4)
    return loaded, wholes(model), rates, steps


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [
        (("rows", 2), ("rows", 2)),
        (("rows", 2), ("columns", 2)),
        (("columns", 2), ("tables", 2)),
        (("many", 2), ("alone", 1)),
        (("alone", 1), ("many", 2)),
        pytest.param(("grid", 4), ("rows", 3), marks=pytest.mark.slow),
        pytest.param(("rows", 4), ("alone", 1), marks=pytest.mark.slow),
        pytest.param(("columns", 3), ("grid", 4), marks=pytest.mark.slow),
    ],
    ids=lambda value: f"{value[0]} on {value[1]}",
)
def test_a_checkpoint_loads_under_any_plan_on_any_ranks(saved_by, loaded_by):
    (plan, world_size), (other, other_size) = saved_by, loaded_by
    with tempfile.TemporaryDirectory() as folder:
        saved = results(save, world_size, folder, plan)
        loaded = results(load, other_size, folder, other)
    expected, trained_on, _ = saved[0]
    for found, trained, rates, steps in loaded:
        assert_same(found, expected)
        assert rates == [table["lr"] * 0.5 for table in TABLES.values()]
        assert steps == {3.0}
        if saved_by == loaded_by:
            assert_same(trained, trained_on)
        elif world_size == other_size:  # of the same batches
            for name, value in trained_on.items():
                torch.testing.assert_close(trained[name], value)


def tables_of(found):
    return {name: value for name, value in found.items() if name.startswith("tables")}


def exchanged_with_one_process():
    """States of an unsharded model load, and wholes load into one."""
    model = sharded("rows")
    train(model, 0, 1)
    plain = Model()
    state = {"model": {}, "optimizer": {}}
    for kind, own in state_of(model).items():
        state[kind] = copy.deepcopy(own)
    for name, value in state["model"].items():
        if hasattr(value, "full_tensor"):
            state["model"][name] = value.full_tensor()
    for values in state["optimizer"]["state"].values():
        for key, value in values.items():
            values[key] = torch.tensor(2.0) if key == "step" else value.full_tensor()
    plain.load_state_dict(state["model"])
    optimizer = plain.tables.fused_optimizer
    saved = state["optimizer"]["state"]
    saved = {name.removeprefix("tables."): values for name, values in saved.items()}
    optimizer.load_state_dict({"state": saved})
    other = sharded("columns")
    other.load_state_dict(plain.state_dict())
    states = {f"tables.{n}": values for n, values in optimizer.state_dict()["state"].items()}
    other.fused_optimizer.load_state_dict({"state": states})
    assert_same(wholes(other), wholes(model))
    assert set(steps_of(other).values()) == {2.0}
    # A copy of the model, of states, and what is pickled have the same parts, and go on by themselves.
    twin, before = copy.deepcopy(model), wholes(model)
    copied = copy.deepcopy(state_of(model))
    file = io.BytesIO()
    torch.save(state_of(model), file)
    train(twin, 2)
    assert_same(wholes(model), before)
    train(model, 2)
    assert_same(tables_of(wholes(twin)), tables_of(wholes(model)))
    for loaded in (copied, torch.load(io.BytesIO(file.getvalue()), weights_only=False)):
        model.load_state_dict(loaded["model"])
        model.fused_optimizer.load_state_dict(loaded["optimizer"])
        assert_same(wholes(model), before)
    with pytest.raises(ValueError, match="should have all rows and columns of this rank's part"):
        loaded["model"]["tables.embedding_bags.user.weight"].full_tensor()


def test_states_are_exchanged_with_one_process():
    results(exchanged_with_one_process, 2)


def gathered():
    model, rank = sharded("many"), dist.get_rank()
    value = model.state_dict()["tables.embedding_bags.user.weight"]
    out = torch.zeros(30, 8) if rank == 1 else None
    value.gather(1, out)
    assert out is None or torch.equal(out, value.full_tensor())
    if out is None:
        value.full_tensor()
    shard = value.local_shards()[-1]
    metadata = value.metadata()
    return (
        tuple(value.size()),
        (shard.metadata.shard_offsets, shard.metadata.shard_sizes, str(shard.metadata.placement)),
        tuple(shard.tensor.shape),
        [str(known.placement) for known in metadata.shards_metadata],
    )


def test_a_whole_says_where_its_parts_are():
    found = results(gathered, 2)
    for rank, (size, last, shape, placements) in enumerate(found):
        assert size == (30, 8)
        assert last == ([0, 2 + 4 * rank], [30, 2], f"rank:{rank}/cpu")
        assert shape == (30, 2)
        assert placements == ["rank:0/cpu", "rank:0/cpu", "rank:1/cpu", "rank:1/cpu"]


def with_ranks_of_no_rows():
    """A table of fewer rows than ranks, brought together in each of the ways that there are."""
    table = EmbeddingBagConfig(2, 4, "t", feature_names=["f"], optimizer="adam", lr=0.1)
    torch.manual_seed(4)
    model = torch.nn.Sequential(EmbeddingBagCollection([table]))
    expected = model[0].embedding_bags["t"].weight.detach().clone()
    plan = construct_module_sharding_plan(model[0], {"t": row_wise()}, device_type="cpu")
    model = DistributedModelParallel(model, plan=ShardingPlan({"0": plan}))
    (value,) = model.state_dict().values()
    whole = torch.zeros(2, 4) if dist.get_rank() == 2 else None
    value.gather(2, whole)
    gathered = [] if whole is None else [whole]
    state = model.fused_optimizer.state_dict()["state"]["0.embedding_bags.t.weight"]
    assert torch.equal(state["exp_avg"].full_tensor(), torch.zeros(2, 4))
    plain = unshard(model)[0].embedding_bags["t"].weight
    return [torch.equal(each, expected) for each in (value.full_tensor(), plain, *gathered)]


def test_ranks_may_have_no_rows():
    assert run(with_ranks_of_no_rows, 3) == [[True] * 2, [True] * 2, [True] * 3]


def trained_by_adam(plan):
    """A model whose first two tables an ordinary optimizer trains."""
    model = Model(user=None, item=None)
    model = DistributedModelParallel(model, plan=plan_of(model, PLANS[plan]))
    named = dict(in_backward_optimizer_filter(model.named_parameters()))
    adam = KeyedOptimizerWrapper(named, lambda params: torch.optim.Adam(params, lr=0.1))
    return model, ShardedOptimizer(adam, model)


def step(model, optimizer, *numbers):
    for number in numbers:
        optimizer.zero_grad()
        model(batch(model.rank, number)).backward()
        optimizer.step()


def whole_values(state):
    return {
        f"{name}/{key}": value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, values in state.items()
        for key, value in values.items()
        if key != "step"
    }


def save_ordinary(folder):
    model, optimizer = trained_by_adam("rows")
    step(model, optimizer, 0, 1)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    ShardedCheckpoints(folder).save(1, state)
    return wholes(model), whole_values(optimizer.state_dict()["state"])


def load_ordinary(folder, plan):
    model, optimizer = trained_by_adam(plan)
    step(model, optimizer, 5)
    optimizer.set_optimizer_step(9)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state = ShardedCheckpoints(folder).load(1, state)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    steps = {
        float(values["step"])
        for values in optimizer.state_dict()["state"].values()
        if type(values["step"]) is torch.Tensor
    }
    return tables_of(wholes(model)), whole_values(optimizer.state_dict()["state"]), steps


def by_keyed_optimizer(plan):
    """As `trained_by_adam`, without anything around the optimizer that knows of ranks."""
    model = Model(user=None, item=None)
    model = DistributedModelParallel(model, plan=plan_of(model, PLANS[plan]))
    named = dict(in_backward_optimizer_filter(model.named_parameters()))
    return model, KeyedOptimizerWrapper(named, lambda params: torch.optim.Adam(params, lr=0.1))


def save_keyed(folder):
    model, optimizer = by_keyed_optimizer("rows")
    step(model, optimizer, 0, 1)
    dcp.save({"optimizer": optimizer.state_dict()["state"]}, checkpoint_id=folder)
    return whole_values(optimizer.state_dict()["state"])


def load_keyed(folder, plan):
    _model, optimizer = by_keyed_optimizer(plan)
    optimizer.init_state()
    saved = {"state": optimizer.state_dict()["state"]}
    dcp.load({"optimizer": saved["state"]}, checkpoint_id=folder)
    optimizer.load_state_dict(saved)
    return whole_values(optimizer.state_dict()["state"])


@pytest.mark.parametrize("plan", ["rows", "columns", "tables"])
def test_states_of_an_optimizer_with_names_go_by_tables_through_dcp(plan):
    with tempfile.TemporaryDirectory() as folder:
        saved, _ = results(save_keyed, 2, folder)
        for found in results(load_keyed, 2, folder, plan):
            assert found.keys() == saved.keys()
            for name, value in found.items():
                assert torch.equal(value, saved[name]), name


def load_into_nothing():
    model, optimizer = by_keyed_optimizer("rows")
    other, trained = by_keyed_optimizer("rows")
    trained.init_state()
    with pytest.raises(
        ValueError, match=r"a part of a table on many ranks, should be there before"
    ):
        optimizer.load_state_dict(trained.state_dict())
    whole = {
        name: {key: torch.zeros(value.shape) for key, value in values.items()}
        for name, values in trained.state_dict()["state"].items()
    }
    with pytest.raises(
        ValueError, match=r"a part of a table on many ranks, should be there before"
    ):
        optimizer.load_state_dict({"state": whole})
    optimizer.init_state()
    optimizer.load_state_dict(trained.state_dict())
    optimizer.load_state_dict({"state": whole})
    del other
    gc.collect()
    with pytest.raises(RuntimeError, match="a part of table 'user' whose model is gone"):
        trained.state_dict()
    return model.rank


def test_states_of_parts_are_made_before_they_are_loaded():
    assert results(load_into_nothing, 2) == [0, 1]


@pytest.mark.parametrize("plan", ["columns", "tables"])
def test_states_of_ordinary_optimizers_go_by_tables(plan):
    with tempfile.TemporaryDirectory() as folder:
        (weights, states), _ = results(save_ordinary, 2, folder)
        for found, found_states, steps in results(load_ordinary, 2, folder, plan):
            weights = {name: value for name, value in weights.items() if name in found}
            for name in ("user", "item"):
                name = f"tables.embedding_bags.{name}.weight"
                assert torch.equal(found[name], weights[name])
            assert_same(found_states, states)
            assert steps == {2.0}


def saved_meanwhile(folder):
    model = sharded("many")
    train(model, 0, 1)
    expected = wholes(model)
    # A group of its own: what it exchanges must not come between what training does.
    group = dist.new_group()
    written = dcp.async_save(state_of(model), checkpoint_id=folder, process_group=group)
    train(model, 2, 3)
    written.result()
    assert_same(wholes(restored(folder, "rows")), expected)


def test_training_on_does_not_change_what_is_saved_meanwhile():
    with tempfile.TemporaryDirectory() as folder:
        results(saved_meanwhile, 2, folder)


def to_and_from_copies(folder):
    """A table that is placed data_parallel has weights in the state, and no state of a fused optimizer."""
    model, checkpoints, plain = sharded("rows"), ShardedCheckpoints(folder), Model(user=None)
    copies = DistributedModelParallel(plain, plan=plan_of(plain, PLANS["copies"]))
    train(model, 0, 1)
    checkpoints.save(1, state_of(model))
    state = checkpoints.load(1, state_of(copies))
    copies.load_state_dict(state["model"])
    copies.fused_optimizer.load_state_dict(state["optimizer"])
    expected = wholes(model)
    found = wholes(copies)
    assert expected.keys() - found.keys() == {"tables.embedding_bags.user.weight/sum"}
    assert_same(found, {name: expected[name] for name in found})
    assert type(copies.state_dict()["tables.embedding_bags.user.weight"]) is torch.Tensor
    checkpoints.save(2, state_of(copies))
    other = sharded("columns")
    with pytest.raises(ValueError, match=r"should have 'optimizer\.state\..*user.weight\.sum'"):
        checkpoints.load(2, state_of(other))
    other.load_state_dict(checkpoints.load(2, {"model": other.state_dict()})["model"])
    weights = {name: value for name, value in expected.items() if "/" not in name}
    assert_same({name: value for name, value in wholes(other).items() if name in weights}, weights)


def test_copies_of_a_table_are_saved_and_loaded_as_parts_are():
    with tempfile.TemporaryDirectory() as folder:
        results(to_and_from_copies, 2, folder)


def to_and_from_fused_copies(folder):
    """A table with an optimizer of its own has that one's state as well, whichever way it is placed."""
    model, checkpoints, copies = sharded("rows"), ShardedCheckpoints(folder), sharded("copies")
    train(model, 0, 1)
    train(copies, 3)
    for step, (there, here) in enumerate([(model, copies), (copies, sharded("columns"))]):
        checkpoints.save(step, state_of(there))
        state = checkpoints.load(step, state_of(here))
        here.load_state_dict(state["model"])
        here.fused_optimizer.load_state_dict(state["optimizer"])
        assert_same(wholes(here), wholes(there))
        train(here, 2)  # so that the second state is of copies that were trained


def test_copies_that_the_backward_pass_updates_are_saved_with_their_state():
    with tempfile.TemporaryDirectory() as folder:
        results(to_and_from_fused_copies, 2, folder)


def by_state_dict_functions(folder):
    """PyTorch's functions around state dicts take the model inside."""
    model, other = sharded("rows"), sharded("columns")
    train(model, 0)
    dcp.save(get_model_state_dict(model.module), checkpoint_id=folder)
    state = get_model_state_dict(other.module)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(other.module, state)
    for name, value in tables_of(other.state_dict()).items():
        assert torch.equal(value.full_tensor(), model.state_dict()[name].full_tensor())
    assert torch.equal(other.state_dict()["over.weight"], model.state_dict()["over.weight"])


def test_pytorchs_functions_take_the_model():
    with tempfile.TemporaryDirectory() as folder:
        results(by_state_dict_functions, 2, folder)
