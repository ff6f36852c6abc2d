"""Tables that go to other ranks while a model is trained: it trains on as under the plan that it had."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pkgutil import resolve_name

import pytest
import torch
import torch.distributed as dist
from torch import nn

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
from tests.distributed.test_state import results
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist, sharded_tables
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv, ShardingPlan

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def changes_to(plan):
    """The tables that another plan has elsewhere."""
    return {"tables": (1.5, plan_of(Model(), PLANS[plan]).plan["tables"])}


def trained_on(model, *steps):
    train(model, *steps)
    return wholes(model)


def moved(before, after):
    model, same = sharded(before), sharded(before)
    for each in (model, same):
        train(each, 0, 1)
        for group in each.fused_optimizer.param_groups:
            group["lr"] *= 0.5
    expected, collection = wholes(model), model.module.tables
    assert model.reshard(changes_to(after)) == 1.5
    assert model.module.tables is collection
    assert_same(wholes(model), expected)
    assert steps_of(model).keys() == steps_of(sharded(after)).keys()
    assert set(steps_of(model).values()) <= {2.0}
    fresh = sharded(after)
    assert model.plan == fresh.plan
    shards = [
        [
            (name, shard.metadata.shard_offsets, shard.metadata.shard_sizes)
            for name, value in each.state_dict().items()
            if hasattr(value, "local_shards")
            for shard in value.local_shards()
        ]
        for each in (model, fresh)
    ]
    assert shards[0] == shards[1]
    rates = [[group["lr"] for group in each.fused_optimizer.param_groups] for each in (model, same)]
    assert rates[0] == rates[1]
    # As a model that was under the new plan all along, from the same weights and states.
    fresh.load_state_dict(model.state_dict())
    fresh.fused_optimizer.load_state_dict(model.fused_optimizer.state_dict())
    assert_same(trained_on(model, 2, 3), trained_on(fresh, 2, 3))
    # And, but for sums in another order, as one under the former plan.
    for name, value in trained_on(same, 2, 3).items():
        torch.testing.assert_close(wholes(model)[name], value, msg=name)


def test_tables_go_elsewhere_with_their_states():
    results(moved, 2, "rows", "columns")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "ranks"),
    [
        ("columns", "tables", 2),
        ("tables", "rows", 2),
        ("rows", "many", 4),  # not 3: sums of layers are of another order there
        ("many", "rows", 4),
        ("grid", "columns", 4),
        ("columns", "grid", 4),
        ("alone", "tables", 2),
        ("rows", "columns", 1),
    ],
)
def test_tables_go_elsewhere_from_any_plan_to_any(before, after, ranks):
    before, after = (name if ranks > 1 else "alone" for name in (before, after))
    results(moved, ranks, before, after)


def there_and_back():
    model, same = sharded("rows"), sharded("rows")
    only = {"user": changes_to("tables")["tables"][1]["user"]}
    back = {"user": changes_to("rows")["tables"][1]["user"]}
    for each in (model, same):
        train(each, 0)
    for plan in (only, back):
        changes = {"tables": (0.0, EmbeddingModuleShardingPlan(plan)), "other": (7.0, None)}
        assert model.reshard(changes, "tables") == 0.0
    assert model.plan == same.plan
    assert_same(trained_on(model, 1), trained_on(same, 1))


def between_steps():
    # What stays where it is keeps its parameters, those that an optimizer around the model trains, too.
    kinds = {"user": ("row_wise",), "item": ("data_parallel",), "shop": ("row_wise",)}
    model, same = (
        DistributedModelParallel(each, plan=plan_of(each, kinds))
        for each in (Model(item=None, shop=None), Model(item=None, shop=None))
    )
    kept = {name: param for name, param in model.named_parameters() if "user" not in name}
    outside = [
        torch.optim.SGD([p for n, p in each.named_parameters() if n in kept], 0.1)
        for each in (model, same)
    ]
    pipelines = [
        TrainPipelineSparseDist(each, optimizer, torch.device("cpu"))
        for each, optimizer in zip((model, same), outside, strict=True)
    ]
    batches = [[batch(dist.get_rank(), step) for step in range(5)] for _ in pipelines]
    for each in (model, same):
        each.module.register_forward_hook(lambda module, given, loss: (loss, loss.detach()))
    data = list(map(iter, batches))
    for step in range(5):
        if step == 2:  # ids of the next batches are on their way
            user = changes_to("tables")["tables"][1]["user"]
            model.reshard({"tables": (0.0, EmbeddingModuleShardingPlan({"user": user}))})
        losses = [pipe.progress(it) for pipe, it in zip(pipelines, data, strict=True)]
        assert torch.equal(*losses), step
    now = dict(model.named_parameters())
    assert all(now[name] is param for name, param in kept.items())
    assert_same(wholes(model), wholes(same))
    loss, _ = model(batch(dist.get_rank(), 5))
    user = changes_to("columns")["tables"][1]["user"]
    model.reshard({"tables": (0.0, EmbeddingModuleShardingPlan({"user": user}))})
    with pytest.raises(ValueError, match="when all that was looked up has had its backward pass"):
        loss.backward()


def optimizers_go_on():
    model, same = sharded("rows"), sharded("rows")
    outer, inner = model.fused_optimizer, same.fused_optimizer
    group = outer.param_groups[0]
    layers = [torch.optim.SGD(each.module.over.parameters(), 0.1) for each in (model, same)]
    rates = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (outer, inner)]
    for step, plan in enumerate(["columns", "tables", "rows", "rows"]):
        for each, tables, layer, rate in zip(
            (model, same), (outer, inner), layers, rates, strict=True
        ):
            with tables.accumulate():
                each(batch(dist.get_rank(), 2 * step)).backward()
            if step == 2:  # dropped
                tables.zero_grad()
            each(batch(dist.get_rank(), 2 * step + 1)).backward()
            layer.step()
            layer.zero_grad()
            with tables.accumulate():
                each(batch(dist.get_rank(), 9)).backward()
            tables.step()
            rate.step()
        for name, value in wholes(model).items():
            torch.testing.assert_close(value, wholes(same)[name], msg=name)
        model.reshard(changes_to(plan))
    assert outer.param_groups[0] is group is model.fused_optimizer.param_groups[0]
    assert outer.params == dict(model.fused_optimizer.params)
    twin, copied = copy.deepcopy((model, outer))
    copied.param_groups[0]["lr"] = 0.0
    assert twin.fused_optimizer.param_groups[0]["lr"] == 0.0
    assert outer.param_groups[0]["lr"] == 0.1 / 16


def no_memory():
    model, same = sharded("rows"), sharded("rows")
    expected = wholes(model)
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank():
            patch.setattr(sharded_tables, "new_table", lambda *_: torch.empty(-1))
        with pytest.raises(RuntimeError, match=r"On rank 1: .* negative dimension"):
            model.reshard(changes_to("tables"))
    assert_same(wholes(model), expected)
    assert_same(trained_on(model, 0), trained_on(same, 0))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Model(), Model()

    def forward(self, features):
        return self.first(features) + self.second(features)


class FailsAt:
    """Calls a function, and counts that, but for one call, which finds no memory."""

    def __init__(self, function, number):
        self.function, self.number, self.calls = function, number, 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls == self.number:
            raise MemoryError("There is none.")
        return self.function(*args)


def fails(seam):
    """Move tables of two modules, fail on one rank in the midst of it, and train on as if nothing had been asked."""

    def model():
        twice = Twice()
        plan = plan_of(twice.first, PLANS["rows"]).plan["tables"]
        return DistributedModelParallel(
            twice, plan=ShardingPlan({"first.tables": plan, "second.tables": plan})
        )

    columns = changes_to("columns")["tables"][1]
    user = EmbeddingModuleShardingPlan({"user": columns["user"]})  # the others stay
    changes = {"first.tables": (0.0, user), "second.tables": (0.0, columns)}

    def reshard(each, number=0):
        call = FailsAt(resolve_name(seam), number if dist.get_rank() else 0)
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(RuntimeError, match="On rank 1: There is none")
            if number
            else nullcontext(),
        ):
            patch.setattr(seam.replace(":", "."), call)
            each.reshard(changes)
        return call.calls

    def trained(each, step):
        each(batch(dist.get_rank(), step)).backward()
        return wholes(each)

    broken, same, calls = model(), model(), reshard(model())
    for step, number in enumerate([1, 2, (calls + 1) // 2, calls]):
        reshard(broken, number)
        assert broken.plan == same.plan
        assert_same(trained(broken, step), trained(same, step))
    reshard(broken)
    assert_same(wholes(broken), wholes(same))


@pytest.mark.slow
@pytest.mark.parametrize("seam", ["sharded_tables:new_table", "moves:part_at"])
def test_a_move_that_fails_on_one_rank_changes_nothing(seam):
    results(fails, 2, f"torchrec.distributed.{seam}")


def refused():
    model, rank = sharded("rows"), dist.get_rank()
    expected = wholes(model)
    columns = changes_to("columns")["tables"][1]

    def reshard(changes, path="tables"):
        return model.reshard({path: (0.0, EmbeddingModuleShardingPlan(changes))})

    with pytest.raises(ValueError, match=r"alike\. Received"):
        reshard(columns if rank else {"item": columns["item"]})
    with pytest.raises(ValueError, match="Received 'over', where there is a Linear"):
        reshard(columns, "over")
    with pytest.raises(ValueError, match="Received 'nowhere', where there is nothing"):
        reshard(columns, "nowhere")
    with pytest.raises(ValueError, match="Received 'who', which it does not have"):
        reshard({"who": columns["user"]})
    copies = changes_to("copies")["tables"][1]
    with pytest.raises(ValueError, match="Received a change from row_wise to data_parallel"):
        reshard({"user": copies["user"]})
    with model.fused_optimizer.accumulate():
        train(model, 0)
    with pytest.raises(ValueError, match="Received some, of a backward pass within"):
        reshard(columns)
    model.fused_optimizer.zero_grad()
    with (
        model.fused_optimizer.accumulate(),
        pytest.raises(ValueError, match="Received a call within `accumulate"),
    ):
        reshard(columns)
    with pytest.raises(ValueError, match=r"alike\. Received"):
        model.module.tables.update_shards(
            columns if rank else {}, ShardingEnv.from_process_group(dist.group.WORLD), None
        )
    without_rate = {name: value for name, value in TABLES["user"].items() if name != "lr"}
    for optimizers, user in (({"user": None}, TABLES["user"]), ({}, without_rate)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TABLES, "user", user)
            other = Model(**optimizers)
        other = DistributedModelParallel(other, plan=plan_of(other, PLANS["rows"]))
        with pytest.raises(ValueError, match="'user' should be updated in the backward pass"):
            other.reshard({"tables": (0.0, columns)})
    twice = nn.ModuleDict({"first": Model(), "second": Model()})
    plan = plan_of(Model(), PLANS["rows"]).plan["tables"]
    both = ShardingPlan({f"{name}.tables": plan for name in twice})
    twice = DistributedModelParallel(twice, plan=both)
    far = {name: table_wise(7) for name in TABLES}
    wrong = construct_module_sharding_plan(Model().tables, far, world_size=8)
    with pytest.raises(ValueError, match=r"'user' of module 'second.tables' .* ranks 0 to 1\."):
        twice.reshard({"first.tables": (0.0, columns), "second.tables": (0.0, wrong)})
    assert twice.module["first"].tables.tables.sharding == plan
    assert model.plan == sharded("rows").plan
    assert_same(
        {n: v for n, v in wholes(model).items() if "tables" in n and "/" not in n},
        {n: v for n, v in expected.items() if "tables" in n and "/" not in n},
    )


@pytest.mark.parametrize(
    "function", [there_and_back, between_steps, optimizers_go_on, no_memory, refused]
)
def test_what_is_asked_is_what_moves(function):
    results(function, 2)
