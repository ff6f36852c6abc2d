"""What is around the tables of a sharded model: how layers are kept alike, copies, and models of other shapes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import Model, batch, fused, plan_of, step, whole_parts
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import (
    DataParallelWrapper,
    DefaultDataParallelWrapper,
    get_unwrapped_module,
)
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import ShardedModule, ShardingPlan
from torchrec.optim import RowWiseAdagrad, apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

KINDS = {"user": ("row_wise",), "item": ("table_wise", 0)}


def sharded(**options):
    model = fused()
    return DistributedModelParallel(model, plan=plan_of(model, **KINDS), **options)


def over(model):
    return [p for name, p in model.named_parameters() if "over" in name]


def weights(model):
    return [(name, *part) for name, part in whole_parts(model)]


def alike(one, other):
    return all(
        a[:2] == b[:2] and torch.equal(a[2], b[2])
        for a, b in zip(weights(one), weights(other), strict=True)
    )


def gradients_of(model, number=0):
    model(batch(model.rank, number))[0].backward()
    return [p.grad for p in over(model)]


def on_all(tensor):
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return found


def are_mean(model, number=0):
    """Whether gradients of the layers are the mean of those that each rank's batch alone gives."""
    plain = Model()
    for mine, its in zip(over(plain), over(model), strict=True):
        mine.data.copy_(its.data)
    for name, value in weights_of_tables(model):
        plain.get_parameter(name).data.copy_(value)
    expected = []
    for rank in range(model.world_size):
        plain.zero_grad()
        plain(batch(rank, number))[0].backward()
        expected.append([p.grad.clone() for p in over(plain)])
    expected = [sum(grads) / model.world_size for grads in zip(*expected, strict=True)]
    model.zero_grad()
    return all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(gradients_of(model, number), expected, strict=True)
    )


def weights_of_tables(model):
    """Put the tables together from the parts of all ranks."""
    parts = [None] * model.world_size
    dist.all_gather_object(parts, list(whole_parts(model)))
    for name, value in model.state_dict().items():
        if hasattr(value, "local_shards"):
            whole = torch.zeros(tuple(value.shape))
            for _, ((row, column), part) in [p for of in parts for p in of if p[0] == name]:
                whole[row : row + part.shape[0], column : column + part.shape[1]] = part
            yield name, whole


def copies():
    """A trained model's copies train on as it does, whichever rank makes them first."""
    model = sharded()
    step(model, 2)
    twin = copy.deepcopy(model)
    moved = model.copy(torch.device("cpu"))
    only_here = copy.deepcopy(model) if dist.get_rank() == 0 else None  # nobody else is waited for
    names = [
        [name for name, _ in in_backward_optimizer_filter(m.named_parameters())]
        for m in (model, twin)
    ]
    for other in (model, twin, moved):
        step(other, 4)
    layers = all(torch.equal(*on_all(p.data)) for p in over(twin))
    untouched = only_here is None or not alike(model, only_here)
    return names[0] == names[1], alike(model, twin), alike(model, moved), layers, untouched


def test_copies_train_on_as_the_model_does():
    assert run(copies, 2) == [(True,) * 5] * 2


class Counting(DataParallelWrapper):
    def __init__(self):
        self.calls = []

    def wrap(self, dmp, env, device):
        self.calls.append((type(dmp).__name__, env.world_size, device.type))
        inner = DefaultDataParallelWrapper(static_graph=False)
        inner.wrap(dmp, env, device)


def wrappers():
    mine = Counting()
    model = sharded(data_parallel_wrapper=mine)
    later = sharded(init_data_parallel=False)
    first = isinstance(later._dmp_wrapped_module, DistributedDataParallel)
    later.init_data_parallel()
    wrapped = later._dmp_wrapped_module
    later.init_data_parallel()
    return (
        mine.calls,
        are_mean(model),
        first,
        isinstance(wrapped, DistributedDataParallel) and later._dmp_wrapped_module is wrapped,
        are_mean(later),
        get_unwrapped_module(later) is later.module is wrapped.module,
    )


