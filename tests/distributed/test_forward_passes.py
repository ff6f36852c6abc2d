"""Ranks that do not do the same: all of them say so, within seconds, and which does what."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import Workers, run
from tests.distributed.test_passes import assert_same
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

ROWWISE, ADAM = {"optimizer": "rowwise_adagrad", "lr": 0.1}, {"optimizer": "adam", "lr": 0.1}


class Model(nn.Module):
    """Two collections of equal tables, one of others, one of sequences; layers, or none."""

    def __init__(self, layered):
        super().__init__()
        torch.manual_seed(4)
        for name, options in (("left", ROWWISE), ("right", ADAM)):
            tables = [
                EmbeddingBagConfig(9, 4, f"{kind}", feature_names=[kind], **options)
                for kind in ("rows", "columns", "table")
            ]
            setattr(self, name, EmbeddingBagCollection(tables))
        other = EmbeddingBagConfig(7, 8, "table", feature_names=["table"], **ADAM)
        self.other = EmbeddingBagCollection([other])
        sequence = EmbeddingConfig(9, 4, "rows", feature_names=["rows"], **ADAM)
        self.sequence = EmbeddingCollection([sequence])
        self.over = nn.Linear(36, 1) if layered else nn.Identity()

    def forward(self, features, names):
        found = {}
        for name in names:
            output = getattr(self, name)(features)
            found[name] = output["rows"].values() if name == "sequence" else output.values()
        pooled = [found[name] for name in ("left", "right", "other") if name in found]
        padded = nn.functional.pad(torch.cat(pooled, 1), (0, 36))[:, :36]
        return self.over(padded), found


NAMES = ["left", "right", "other", "sequence"]


def models(layered=True, env=None):
    plain, model = Model(layered), Model(layered)
    kinds = {"rows": row_wise(), "columns": column_wise([0, 1]), "table": table_wise(1)}
    plan = {
        name: construct_module_sharding_plan(
            getattr(model, name),
            {c.name: kinds[c.name] for c in getattr(model, name).table_configs()},
            device_type="cpu",
        )
        for name in NAMES
    }
    return plain, DistributedModelParallel(model, env, plan=ShardingPlan(plan))


def batch(rank, step=0):
    return KeyedJaggedTensor.from_lists(
        {kind: [[rank, step, 3], [6, k]] for k, kind in enumerate(("rows", "columns", "table"))}
    )


def batch_of_both(step):
    return KeyedJaggedTensor.from_lists(
        {
            kind: [[0, step, 3], [6, k], [1, step, 3], [6, k]]
            for k, kind in enumerate(("rows", "columns", "table"))
        }
    )


def train(sharded, names=NAMES, step=0):
    prediction, found = sharded(batch(dist.get_rank(), step), names)
    (prediction.sum() + sum(each.square().sum() for each in found.values())).backward()


def one_by_one(first, second, sharded, last):
    found = {name: getattr(sharded.module, name)(batch(0)).values() for name in (first, second)}
    for name in (second, first) if last else (first, second):
        found[name].square().sum().backward()


def left_out(names, sharded, last):
    train(sharded, names if last else NAMES)


def no_backward(sharded, last):
    loss = sharded(batch(0), NAMES)[0].sum()
    if not last:
        loss.backward()
    train(sharded)


def two_passes(sharded, last):
    prediction, found = sharded(batch(0), NAMES)
    first, second = prediction.sum(), found["left"].sum()
    if last:
        first.backward(retain_graph=True)
        second.backward()
    else:
        (first + second).backward()
    train(sharded)


def accumulating(sharded, last):
    prediction, _ = sharded(batch(0), NAMES)
    if last:
        with sharded.module.other.fused_optimizer.accumulate():
            prediction.sum().backward()
    prediction.sum().backward()


def evaluating(sharded, last):
    sharded.train(not last)
    train(sharded)


def frozen(sharded, last):
    sharded.module.over.bias.requires_grad_(not last)
    train(sharded)


def gathering(sharded, last):
    train(sharded)
    if last:
        sharded.state_dict()["left.embedding_bags.rows.weight"].full_tensor()
    train(sharded)


@pytest.fixture(scope="module")
def workers():
    with Workers() as started:
        yield started


def message_of(act, layered):
    _, sharded = models(layered)
    train(sharded)
    try:
        act(sharded, dist.get_rank() == 1)
    except ValueError as error:
        return str(error)
    return "nothing"


BACK = "the backward pass of look-up 1 of module"
SAME = "All ranks should do the same in the same order. Received "


BEGIN, END = (
    "the beginning of forward pass 2 of the model",
    "the end of forward pass 1 of the model",
)
BOTH = [True, False]  # with layers, whose gradients are added up, and without


@pytest.mark.parametrize(
    ("act", "layered", "message"),
    [
        *[
            (
                partial(one_by_one, "left", name),
                layered,
                f"{BACK} 'left' on rank 0, {BACK} '{name}'",
            )
            for name in ("right", "other")
            for layered in BOTH
        ],
        *[
            (
                partial(left_out, ["left", "other", "sequence"]),
                layered,
                "look-up 1 of module 'right' on rank 0, look-up 1 of module 'other'",
            )
            for layered in BOTH
        ],
        (partial(left_out, NAMES[:-1]), True, f"look-up 1 of module 'sequence' on rank 0, {END}"),
        (
            partial(left_out, NAMES[:-1]),
            False,
            f"look-up 1 of module 'sequence' on rank 0, {BACK} 'other'",
        ),
        (no_backward, True, f"{BACK} 'sequence' on rank 0, {BEGIN}"),
        (no_backward, False, f"{BACK} 'sequence' on rank 0, look-up 2 of module 'left'"),
        (two_passes, True, f"{BEGIN} on rank 0, {BACK} 'sequence'"),
        (two_passes, False, f"look-up 2 of module 'left' on rank 0, {BACK} 'sequence'"),
        (gathering, True, f"{BEGIN} on rank 0, `full_tensor()` of table 'rows'"),
        (gathering, False, "look-up 2 of module 'left' on rank 0, `full_tensor()` of table 'rows'"),
    ],
)
def test_ranks_that_do_not_do_the_same_say_which_does_what(act, layered, message, workers):
    expected = f"All ranks should do the same in the same order. Received {message} on rank 1."
    assert workers.run(message_of, 2, act, layered, timeout=30) == [expected] * 2


@pytest.mark.parametrize(
    ("act", "layered", "message"),
    [
        (accumulating, True, "be within `accumulate()`, or none. Received [0, 1], by rank."),
        (accumulating, False, "be within `accumulate()`, or none. Received [0, 1], by rank."),
        (evaluating, True, "have `training` of module '' alike. Received True on rank 0, False on"),
        (frozen, True, "have `requires_grad` of 'over.bias' alike. Received True on rank 0, False"),
    ],
)
def test_ranks_that_train_otherwise_say_so(act, layered, message, workers):
    one, other = workers.run(message_of, 2, act, layered, timeout=30)
    assert one == other
    assert one.startswith(f"All ranks should {message}")


def used(found, rank, step):
    """A loss that uses other collections on each rank, and one that no rank uses after the first step."""
    names = (["left", "other"] if rank else ["left", "sequence"]) if step else NAMES
    return sum(found[name].square().sum() for name in names)


def unused(layered):
    plain, sharded = models(layered)
    for step in range(3):
        found = plain(batch_of_both(step), NAMES)[1]
        halves = {name: values.chunk(2) for name, values in found.items()}
        losses = [used({n: half[r] for n, half in halves.items()}, r, step) for r in range(2)]
        (sum(losses) / 2).backward()
        used(sharded(batch(dist.get_rank(), step), NAMES)[1], dist.get_rank(), step).backward()
    assert_same(plain, sharded)
    return True


@pytest.mark.parametrize("layered", BOTH, ids=["layers", "tables"])
def test_a_collection_that_a_loss_leaves_out_takes_part_all_the_same(layered, workers):
    assert workers.run(unused, 2, layered, timeout=30) == [True, True]


def stopped():
    """The last rank stops; the others train, begin to one after another, and tell what they hear, and when."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    group = dist.new_group(timeout=timedelta(seconds=5))
    _, sharded = models(env=ShardingEnv.from_process_group(group))
    train(sharded)
    found, start = [], time.monotonic()
    time.sleep(8 if rank == last else rank)
    for _ in range(2):
        with pytest.raises(RuntimeError) as error:
            train(sharded)
        found.append(str(error.value))
    took = time.monotonic() - start
    dist.barrier()  # the program's own group is as it was
    return found, took


@pytest.mark.slow
def test_a_rank_that_stops_is_named_within_the_timeout_by_all_and_ever_after():
    *others, stopped_itself = run(stopped, 3, timeout=50)
    expected = (
        "All ranks should take part in the beginning of forward pass 1 of the model within 5 s, the `timeout` of "
        "their process group. Received nothing from rank 2: it has stopped, or has left out what others do."
    )
    for found, took in others:
        assert found == [expected] * 2
        assert (
            took < 7.5
        )  # all wait side by side, and nobody a second time; the rank that stopped comes back after 8
    assert stopped_itself[0] == [expected] * 2
