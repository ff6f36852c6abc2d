"""A trainer on several ranks learns what it learns in one process, and goes on from a checkpoint on any number."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounterWithBackend

from tests.distributed.ranks import Workers
from tests.training.clicks import make_batch
from tests.training.on_ranks import Shares, ended, share, trainer, valid_shares
from torchrec.training import Task
from torchrec.training.ranks import Ranks
from torchrec.training.world import ALONE

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

OPTIONS = {
    "epochs": 2,
    "evaluate_every": 4,
    "early_stopping": {"metric": "logloss", "patience": 9},
    "clip_norm": 1.0,
    "log_every": 3,
}


EMA = {"kind": "ema", "decay": 0.8}
# Of the last bias, differences of logits have no gradient but rounding, which Adam would make steps of.
COMPARED = {"tasks": Task(loss="pairwise", group="session"), "rule": "sgd", "dense": "sgd"}
SWA = {"kind": "swa", "start": 0.4}


def fit(plan, folder=None, until=None, **options):
    made, notes = trainer(plan, folder, **options)
    if until is not None:
        stepped = notes.stepped

        def stop(step, samples):
            stepped(step, samples)
            if step == until:
                raise KeyError("stopped")

        notes.stepped = stop
    try:
        result = made.fit(
            Shares(made.world, batches=5), valid_shares(made.world), resume=folder is not None
        )
    except KeyError:
        return None
    records = [(r.split, r.step, r.samples, r.loss, dict(r.report)) for r in notes.records]
    return ended(made), records, (result.steps, result.samples, result.best_step), notes.messages


def assert_close(found, expected):
    weights, records, counts, messages = found
    for name, value in expected[0].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=2e-5)
    assert counts == expected[2]
    assert messages == expected[3]
    for mine, theirs in zip(records, expected[1], strict=True):
        assert mine[:3] == theirs[:3]
        assert mine[3] == pytest.approx(theirs[3], rel=1e-3)
        assert mine[4] == pytest.approx(theirs[4], rel=1e-3, nan_ok=True)


@pytest.fixture(scope="module")
def workers():
    with Workers() as started:
        yield started


@pytest.mark.parametrize(
    ("plan", "world_size", "options"),
    [
        ("columns", 2, {"average": EMA, "batch_norm": True}),
        pytest.param("whole", 2, {"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param("whole", 2, {**COMPARED, "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param("rows", 3, COMPARED, marks=pytest.mark.slow),
        pytest.param("rows", 3, {"average": SWA, "batch_norm": True}, marks=pytest.mark.slow),
        pytest.param("copies", 2, {"rule": "rowwise_adagrad"}, marks=pytest.mark.slow),
    ],
)
def test_ranks_train_as_one_process(workers, plan, world_size, options):
    expected = fit(None, **OPTIONS, **options)
    for found in workers.run(fit_on, world_size, plan, {**OPTIONS, **options}):
        assert_close(found, expected)


def fit_compiled(plan, options):
    """Without what Inductor makes of graphs, which takes half a minute: where they end is what ranks change."""
    counter, patch = CompileCounterWithBackend("aot_eager"), pytest.MonkeyPatch()
    patch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    try:
        return fit(plan, **options, compile=True), counter.frame_count
    finally:
        patch.undo()


@pytest.mark.slow
def test_ranks_train_compiled_as_one_process(workers):
    options = {"epochs": 1, "rule": "sgd", "batch_norm": True}
    expected = fit(None, **options)
    for found, graphs in workers.run(fit_compiled, 2, "columns", options):
        assert graphs > 1
        assert_close(found, expected)


@pytest.mark.slow
def test_ranks_train_in_lower_precision_as_one_process(workers):
    """To the rounding of bfloat16, 2^-8, of gradients that ranks have parts of."""
    options = {"epochs": 1, "rule": "sgd", "precision": "bf16"}
    expected = fit(None, **options)
    exact = fit(None, **{**options, "precision": "fp32"})
    for weights, records, counts, _ in workers.run(fit_on, 2, "columns", options):
        assert counts == expected[2]
        for name, value in expected[0].items():
            torch.testing.assert_close(weights[name], value, rtol=2**-8, atol=2e-3)
        losses = [[record[3] for record in each] for each in (records, expected[1], exact[1])]
        assert losses[0] == pytest.approx(losses[1], rel=2**-8)
        assert losses[0] != pytest.approx(losses[2], rel=1e-6)


def fit_on(plan, options):
    return fit(plan, **options)


def fit_in(plan, folder, until, options):
    return fit(plan, folder, until, **options)


@pytest.mark.slow
def test_goes_on_from_a_checkpoint_to_the_last_bit(workers, tmp_path: Path):
    options = {**OPTIONS, "checkpoint_every": 3, "dropout": 0.2, "average": EMA}
    whole = workers.run(fit_in, 2, "columns", tmp_path / "whole", None, options)
    assert workers.run(fit_in, 2, "columns", tmp_path / "broken", 7, options) == [None, None]
    again = workers.run(fit_in, 2, "columns", tmp_path / "broken", None, options)
    for found, expected in zip(again, whole, strict=True):
        assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())


@pytest.mark.parametrize(
    ("first", "then", "average"),
    [
        (2, 1, EMA),
        pytest.param(1, 2, SWA, marks=pytest.mark.slow),
        pytest.param(2, 3, SWA, marks=pytest.mark.slow),
    ],
)
def test_goes_on_from_a_checkpoint_on_another_number_of_ranks(
    workers, tmp_path, first, then, average
):
    # A mean of the last steps begins before the checkpoint.
    options = {**OPTIONS, "checkpoint_every": 3, "batch_norm": True, "average": average}
    expected = fit(None, **options, folder=tmp_path / "whole")
    plans = {1: None, 2: "columns", 3: "rows"}
    stopped = workers.run(fit_in, first, plans[first], tmp_path / "run", 7, options)
    assert stopped == [None] * first
    for found in workers.run(fit_in, then, plans[then], tmp_path / "run", None, options):
        for name, value in expected[0].items():
            torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=2e-5)
        assert found[2] == expected[2]


def traffic_of(evaluates):
    made, _ = trainer("whole", epochs=1)
    made.fit(Shares(made.world, batches=5), valid_shares(made.world) if evaluates else None)
    return made.traffic


def test_what_is_sent_in_steps_is_counted(workers):
    """And what evaluations send is not."""
    with_evaluations, without = (workers.run(traffic_of, 2, each) for each in (True, False))
    assert with_evaluations == without
    for each in without:
        assert each.steps == 5
        # A message before the step, and six of the look-up: headers, ids, vectors, both ways, and its end.
        assert each.bytes > 5 * 16 * 4 * 4
        assert each.messages >= 5 * 5


def break_one(what):
    made, _ = trainer("whole")
    batches = [share(make_batch(16, 0, 0, number), made.world) for number in range(3)]
    if made.world.rank == 1:
        batches[1].targets["labels"][2] = 7.0
    if what == "nobody":
        batches[1] = make_batch(16, 0, 0, 0).select_batches(torch.arange(0), [0])[0]
    try:
        made.fit(batches)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "label",
            "On rank 1: `labels` should be 0 or 1. Received 7.0 in batch 2 of epoch 1, sample 2.",
        ),
        (
            "nobody",
            "`train` should give batches with samples on some rank. Received none for step 2.",
        ),
    ],
)
def test_what_is_wrong_on_one_rank_is_said_by_all(workers, what, message):
    assert workers.run(break_one, 2, what) == [message, message]


def test_shares_are_those_of_the_batches():
    whole = make_batch(5, 1)
    assert torch.equal(share(whole, ALONE).dense_features, whole.dense_features)


def work(fails):
    ranks = Ranks(dist.group.WORLD)

    def act():
        if ranks.rank == fails:
            raise ValueError("There are no rows.")
        return ranks.rank

    try:
        return ranks.each(act, "counting")
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        (None, [[0, 1]] * 2),
        (1, [(ValueError, "On rank 1: There are no rows.")] * 2),
    ],
)
def test_what_each_rank_does_is_told_to_all(workers, fails, expected):
    assert workers.run(work, 2, fails) == expected