def test_layers_are_wrapped_by_whom_one_asks_and_when():
    expected = [("DistributedModelParallel", 2, "cpu")]
    assert run(wrappers, 2) == [(expected, True, False, True, True, True)] * 2


class Sometimes(Model):
    """Uses one of its layers in every other step."""

    def __init__(self):
        super().__init__()
        self.more = nn.Linear(16, 1)
        self.steps = 0

    def forward(self, features):
        self.steps += 1
        _, scores = super().forward(features)
        if self.steps % 2:
            scores = scores + self.more(self.tables(features).values()).squeeze(1)
        return scores.square().mean(), scores


def unused():
    model = Sometimes()
    wrapper = DefaultDataParallelWrapper(static_graph=False, find_unused_parameters=True)
    model = DistributedModelParallel(
        model, plan=plan_of(model, **KINDS), data_parallel_wrapper=wrapper
    )
    used = []
    for number in range(4):
        model.zero_grad()
        model(batch(model.rank, number))[0].backward()
        used.append(model.module.more.weight.grad is not None)
    same = [torch.equal(*on_all(p.grad)) for p in over(model)]
    return used, all(same)


def test_layers_that_are_not_used_in_a_step_are_found():
    assert run(unused, 2) == [([True, False, True, False], True)] * 2


class Failing(Model):
    """Fails in a backward pass that has come to its first layer, and not to its tables."""

    def __init__(self):
        super().__init__()
        self.before, self.fails = nn.Linear(16, 16), False

    def forward(self, features):
        hidden = self.before(self.tables(features).values())
        if self.fails:
            hidden.register_hook(lambda _: 1 / 0)
        scores = self.over(hidden).squeeze(1)
        return scores.square().mean(), scores


def after_a_failure():
    model = Failing()
    model = DistributedModelParallel(model, plan=plan_of(model, **KINDS))
    for number in range(3):
        model.module.fails = number == 2
        loss, _ = model(batch(model.rank, number))
        if number < 2:
            loss.backward()
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    model(batch(model.rank, 3))


def test_a_model_whose_backward_pass_has_failed_says_what_to_do():
    for error in run(after_a_failure, 2):
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("The backward pass before should have come to all layers ")
        assert "make the model anew and load its last checkpoint" in str(error)


def precisions():
    """Each rank divides its gradient by the number of ranks in the type, and the halves are added up in it."""
    local = Model()
    exact = [[g.clone() for g in gradients_of_plain(local, r)] for r in range(2)]
    found = []
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        model = sharded(
            data_parallel_wrapper=DefaultDataParallelWrapper(allreduce_comm_precision=name)
        )
        halves = [[g.to(dtype) / 2 for g in grads] for grads in exact]
        expected = [(a + b).float() for a, b in zip(*halves, strict=True)]
        got = gradients_of(model)
        found.append(all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)))
    return found


def gradients_of_plain(model, rank):
    model.zero_grad()
    model(batch(rank, 0))[0].backward()
    return [p.grad for p in over(model)]


def test_gradients_are_added_up_in_fewer_bits_if_it_is_asked_for():
    assert run(precisions, 2) == [[True, True]] * 2


def options():
    ignoring = sharded(
        data_parallel_wrapper=DefaultDataParallelWrapper(params_to_ignore=["over.bias"])
    )
    weight, bias = gradients_of(ignoring)
    same = torch.equal(*on_all(weight)), torch.equal(*on_all(bias))
    made = {
        "bucket_cap_mb": DefaultDataParallelWrapper(bucket_cap_mb=3),
        "ddp_kwargs": DefaultDataParallelWrapper(ddp_kwargs={"gradient_as_bucket_view": False}),
        "static_graph": DefaultDataParallelWrapper(static_graph=False),
        "default": DefaultDataParallelWrapper(),
    }
    ddps = {name: sharded(data_parallel_wrapper=w)._dmp_wrapped_module for name, w in made.items()}
    return same, {
        name: (ddp.bucket_bytes_cap >> 20, ddp.gradient_as_bucket_view, ddp.static_graph)
        for name, ddp in ddps.items()
    }


