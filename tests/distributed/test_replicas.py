"""Groups of ranks that each have all tables, against as many plain models that average theirs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import Model, batch, fused
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import TrainPipelineSparseDist, sharding_plan
from torchrec.distributed.checkpoint import ShardedCheckpoints
from torchrec.distributed.model_parallel import DistributedModelParallel, DMPCollection
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
)
from torchrec.distributed.types import (
    DMPCollectionConfig,
    ShardedModule,
    ShardingPlan,
    ShardingStrategy,
)
from torchrec.inference.state_dict_transform import state_dict_gather
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.optim import RowWiseAdagrad, apply_optimizer_in_backward

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

CPU = torch.device("cpu")


def grouped(model, size, kinds, **options):
    tables = construct_module_sharding_plan(
        model.tables,
        {name: getattr(sharding_plan, kind)(*given) for name, (kind, *given) in kinds.items()},
        local_size=size,
        world_size=size,
        device_type="cpu",
    )
    plan = ShardingPlan({"tables": tables})
    world = dist.group.WORLD
    return DMPCollection(model, CPU, plan, dist.get_world_size(), size, world, **options)


def over(model):
    return [p for name, p in model.named_parameters() if name.startswith("over")]


class Simulation:
    """A plain model a group; layers take the mean gradient of all."""

    def __init__(self, model, groups):
        self.groups = groups
        self.models = [twin(model) for _ in groups]

    def step(self, number, lr=0.1):
        for group, model in zip(self.groups, self.models, strict=True):
            model.zero_grad()
            losses = [model(batch(rank, number))[0] for rank in group]
            (sum(losses) / len(losses)).backward()
        with torch.no_grad():
            for copies in zip(*map(over, self.models), strict=True):
                grad = sum(p.grad for p in copies) / len(copies)
                for param in copies:
                    param -= lr * grad

    @torch.no_grad()
    def sync(self, states):
        optimizers = [model.tables.fused_optimizer for model in self.models]
        for tables in zip(*(model.tables.parameters() for model in self.models), strict=True):
            of_optimizers = [
                optimizer.state[table]["sum"] if states else None
                for optimizer, table in zip(optimizers, tables, strict=True)
            ]
            for copies in (tables, of_optimizers) if states else (tables,):
                mean = sum(copies) / len(copies)
                for each in copies:
                    each.copy_(mean)


def twin(model):
    other = copy.deepcopy(model)
    apply_optimizer_in_backward(RowWiseAdagrad, other.tables.parameters(), {"lr": 0.1})
    return other


def assert_part_of(sharded, plain):
    expected = plain.state_dict()
    for name, value in sharded.state_dict().items():
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        if shards is None:
            torch.testing.assert_close(value, expected[name])
        for shard in shards or []:
            (row, column), part = shard.metadata.shard_offsets, shard.tensor
            whole = expected[name][row : row + part.shape[0], column : column + part.shape[1]]
            torch.testing.assert_close(part, whole)


def trained(size, kinds, states, across=False):
    world, rank = dist.get_world_size(), dist.get_rank()
    model = fused()
    strided = [list(range(first, world, world // size)) for first in range(world // size)]
    neighbours = [list(range(first, first + size)) for first in range(0, world, size)]
    groups = neighbours if across else strided
    simulation = Simulation(model, groups)
    mine = next(at for at, group in enumerate(groups) if rank in group)
    if mine:  # the copies begin as the first is
        with torch.no_grad():
            model.tables.embedding_bags["user"].weight.zero_()
    model = grouped(model, size, kinds, use_inter_host_allreduce=across)
    assert model.device_mesh.mesh.tolist() == groups
    optimizer = torch.optim.SGD(over(model), 0.1)
    for number in range(4):
        optimizer.zero_grad()
        model(batch(rank, number))[0].backward()
        optimizer.step()
        simulation.step(number)
        assert_part_of(model, simulation.models[mine])
        if number in (1, 2):
            model.sync(states)
            simulation.sync(states)
            assert_part_of(model, simulation.models[mine])
    copied = copy.deepcopy(model)
    model.sync()
    copied.sync()
    simulation.sync(True)
    assert_part_of(copied, simulation.models[mine])
    return list(model.state_dict()), list(model.plan.plan)


KINDS = {"user": ("row_wise",), "item": ("table_wise", 0)}


@pytest.mark.parametrize("states", [True, False], ids=["with states", "weights alone"])
def test_groups_of_one_rank_average_their_tables(states):
    names = list(Model().state_dict())
    assert run(trained, 2, 1, KINDS, states) == [(names, ["tables"])] * 2


@pytest.mark.slow
@pytest.mark.parametrize("across", [False, True], ids=["strided", "neighbours"])
@pytest.mark.parametrize(
    "kinds",
    [KINDS, {"user": ("column_wise", [0, 1], [4, 4]), "item": ("data_parallel",)}],
    ids=["rows and a table", "columns and a copy"],
)
def test_groups_of_two_ranks_average_their_tables(kinds, across):
    names = list(Model().state_dict())
    if kinds is not KINDS:
        kinds = {"user": kinds["user"], "item": ("table_wise", 1)}
    assert run(trained, 4, 2, kinds, True, across) == [(names, ["tables"])] * 4


def hooks():
    model, seen = grouped(fused(), 1, KINDS), []
    model(batch(model.device_mesh.get_rank(), 0))[0].backward()
    before = [p.clone() for p in model.module.tables.parameters()]
    model.set_all_reduce_hook(lambda tensors: seen.append([tuple(t.shape) for t in tensors]))
    model.sync()
    model.ensure_reduce_scatter_complete()
    kept = all(map(torch.equal, before, model.module.tables.parameters()))
    model.sync(include_optimizer_state=False)
    given = grouped(fused(), 1, KINDS, custom_all_reduce=lambda tensors: tensors[0].zero_())
    given.sync(False)
    first = next(given.module.tables.parameters())
    return seen, kept, bool((first == 0).all())


def test_a_hook_takes_the_place_of_the_mean():
    weights, states = [(30, 8), (11, 8)], [(30, 1), (11, 1)]
    assert run(hooks, 2) == [([weights, states, weights], True, True)] * 2


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = EmbeddingBagCollection([EmbeddingBagConfig(30, 4, "a", feature_names=["u"])])
        self.tower = Tower()

    def forward(self, features):
        return self.tables(features).values().sum() + self.tower(features).sum()


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = EmbeddingBagCollection([EmbeddingBagConfig(11, 4, "b", feature_names=["i"])])

    def forward(self, features):
        return self.inside(features).values()


def grouped_apart():
    """One table on all ranks, one in each group of one rank."""
    model = Towers()
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(1.0)
    apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 1.0})
    plans = [
        ShardingPlan(
            {
                path: construct_module_sharding_plan(
                    model.get_submodule(path), {table: sharding_plan.row_wise()}, None, size, size
                )
            }
        )
        for path, table, size in (("tables", "a", 2), ("tower.inside", "b", 1))
    ]
    config = DMPCollectionConfig(Tower, plans[1], 1)
    world = dist.group.WORLD
    model = DMPCollection(model, CPU, plans[0], 2, 2, world, submodule_configs=[config])
    assert isinstance(model.module.tower.inside, ShardedModule)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    model(batch(dist.get_rank(), 0)).backward()
    inside = model.module.tower.inside.embedding_bags["b"].weight
    of_rank = [torch.empty(11, 4) for _ in range(2)]
    dist.all_gather(of_rank, inside.data)
    model.sync()
    torch.testing.assert_close(inside.data, sum(of_rank) / 2)
    return shapes, torch.equal(*of_rank), list(model.plan.plan)


def test_modules_are_grouped_apart():
    shapes = {
        "tables.embedding_bags.a.weight": (15, 4),
        "tower.inside.embedding_bags.b.weight": (11, 4),
    }
    assert run(grouped_apart, 2) == [(shapes, False, ["tables", "tower.inside"])] * 2


def piped(interval):
    model = grouped(fused(), 1, KINDS)
    pipeline = TrainPipelineSparseDist(
        model,
        torch.optim.SGD(over(model), 0.1),
        CPU,
        dmp_collection_sync_interval_batches=interval,
    )
    data = iter([batch(dist.get_rank(), number) for number in range(3)])
    alike = []
    for _ in range(3):
        pipeline.progress(data)
        copies = [torch.empty(30, 8) for _ in range(2)]
        dist.all_gather(copies, model.module.tables.embedding_bags["user"].weight.data)
        alike.append(torch.equal(*copies))
    return alike


@pytest.mark.parametrize(
    ("interval", "alike"), [(1, [True] * 3), (2, [False, True, False]), (None, [False] * 3)]
)
def test_a_pipeline_makes_copies_alike_every_so_many_steps(interval, alike):
    assert run(piped, 2, interval) == [alike] * 2


def refusals():
    found = []

    def refused(size=1, model=None, **options):
        with pytest.raises(ValueError, match=r"Received") as error:
            grouped(model or fused(), size, KINDS, **options)
        found.append(str(error.value))

    refused(sharding_strategy=ShardingStrategy.FULLY_SHARDED)
    refused(node_group_size=2)
    refused(use_sharded_relay=True)
    refused(rs_awaitable_hook_module="over")
    with pytest.raises(ValueError, match=r"divide the 1 ranks\. Received 2"):
        grouped(fused(), 2, KINDS)
    plan = ShardingPlan(
        {
            "tables": construct_module_sharding_plan(
                fused().tables, dict.fromkeys(["user", "item"], sharding_plan.row_wise())
            )
        }
    )
    refused(submodule_configs=[DMPCollectionConfig(nn.Linear, plan, 1)])
    refused(submodule_configs=[DMPCollectionConfig(Model, plan, 1)] * 2)
    table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"])
    maps = ManagedCollisionCollection(
        {"t": MCHManagedCollisionModule(10, CPU, LFU_EvictionPolicy(), 2)}, [table]
    )
    managed = fused()
    managed.managed = ManagedCollisionEmbeddingBagCollection(EmbeddingBagCollection([table]), maps)
    refused(model=managed)
    with pytest.raises(ValueError, match=r"should be at least 1, or None\. Received 0"):
        TrainPipelineSparseDist(
            grouped(fused(), 1, KINDS),
            torch.optim.SGD([nn.Parameter(torch.ones(1))]),
            CPU,
            dmp_collection_sync_interval_batches=0,
        )
    return found


def test_what_groups_are_not_made_of_is_refused():
    (found,) = run(refusals, 1)
    for part, message in zip(
        [
            "`sharding_strategy` should keep a copy",
            "`node_group_size` should divide a sharding group of 1 ranks. Received 2",
            "`use_sharded_relay` False",
            "Received 'over' and False",
            "should plan what is in a Linear. Received 'tables'",
            "should plan each module once. Received 'tables' twice",
            "Received a MCHManagedCollisionModule at 'managed.",
        ],
        found,
        strict=True,
    ):
        assert part in message


def saved(folder):
    """A checkpoint of groups, whose tables are alike; whole tables, states and step counts."""
    world = dist.get_world_size()
    model = grouped(fused(), 2 if world > 2 else 1, KINDS)
    for number in range(2):
        model(batch(dist.get_rank(), number))[0].backward()
    model.sync()
    expected = wholes_of(model)
    ShardedCheckpoints(folder).save(1, state_of(model))
    return expected


def state_of(model):
    return {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}


def wholes_of(model):
    found = dict(model.state_dict())
    for name, values in model.fused_optimizer.state_dict()["state"].items():
        found |= {f"{name}/{key}": value for key, value in values.items() if key != "step"}
    return {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in found.items()}


def loaded(folder, size):
    """What is loaded on some ranks, of one group or of several."""
    model = fused()
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(7.0)
    if size is None:
        kinds = {"user": column_wise([0]), "item": row_wise()}
        tables = construct_module_sharding_plan(model.tables, kinds, device_type="cpu")
        model = DistributedModelParallel(model, plan=ShardingPlan({"tables": tables}))
    else:
        model = grouped(model, size, {"user": ("table_wise", 0), "item": ("row_wise",)})
    state = ShardedCheckpoints(folder).load(1, state_of(model))
    model.load_state_dict(state["model"])
    model.fused_optimizer.load_state_dict(state["optimizer"])
    return wholes_of(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "others"),
    [
        (2, [(2, None), (1, None), (2, 1)]),
        pytest.param(4, [(3, None), (1, None), (4, 2), (4, 1), (8, 4)], marks=pytest.mark.slow),
    ],
)
def test_checkpoints_of_groups_load_on_other_ranks(tmp_path, world, others):
    expected, *rest = run(saved, world, str(tmp_path))
    for each in rest:
        assert all(torch.equal(each[name], value) for name, value in expected.items())
    for ranks, size in others:
        for found in run(loaded, ranks, str(tmp_path), size):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(found[name], value), name


def gathered():
    model = grouped(fused(), 2, {"user": ("row_wise",), "item": ("table_wise", 1)})
    state = model.state_dict()
    wholes = {name: torch.zeros(value.shape) for name, value in state.items()}
    state_dict_gather(state, wholes)
    return wholes


@pytest.mark.slow
def test_states_are_gathered_on_the_first_rank_of_each_group():
    expected = fused().state_dict()
    found = run(gathered, 4)
    for first in found[:2]:
        assert all(torch.equal(first[name], value) for name, value in expected.items())
    for other in found[2:]:
        assert not other["tables.embedding_bags.user.weight"].any()
