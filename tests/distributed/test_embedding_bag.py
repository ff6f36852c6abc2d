"""Bags of PyTorch whose table is sharded, against the bags: outputs, training, names, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.plans import plan_of
from tests.distributed.ranks import run
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagSharder, ShardedEmbeddingBag
from torchrec.distributed.optimizer import ShardedOptimizer
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import Adam, RowWiseAdagrad, apply_optimizer_in_backward
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

SHARDER = EmbeddingBagSharder()


class Model(nn.Module):
    """A bag, and a layer over it."""

    def __init__(self, optimizer=None, **options):
        super().__init__()
        torch.manual_seed(8)
        self.bag = nn.EmbeddingBag(11, 6, **options)
        self.over = nn.Linear(6, 1)
        if optimizer is not None:
            apply_optimizer_in_backward(optimizer, self.bag.parameters(), {"lr": 0.1})

    def forward(self, batch):
        scores = self.over(self.bag(*batch))
        return scores.square().sum() + scores.sin().sum()


def batch(rank, step, two_dimensional=False, weighted=False, ends=False):
    generator = torch.Generator().manual_seed(10 * rank + step)
    size = 0 if (rank, step) == (1, 1) else 3 + rank
    if two_dimensional:
        ids, offsets = torch.randint(0, 11, (size, 4), generator=generator), None
    else:
        lengths = torch.randint(0, 4, (size,), generator=generator)
        lengths[:1] = 0
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        ids = torch.randint(0, 11, (int(lengths.sum()),), generator=generator)
        offsets = offsets if ends else offsets[:-1]
    weights = torch.rand(ids.shape, generator=generator) if weighted else None
    return ids, offsets, weights


# Options of the bag, and of its batches.
CASES = [
    ({"mode": "sum"}, {}),
    ({"mode": "mean", "padding_idx": 3}, {}),
    ({"mode": "sum", "include_last_offset": True, "padding_idx": 10}, {"ends": True, "weighted": True}),
    ({"mode": "mean"}, {"two_dimensional": True}),
    ({"mode": "sum", "padding_idx": 0}, {"two_dimensional": True, "weighted": True}),
]  # fmt: skip


def trained():
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for kind in ("table_wise", "row_wise", "column_wise", "grid_shard", "data_parallel"):
        for number, (options, given) in enumerate(CASES):
            for optimizer in (None, (RowWiseAdagrad, Adam)[number % 2]):
                if kind == "data_parallel" and optimizer is not None:
                    continue
                model = Model(optimizer, **options)
                plan = ShardingPlan({"bag": plan_of(model.bag, kind, world_size, SHARDER)})
                batches = [[batch(r, s, **given) for r in range(world_size)] for s in range(3)]
                sharded = assert_same_training(model, plan, batches, sharders=[SHARDER])
                assert isinstance(sharded.module.bag, ShardedEmbeddingBag)
                names = ["bag.weight", "over.weight", "over.bias"]
                assert list(sharded.state_dict()) == names
                assert [name for name, _ in sharded.named_parameters()] == names
                updated = [] if optimizer is None else ["bag.weight"]
                assert list(sharded.fused_optimizer.params) == updated
                outside = in_backward_optimizer_filter(sharded.named_parameters())
                assert [name for name, _ in outside] == [n for n in names if n not in updated]
    return rank


@pytest.mark.slow
def test_bags_train_as_in_one_process():
    assert run(trained, 2) == [0, 1]


def failed(bad):
    model = Model(mode="mean")
    plan = plan_of(model.bag, "row_wise", dist.get_world_size(), SHARDER)
    sharded = DistributedModelParallel(model, plan=ShardingPlan({"bag": plan}), sharders=[SHARDER])
    sharded(bad if dist.get_rank() else batch(0, 0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((torch.tensor([11]), torch.tensor([0])), "rows of table 'weight'. Received 11 in sample 0"),
        ((torch.tensor([1]), None), r"On rank 1: `input` should be \(N,\) with `offsets`"),
        (
            (torch.tensor([1]), torch.tensor([0]), torch.ones(1)),
            "On rank 1: `per_sample_weights` should .* come with mode 'sum'",
        ),
    ],
    ids=["row", "shape", "weights"],
)  # fmt: skip
def test_what_one_rank_cannot_look_up_is_raised_on_all(bad, message):
    for error in run(failed, 2, bad):
        with pytest.raises((ValueError, IndexError), match=message):
            raise error


def alone(bag, sharder=SHARDER):
    return sharder.shard(bag, plan_of(bag, "row_wise", 1, sharder), ShardingEnv.from_local(1, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "max"}, "mode='sum' or 'mean' to be sharded. Received 'max'"),
        ({"max_norm": 1.0}, "max_norm=None to be sharded. Received 1.0"),
        ({"scale_grad_by_freq": True, "mode": "sum"}, "scale_grad_by_freq=False to be sharded"),
        ({"dtype": torch.float64}, "dtype=torch.float32 or torch.float16 or torch.bfloat16"),
    ],
    ids=["max", "max_norm", "scale_grad_by_freq", "dtype"],
)
def test_what_tables_in_parts_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        alone(nn.EmbeddingBag(5, 2, **options))


def test_a_bag_whose_optimizer_has_state_is_refused():
    model = Model(Adam, mode="sum")
    model(batch(0, 0)).backward()
    with pytest.raises(ValueError, match="should be sharded before it is trained"):
        alone(model.bag)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_rank_gives_what_the_bag_gives_and_copies_and_loads(dtype):
    bag = nn.EmbeddingBag(11, 6, mode="sum", dtype=dtype)
    ids, offsets, _ = batch(0, 0)
    sharded = alone(copy.deepcopy(bag))
    found, expected = sharded(ids, offsets).wait(), bag(ids, offsets)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    other = nn.EmbeddingBag(11, 6, mode="sum", dtype=dtype)
    twin = copy.deepcopy(sharded)
    sharded.load_state_dict(other.state_dict())
    torch.testing.assert_close(sharded(ids, offsets).wait(), other(ids, offsets))
    torch.testing.assert_close(twin(ids, offsets).wait(), expected)  # it has a weight of its own
    twin.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(twin(ids, offsets).wait(), other(ids, offsets))
    assert next(twin.collection.parameters()) is twin.weight
    assert sharded.half().weight.dtype == torch.float16
    assert sharded(ids, offsets).wait().shape == expected.shape


def test_on_meta_it_gets_weights_as_a_bag_does():
    bag = alone(nn.EmbeddingBag(4000, 8, device="meta", mode="sum"))
    assert not bag.weight.is_meta
    assert abs(float(bag.weight.detach().std()) - 1) < 0.05  # of 32,000 normal numbers
    before = bag.weight.detach().clone()
    bag.reset_parameters()
    assert bag.weight.shape == before.shape


def test_fused_params():
    sharder = EmbeddingBagSharder(fused_params={"optimizer": "exact_sgd", "learning_rate": 0.5})
    bag = alone(nn.EmbeddingBag(4, 2, mode="sum"), sharder)
    before = bag.weight.detach().clone()
    bag(torch.tensor([[1, 1]])).sum().backward()
    assert torch.equal(before[1] - 1.0, bag.weight[1])
    assert torch.equal(before[0], bag.weight[0])
    assert bag.weight.grad is None


def state_around():
    """The state of an optimizer around a bag is shown as a whole, of which this rank has some rows."""
    model = Model(mode="sum")
    plan = plan_of(model.bag, "row_wise", dist.get_world_size(), SHARDER)
    sharded = DistributedModelParallel(model, plan=ShardingPlan({"bag": plan}), sharders=[SHARDER])
    named = dict(sharded.named_parameters())
    inside = KeyedOptimizerWrapper(named, lambda params: torch.optim.Adam(params, lr=0.1))
    optimizer = ShardedOptimizer(inside, sharded)
    sharded(batch(dist.get_rank(), 0)).backward()
    optimizer.step()
    shown = optimizer.state_dict()["state"]["bag.weight"]["exp_avg"]
    return tuple(shown.shape), [tuple(s.tensor.shape) for s in shown.local_shards()]


def test_an_optimizer_around_a_bag_shows_its_state_as_a_whole():
    assert run(state_around, 2) == [((11, 6), [(6, 6)]), ((11, 6), [(5, 6)])]