def test_options_of_the_wrapper_reach_it():
    for same, found in run(options, 2):
        assert same == (True, False)
        assert found == {
            "bucket_cap_mb": (3, True, True),
            "ddp_kwargs": (25, False, True),
            "static_graph": (25, True, False),
            "default": (25, True, True),
        }


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`allreduce_comm_precision` should be 'fp16', 'bf16'"):
        DefaultDataParallelWrapper(allreduce_comm_precision="int8")


# Models of other shapes.


def config(name, feature, rows=13, **options):
    return EmbeddingBagConfig(rows, 4, name, feature_names=[feature], **options)


class Several(nn.Module):
    """Two collections, one of them under two names and used twice, trained by different rules."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = EmbeddingBagCollection([config("a", "u", 30), config("b", "i")])
        self.inside = nn.ModuleDict({"second": EmbeddingBagCollection([config("c", "u", 30)])})
        self.again = self.inside["second"]
        self.over = nn.Linear(16, 1)

    def forward(self, features):
        pooled = [
            module(features).values() for module in (self.first, self.inside["second"], self.again)
        ]
        return self.over(torch.cat(pooled, dim=1)).square().mean()


def several():
    model = Several()
    # A copied table is trained by the optimizer outside: the rule would not survive.
    rows = model.first.embedding_bags["a"].weight
    apply_optimizer_in_backward(RowWiseAdagrad, [rows], {"lr": 0.1})
    apply_optimizer_in_backward(torch.optim.SGD, model.again.parameters(), {"lr": 0.1})
    plan = ShardingPlan(
        {
            path: construct_module_sharding_plan(module, tables)
            for path, module, tables in (
                ("first", model.first, {"a": row_wise(), "b": data_parallel()}),
                ("inside.second", model.again, {"c": row_wise()}),
            )
        }
    )
    batches = [[batch(rank, number) for rank in range(2)] for number in range(3)]
    trained = assert_same_training(model, plan, batches)
    assert trained.module.again is trained.module.inside["second"]
    assert isinstance(trained.module.again, ShardedModule)
    return list(trained.state_dict()), list(trained.fused_optimizer.params)


def test_several_collections_and_one_under_two_names():
    for state, updated in run(several, 2):
        assert state == [
            "first.embedding_bags.a.weight",
            "first.embedding_bags.b.weight",
            "inside.second.embedding_bags.c.weight",
            "again.embedding_bags.c.weight",
            "over.weight",
            "over.bias",
        ]
        assert updated == [
            "first.embedding_bags.a.weight",
            "inside.second.embedding_bags.c.weight",
        ]


def only_tables():
    """A collection is the whole model, some of its tables copied to every rank."""
    tables = EmbeddingBagCollection([config("a", "u", 30), config("b", "i")])
    with torch.no_grad():
        for weight in tables.parameters():
            weight.fill_(1.0)
    plan = construct_module_sharding_plan(tables, {"a": row_wise(), "b": data_parallel()})
    model = DistributedModelParallel(tables, plan=ShardingPlan({"": plan}))
    model(batch(model.rank, 0)).values().sum().backward()
    copied = dict(model.named_parameters())["embedding_bags.b.weight"]
    same = torch.equal(*on_all(copied.grad))
    return list(model.state_dict()), same, copied.grad.sum().item()


def test_a_collection_is_the_whole_model():
    names = ["embedding_bags.a.weight", "embedding_bags.b.weight"]
    assert run(only_tables, 2) == [(names, True, 16.0)] * 2  # the mean of 4 ids x 4 columns


def test_layers_stay_on_meta_unless_they_are_to_be_initialised():
    tables = EmbeddingBagCollection([config("a", "u")], device="meta")
    model = nn.Sequential(tables, nn.Linear(4, 1, device="meta"))
    left = DistributedModelParallel(model, init_parameters=False)
    assert left.module[1].weight.is_meta
    assert not left.module[0].embedding_bags["a"].weight.is_meta


def test_weights_that_another_module_uses_are_not_sharded():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = EmbeddingBagCollection([config("a", "u")])
            self.out = nn.Linear(4, 13)
            self.out.weight = self.tables.embedding_bags["a"].weight

    with pytest.raises(ValueError, match=r"Module 'tables' .* Received one that is 'out.weight'"):
        DistributedModelParallel(Tied())
    both = nn.ModuleDict({n: EmbeddingBagCollection([config("a", "u")]) for n in ("one", "two")})
    both["two"].embedding_bags["a"].weight = both["one"].embedding_bags["a"].weight
    with pytest.raises(ValueError, match=r"'two.embedding_bags.a.weight' .* to one collection"):
        DistributedModelParallel(both)


class Namesakes(nn.Module):
    """Two tables that have a name in common, and nothing else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        first = config("a", "u", 9, optimizer="rowwise_adagrad", lr=0.1)
        self.first = EmbeddingBagCollection([first])
        self.second = EmbeddingBagCollection([config("a", "i", 5, optimizer="sgd", lr=0.1)])
        self.over = nn.Linear(8, 1)

    def forward(self, features):
        vectors = [self.first(features).values(), self.second(features).values()]
        return self.over(torch.cat(vectors, 1)).square().mean()


