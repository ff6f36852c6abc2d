"""Tables that every rank has a copy of, updated in the backward pass: by all ranks together, and alike."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
)
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import ShardingPlan
from torchrec.distributed.unshard import unshard
from torchrec.types import DataType

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

TABLES = {
    "adam": {"optimizer": "adam", "lr": 0.1, "embedding_dim": 3},
    "rows": {"optimizer": "rowwise_adagrad", "lr": 0.1, "embedding_dim": 4},
    "counts": {
        "optimizer": "sgd",
        "lr": 0.1,
        "optimizer_options": {"batch_l2": 0.5},
        "embedding_dim": 2,
    },
    "fp16": {"optimizer": "adagrad", "lr": 0.1, "embedding_dim": 2, "data_type": DataType.FP16},
    "later": {"optimizer": "adagrad", "embedding_dim": 3},
    "sparse": {"sparse": True, "embedding_dim": 2},
    "dense": {"embedding_dim": 2},
}
SPLIT = "spread"  # on all ranks, beside the copies


class Model(nn.Module):
    def __init__(self, pooled, names=(*TABLES, SPLIT)):
        super().__init__()
        options = {**TABLES, SPLIT: {"optimizer": "adagrad", "lr": 0.1, "embedding_dim": 3}}
        kind = EmbeddingBagConfig if pooled else EmbeddingConfig
        # One feature of all copies, and one of each.
        tables = [
            kind(num_embeddings=6, name=name, feature_names=["all", name], **options[name])
            for name in names
        ]
        self.tables = EmbeddingBagCollection(tables) if pooled else EmbeddingCollection(tables)

    def forward(self, features):
        output = self.tables(features)
        if isinstance(self.tables, EmbeddingBagCollection) or not isinstance(output, dict):
            return output.values().square().sum()
        return sum((i + 1) * each.values().square().sum() for i, each in enumerate(output.values()))


def plan_of(model):
    names = [config.name for config in model.tables.table_configs()]
    kinds = {name: row_wise() if name == SPLIT else data_parallel() for name in names}
    return construct_module_sharding_plan(model.tables, kinds, device_type="cpu")


def batch(names, rank, step):
    """Bags of up to three ids; rank 1 has nothing in step 1, and no id of some tables in step 0."""
    generator = torch.Generator().manual_seed(10 * rank + step)
    size = 0 if (rank, step) == (1, 1) else 2 + rank
    lists = {}
    for number, name in enumerate(["all", *names]):
        lengths = torch.randint(0, 4, (size,), generator=generator)
        if rank == 1 and step == 0 and number % 2:
            lengths = torch.zeros_like(lengths)
        lists[name] = [
            torch.randint(0, 6, (int(n),), generator=generator).tolist() for n in lengths
        ]
    return KeyedJaggedTensor.from_lists(lists)


def against_one_process(pooled):
    torch.manual_seed(3)
    # Each look-up of one process has its own number of samples, which a penalty of rows is divided by.
    names = [name for name in (*TABLES, SPLIT) if name != "counts"]
    model, world_size = Model(pooled, names), dist.get_world_size()
    steps = [[batch(names, rank, step) for rank in range(world_size)] for step in range(3)]
    assert_same_training(model, ShardingPlan({"tables": plan_of(model)}), steps)
    return True


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_copies_train_as_in_one_process(pooled):
    assert run(against_one_process, 2, pooled) == [True, True]


def penalised(used):
    """A penalty of rows counts how often each is looked up, on any rank, and the samples of all.

    On rank 0 the loss may use the weight itself as well, which looks nothing up.
    """
    torch.manual_seed(2)
    plain = Model(True, ("counts",))
    model = copy.deepcopy(plain)
    sharded = DistributedModelParallel(model, plan=ShardingPlan({"tables": plan_of(model)}))
    of_ranks = [[[0, 1], [2]], [[1], [], [5, 5]]]
    name = "tables.embedding_bags.counts.weight"
    itself = [dict(each.named_parameters())[name] for each in (plain, sharded)]
    for _ in range(2):
        mine = of_ranks[dist.get_rank()]
        loss = sharded(KeyedJaggedTensor.from_lists({"all": mine, "counts": mine}))
        whole = [*of_ranks[0], *of_ranks[1]]
        expected = plain(KeyedJaggedTensor.from_lists({"all": whole, "counts": whole}))
        if used:
            expected = expected + itself[0].sum()
            loss = loss + itself[1].sum() if dist.get_rank() == 0 else loss
        loss.backward()
        (expected / 2).backward()
    torch.testing.assert_close(sharded.state_dict()[name], plain.state_dict()[name])
    return True


@pytest.mark.parametrize("used", [False, True], ids=["look-ups", "the weight as well"])
def test_a_penalty_counts_the_ids_of_all_ranks(used):
    assert run(penalised, 2, used) == [True, True]


def alike():
    """Weights and states of copies, which began with other weights on each rank, and step counts."""
    torch.manual_seed(dist.get_rank())
    names = ("adam", "rows", "counts", "fp16")
    model = Model(True, names)
    sharded = DistributedModelParallel(model, plan=ShardingPlan({"tables": plan_of(model)}))
    copied = copy.deepcopy(sharded)
    for step in range(3):
        with model.tables.fused_optimizer.accumulate() if step == 0 else torch.enable_grad():
            sharded(batch(names, dist.get_rank(), step)).backward()
    plain = unshard(sharded, 0)
    states = sharded.fused_optimizer.state_dict()["state"]
    first = {
        **sharded.state_dict(),
        **{f"{n}/{k}": v for n, s in states.items() for k, v in s.items()},
    }
    if plain is not None:
        for name, state in plain.tables.fused_optimizer.state_dict()["state"].items():
            for kind, value in state.items():
                assert torch.equal(states[f"tables.{name}"][kind], value)
    before = {name: value.clone() for name, value in copied.state_dict().items()}
    copied(batch(names, dist.get_rank(), 0)).backward()
    changed = [
        name for name, value in copied.state_dict().items() if not torch.equal(value, before[name])
    ]
    return {n: v.clone() for n, v in first.items()}, copied.state_dict(), len(changed)


def test_copies_are_alike_to_the_last_bit():
    (first, copied, changed), *others = run(alike, 3)
    assert [name for name in first if name.endswith("/step")]
    assert changed == 4
    for mine, its, number in others:
        assert number == 4
        assert all(torch.equal(mine[name], value) for name, value in first.items())
        assert all(torch.equal(its[name], value) for name, value in copied.items())
    assert float(first["tables.embedding_bags.adam.weight/step"]) == 2


def uses_other_tables():
    """Rank 1 takes its loss of what is spread alone, and rank 0 of copies as well."""
    torch.manual_seed(1)
    names = ("adam", "rows", SPLIT)
    plain = Model(False, names)
    model = copy.deepcopy(plain)
    sharded = DistributedModelParallel(model, plan=ShardingPlan({"tables": plan_of(model)}))

    def loss(output, rank):
        used = [SPLIT] if rank else ["adam", SPLIT]
        return sum(output[name].values().square().sum() for name in used)

    batches = [batch(names, rank, 0) for rank in range(2)]
    (sum(loss(plain.tables(each), rank) for rank, each in enumerate(batches)) / 2).backward()
    rank = dist.get_rank()
    loss(model.tables(batches[rank]), rank).backward()
    for name in ("adam", "rows"):
        whole = plain.tables.embeddings[name].weight
        torch.testing.assert_close(sharded.state_dict()[f"tables.embeddings.{name}.weight"], whole)
    steps = sharded.fused_optimizer.state_dict()["state"]
    return [float(steps[f"tables.embeddings.{name}.weight"]["step"]) for name in names]


def test_a_loss_may_leave_copies_out_on_some_ranks():
    assert run(uses_other_tables, 2, timeout=20) == [[1.0, 0.0, 1.0]] * 2


def differing(what):
    model = Model(True, ("adam", "rows"))
    sharded = DistributedModelParallel(model, plan=ShardingPlan({"tables": plan_of(model)}))
    mine = dist.get_rank() == 1
    if what == "frozen" and mine:
        model.tables.embedding_bags["adam"].weight.requires_grad_(False)
    if what == "rate" and mine:
        model.tables.fused_optimizer.param_groups[0]["lr"] = 0.5
    loss = sharded(batch(("adam", "rows"), 0, 0))
    with (
        model.tables.fused_optimizer.accumulate()
        if what == "kept" and mine
        else torch.enable_grad()
    ):
        loss.backward()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "kept",
            "All ranks should be within `accumulate()`, or none, where every rank has a copy of a table. "
            "Received tables [[], ['adam', 'rows']] within it, by rank.",
        ),
        (
            "frozen",
            "All ranks should train the same tables. "
            "Received `requires_grad` of tables [['adam', 'rows'], ['rows']], by rank.",
        ),
        (
            "rate",
            "All ranks should have `lr` of the copies of table 'adam' alike. Received 0.1 on rank 0, 0.5 on rank 1.",
        ),
    ],
)
def test_ranks_that_would_drift_apart_are_told(what, message):
    for error in run(differing, 2, what, timeout=20):
        assert isinstance(error, ValueError)
        assert str(error) == message


def other_orders():
    model = nn.ModuleDict({"left": Model(True, ("adam",)), "right": Model(True, ("adam",))})
    kinds = {f"{name}.tables": plan_of(each) for name, each in model.items()}
    DistributedModelParallel(model, plan=ShardingPlan(kinds))
    losses = [each(batch(("adam",), 0, 0)) for each in model.values()]
    losses[dist.get_rank()].backward()


def test_backward_passes_in_other_orders_are_told():
    for error in run(other_orders, 2, timeout=20):
        assert isinstance(error, ValueError)
        assert str(error) == (
            "All ranks should do the same in the same order. "
            "Received the update of copies of tables of module 'left.tables' on rank 0, "
            "the update of copies of tables of module 'right.tables' on rank 1."
        )


def half_and_sparse(options):
    table = EmbeddingBagConfig(3, 2, "t", feature_names=["f"], data_type=DataType.FP16, **options)
    model = EmbeddingBagCollection([table])
    plan = construct_module_sharding_plan(model, {"t": data_parallel()}, device_type="cpu")
    DistributedModelParallel(model, plan=ShardingPlan({"": plan}))


@pytest.mark.parametrize(
    ("options", "received"),
    [({"sparse": True}, "sparse=True"), ({"optimizer": "adam"}, "an `optimizer` without `lr`")],
)
def test_sparse_gradients_that_nobody_adds_up_are_refused(options, received):
    for error in run(half_and_sparse, 2, options):
        assert isinstance(error, ValueError)
        assert str(error).startswith(
            "Table 't' should have dense gradients, another type or another"
        )
        assert str(error).endswith(f"Received {received}.")


class SomeUnused(nn.Module):
    """Two collections of copies, one with rows apart beside them; what a loss leaves out, the model has looked up."""

    def __init__(self):
        super().__init__()
        options = {"optimizer": "adagrad", "lr": 0.1}
        self.pooled = EmbeddingBagCollection(
            [EmbeddingBagConfig(5, 2, "copy", feature_names=["f"], **options)]
        )
        self.rows = EmbeddingCollection(
            [
                EmbeddingConfig(5, 2, name, feature_names=["f"], **options)
                for name in ("copy", SPLIT)
            ]
        )
        self.over = nn.Linear(2, 1)

    def forward(self, features, used):
        copies = self.rows(features)["f@copy"].values()
        found = {"pooled": self.pooled(features).values(), "rows": copies}
        parts = [self.over(found[name]).square().sum() for name in used]
        return sum(parts, self.over(torch.ones(1, 2)).sum())


def left_out(uses):
    """Some of two collections of copies are in the loss of one rank, and not of the other."""
    torch.manual_seed(1)
    plain = SomeUnused()
    model = copy.deepcopy(plain)
    kinds = {"copy": data_parallel(), SPLIT: row_wise()}
    plan = {
        name: construct_module_sharding_plan(
            child,
            {config.name: kinds[config.name] for config in child.table_configs()},
            device_type="cpu",
        )
        for name, child in (("pooled", model.pooled), ("rows", model.rows))
    }
    sharded = DistributedModelParallel(model, plan=ShardingPlan(plan))
    batches = [KeyedJaggedTensor.from_lists({"f": [[rank, 2], [rank]]}) for rank in range(2)]
    rank = dist.get_rank()
    for of_ranks in uses:
        (sum(plain(*each) for each in zip(batches, of_ranks, strict=True)) / 2).backward()
        sharded(batches[rank], of_ranks[rank]).backward()
    for name, expected in plain.state_dict().items():
        found = sharded.state_dict()[name]
        if SPLIT not in name:
            torch.testing.assert_close(found, expected)
    return True


def test_a_loss_may_leave_copies_out_on_one_rank():
    both = ("pooled", "rows")
    uses = [(both, both), (both, ()), ((), ("rows",)), (("pooled",), ("rows",)), ((), ())]
    assert run(left_out, 2, uses, timeout=20) == [True, True]
