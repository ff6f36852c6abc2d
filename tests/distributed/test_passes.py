"""Backward passes that are not one a step of everything, and wrappers of optimizers, as in one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.warmup import WarmupOptimizer, WarmupPolicy, WarmupStage

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

NAMES = ("rows", "columns", "table")


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(4)
        self.tables = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(9, 4, name, feature_names=[f"of {name}"], **options)
                for name in NAMES
            ]
        )

    def forward(self, features):
        return self.tables(features)


class Layered(Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.over = nn.Linear(12, 1)

    def forward(self, features):
        return self.over(self.tables(features).values())


def models(kind=Model, **options):
    """A model, and the same one on ranks: tables by rows, by columns and as a whole."""
    plain, model = kind(**options), kind(**options)
    kinds = {"rows": row_wise(), "columns": column_wise([0, 1]), "table": table_wise(1)}
    plan = construct_module_sharding_plan(model.tables, kinds, device_type="cpu")
    return plain, DistributedModelParallel(model, plan=ShardingPlan({"tables": plan}))


def batch(rank, step=0):
    return KeyedJaggedTensor.from_lists(
        {f"of {name}": [[rank, step, 3], [8, k]] for k, name in enumerate(NAMES)}
    )


def weighted(output, rank):
    """A loss with another gradient at each place."""
    values = output.values()
    return (values * (torch.arange(values.numel()).view_as(values) + rank).cos()).sum()


def assert_same(plain, sharded):
    for name, whole in plain.state_dict().items():
        value = sharded.state_dict()[name]
        found = value.full_tensor() if hasattr(value, "full_tensor") else value
        torch.testing.assert_close(found, whole, msg=lambda text, name=name: f"{name}: {text}")


def of_all(plain, losses):
    """The loss in one process: the mean of those of the ranks."""
    return sum(losses(plain, rank) for rank in range(dist.get_world_size())) / dist.get_world_size()


def retained():
    plain, sharded = models(optimizer="rowwise_adagrad", lr=0.1)
    mine, all_ = (
        weighted(sharded(batch(dist.get_rank())), dist.get_rank()),
        of_all(plain, lambda model, rank: weighted(model(batch(rank)), rank)),
    )
    for _ in range(2):
        mine.backward(retain_graph=True)
        all_.backward(retain_graph=True)
    assert_same(plain, sharded)
    return True


def test_a_graph_that_is_kept_gives_an_update_each_time():
    assert run(retained, 2) == [True, True]


def released():
    plain, sharded = models(optimizer="rowwise_adagrad", lr=0.1)
    loss = weighted(sharded(batch(0)), 0)
    of_all(plain, lambda model, _: weighted(model(batch(0)), 0)).backward()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    weighted(sharded(batch(1)), 0).backward()  # the next step is as if it had not been tried
    of_all(plain, lambda model, _: weighted(model(batch(1)), 0)).backward()
    assert_same(plain, sharded)
    return True


def test_a_second_backward_pass_is_refused_and_leaves_nothing_behind():
    assert run(released, 2) == [True, True]


def uses(model, rank):
    output = model(batch(rank))
    if rank:
        return output["of rows"].sum() + output["of table"].detach().sum()
    return output["of columns"].square().sum()


def nothing_on_one_rank(model, rank):
    return weighted(model(batch(rank)), rank) * (0 if rank else 3)


def trained(losses, options):
    plain, sharded = models(**options)
    for _ in range(2):
        of_all(plain, losses).backward()
        losses(sharded, dist.get_rank()).backward()
        if not options:
            with torch.no_grad():
                for param in [*plain.tables.parameters(), *sharded.module.tables.parameters()]:
                    if param.grad is not None:
                        param -= param.grad
                        param.grad = None
    assert_same(plain, sharded)
    return True


@pytest.mark.parametrize("options", [{"optimizer": "adam", "lr": 0.1}, {}], ids=["fused", "plain"])
@pytest.mark.parametrize("losses", [uses, nothing_on_one_rank])
def test_ranks_may_use_different_outputs(losses, options):
    assert run(trained, 2, losses, options) == [True, True]


def sparse():
    plain, sharded = models(sparse=True)
    optimizers = [torch.optim.Adagrad(each.parameters(), lr=0.1) for each in (plain, sharded)]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        of_all(plain, lambda model, rank: weighted(model(batch(rank)), rank)).backward()
        weighted(sharded(batch(dist.get_rank())), dist.get_rank()).backward()
        layouts = {param.grad.layout for param in sharded.parameters() if param.numel()}
        for optimizer in optimizers:
            optimizer.step()
    assert_same(plain, sharded)
    return layouts == {torch.sparse_coo}


def test_sparse_gradients_are_those_of_one_process():
    assert run(sparse, 2) == [True, True]


def wrapped(model, groups):
    """Tables that the backward pass updates, and all others clipped together, at a rate that rises."""
    params = dict(in_backward_optimizer_filter(model.named_parameters()))
    outside = KeyedOptimizerWrapper(params, lambda ps: torch.optim.SGD(ps, lr=0.5))
    clipped = GradientClippingOptimizer(
        outside,
        GradientClipping.NORM,
        max_gradient=0.1,
        enable_global_grad_clip=True,
        param_to_pgs=groups,
    )
    tables = getattr(model, "fused_optimizer", None)
    if tables is None:
        tables = CombinedOptimizer([("tables", model.tables.fused_optimizer)])
    stages = [WarmupStage(WarmupPolicy.LINEAR, max_iters=3, value=0.2)]
    warm = [WarmupOptimizer(tables, stages, lr=0.3), WarmupOptimizer(clipped, stages, lr=0.5)]
    return CombinedOptimizer([("tables", warm[0]), ("outside", warm[1])]), clipped


def wrappers(options):
    plain, sharded = models(Layered, **options)
    cut_up = {param: [dist.group.WORLD] for param in sharded.module.tables.parameters()}
    (one, of_one), (many, of_many) = wrapped(plain, {}), wrapped(sharded, cut_up)
    for _ in range(4):
        for optimizer in (one, many):
            optimizer.zero_grad()
        of_all(plain, lambda model, rank: model(batch(rank)).square().sum()).backward()
        sharded(batch(dist.get_rank())).square().sum().backward()
        for optimizer in (one, many):
            optimizer.step()
        torch.testing.assert_close(of_many.last_total_grad_norm, of_one.last_total_grad_norm)
        assert of_one.last_total_grad_norm > 0.1
    assert_same(plain, sharded)
    return True


@pytest.mark.parametrize(
    "options", [{"optimizer": "adagrad", "lr": 0.3}, {}], ids=["fused", "plain"]
)
def test_clipped_and_warmed_up_training_is_that_of_one_process(options):
    assert run(wrappers, 2, options) == [True, True]


def cast(dtype):
    plain, sharded = models(optimizer="rowwise_adagrad", lr=0.1)
    plain.to(dtype), sharded.to(dtype)
    for step in range(2):
        expected = plain(batch(dist.get_rank(), step)).values().detach()
        output = sharded(batch(dist.get_rank(), step))
        # Each weight is the nearest in its dtype, or the one beside it; rules compute in float32.
        unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        within = {"rtol": 4 * unit, "atol": 2 * unit}
        torch.testing.assert_close(output.values(), expected, **within)
        weighted(output, dist.get_rank()).backward()
        loss = of_all(
            plain, lambda model, rank, step=step: weighted(model(batch(rank, step)), rank)
        )
        loss.backward()
    return {value.dtype for value in sharded.state_dict().values()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_that_is_cast_gives_what_its_layers_have(dtype):
    assert run(cast, 2, dtype) == [{dtype}] * 2