def namesakes():
    model = Namesakes()
    placements = {"first": row_wise(), "second": table_wise(1)}
    plan = {
        path: construct_module_sharding_plan(getattr(model, path), {"a": kind}, device_type="cpu")
        for path, kind in placements.items()
    }
    batches = [
        [
            KeyedJaggedTensor.from_lists({"u": [[rank, 8]], "i": [[step, rank + 3]]})
            for rank in range(2)
        ]
        for step in range(3)
    ]
    return sorted(assert_same_training(model, ShardingPlan(plan), batches).fused_optimizer.params)


@pytest.mark.slow
def test_tables_of_several_collections_may_have_one_name():
    names = [f"{path}.embedding_bags.a.weight" for path in ("first", "second")]
    assert run(namesakes, 2) == [names, names]


def test_what_programs_read_of_a_sharded_model():
    model = Several()
    sharders = {s.module_type: s for s in DistributedModelParallel(Several())._sharders}
    shardable = sharders[EmbeddingBagCollection].shardable_parameters(model.first)
    assert {name: tuple(p.shape) for name, p in shardable.items()} == {"a": (30, 4), "b": (13, 4)}
    sharded = DistributedModelParallel(model)
    assert sharded._plan is sharded.plan
    assert sharded.module is sharded._dmp_wrapped_module is get_unwrapped_module(sharded)
    assert list(sharded.plan.plan) == ["first", "inside.second"]
    bare = [name for name, _ in sharded.bare_named_parameters()]
    assert [name for name in bare if name.startswith("over")] == ["over.weight", "over.bias"]
    features = KeyedJaggedTensor.from_lists({"u": [[1]], "i": [[2]]})
    assert sharded(features).shape == ()


def test_what_a_sharded_model_does_not_do_is_refused():
    model = DistributedModelParallel(Model())
    assert model.get_delta_tracker() is None
    with pytest.raises(TypeError, match=r"should have a method `write`\. Received a Model"):
        model.write(1)


def test_a_model_is_written_into_by_its_own_method():
    class Written(Model):
        def write(self, row, value):
            self.written = row, value

    model = DistributedModelParallel(Written())
    model.write(3, value=4)
    assert model.module.written == (3, 4)
