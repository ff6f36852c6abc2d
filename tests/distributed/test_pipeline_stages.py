"""Pipelines of stages that a program gives, and the stage that sends ids ahead."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import batch
from tests.distributed.test_pipeline_overlap import local_state, pipeline, same, sharded
from torchrec import KeyedJaggedTensor
from torchrec.distributed.train_pipeline import (
    SparseDataDistUtil,
    StagedTrainPipeline,
    TrainPipelineBase,
)
from torchrec.distributed.train_pipeline.pipeline_stage import PipelineStage

pytestmark = pytest.mark.once


def test_batches_come_out_in_order_when_they_have_been_through_all_stages():
    seen = []

    def stage(name):
        return PipelineStage(
            name,
            lambda x: seen.append((name, x)) or x,
            None,
            lambda: seen.append((name, "filled")),
            lambda: seen.append((name, "exhausted")),
        )

    steps = StagedTrainPipeline([stage("a"), stage("b")])
    assert steps.num_stages == 2
    data = iter([1, 2, 3])
    assert steps.progress(data) == 1
    assert seen == [
        *[("a", 1), ("a", "filled"), ("b", 1), ("b", "filled"), ("a", 2), ("a", "filled")],
        *[("b", 2), ("a", 3)],
    ]
    assert [steps.progress(data) for _ in range(3)] == [2, 3, None]
    assert ("a", "exhausted") in seen
    assert steps.progress(iter([7])) == 7


def test_a_flush_lets_all_batches_out_before_new_ones_come_in():
    ended, taken = [], []

    def taking(x):
        taken.append(x)
        return x

    stages = [PipelineStage("a", taking, None), PipelineStage("b", lambda x: x, None)]
    steps = StagedTrainPipeline(stages, on_flush_end=lambda: ended.append(list(taken)))
    data = iter(range(1, 8))
    assert steps.progress(data) == 1
    steps.set_flush(True)
    assert [steps.progress(data) for _ in range(2)] == [2, 3]
    assert not ended
    assert [steps.progress(data) for _ in range(4)] == [4, 5, 6, 7]
    assert ended == [[1, 2, 3]]
    assert steps.progress(data) is None


def test_what_a_stage_leaves_out_is_not_seen_by_later_ones_and_does_not_end_a_pass():
    seen, exhausted = [], []
    stages = [
        PipelineStage("all", lambda x: x, None),
        PipelineStage("odd", lambda x: x if x % 2 else None, None),
        PipelineStage(
            "see", lambda x: seen.append(x) or x, None, None, lambda: exhausted.append(1)
        ),
    ]
    steps = StagedTrainPipeline(stages)
    data = iter([2, 4, 1, 6, 8, 3, 10])
    assert [steps.progress(data) for _ in range(2)] == [1, 3]
    assert not exhausted
    assert steps.progress(data) is None
    assert seen == [1, 3]
    assert steps.progress(iter([5])) == 5


def failing(name, bad, seen):
    """A stage that fails with one batch, and says what it has been given."""

    def run_stage(x):
        seen.append((name, x))
        if x == bad:
            raise ValueError(f"{name} cannot use {x}")
        return x

    return PipelineStage(name, run_stage, None)


def outcomes(steps, data):
    """What comes out, errors as their messages."""
    found = []
    while True:
        try:
            output = steps.progress(data)
        except (ValueError, OSError) as error:
            output = str(error)
        if output is None:
            return found
        found.append(output)


@pytest.mark.parametrize("bad", range(1, 8))
def test_a_batch_that_a_stage_fails_with_is_an_error_in_its_own_step(bad):
    seen = []
    steps = StagedTrainPipeline([failing(name, bad * (name == "b"), seen) for name in "abc"])
    expected = [f"b cannot use {x}" if x == bad else x for x in range(1, 8)]
    assert outcomes(steps, iter(range(1, 8))) == expected
    numbers = list(range(1, 8))
    assert [x for name, x in seen if name == "b"] == numbers
    assert [x for name, x in seen if name == "c"] == [x for x in numbers if x != bad]
    assert steps.progress(iter([9])) == 9


@pytest.mark.parametrize("bad", [1, 2, 5])
def test_what_an_iterator_fails_by_is_raised_behind_the_batches_before(bad):
    class Data:
        def __init__(self):
            self.number = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.number += 1
            if self.number == bad:
                raise OSError("the disk is gone")
            if self.number > 6:
                raise StopIteration
            return self.number

    steps = StagedTrainPipeline([failing(name, 0, []) for name in "abc"])
    assert outcomes(steps, Data()) == ["the disk is gone" if x == bad else x for x in range(1, 7)]


@pytest.mark.parametrize("which", ["fill_callback", "data_exhausted_callback"])
def test_callbacks_that_fail_lose_no_batch(which):
    calls = []

    def callback():
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the disk is gone")

    stages = [
        PipelineStage("a", lambda x: x, None),
        PipelineStage("b", lambda x: x, None, **{which: callback}),
    ]
    found = outcomes(StagedTrainPipeline(stages), iter([1, 2, 3]))
    if which == "fill_callback":  # of the first batch
        assert found == ["the disk is gone", 2, 3]
    else:
        assert found == [1, 2, 3, "the disk is gone"]


def test_a_failed_end_of_a_flush_loses_no_batch():
    def ending():
        raise OSError("the disk is gone")

    stages = [PipelineStage(name, lambda x: x, None) for name in "ab"]
    steps = StagedTrainPipeline(stages, on_flush_end=ending)
    data = iter(range(1, 6))
    steps.progress(data)
    steps.set_flush(True)
    assert outcomes(steps, data) == [2, 3, "the disk is gone", 4, 5]


def test_no_stages_are_refused():
    with pytest.raises(ValueError, match="`pipeline_stages` should be at least one"):
        StagedTrainPipeline([])


def staged(look_up, by_keyword):
    rank = dist.get_rank()
    data = [batch(rank, step) for step in range(5)]
    plain = sharded()
    base = pipeline(TrainPipelineBase, plain)
    expected = [base.progress(iter([each])).detach() for each in data]
    model = sharded()
    optimizer = pipeline(TrainPipelineBase, model)._optimizer
    sender = SparseDataDistUtil(model, None)
    steps = StagedTrainPipeline([sender.start_sparse_data_dist_stage()])
    batches, found = iter(data), []
    while (given := steps.progress(batches)) is not None:
        optimizer.zero_grad()
        if look_up:
            sender.start_embedding_lookup(given)
        loss, scores = model(features=given) if by_keyword else model(given)
        sender.wait_sparse_data_dist()
        loss.backward()
        optimizer.step()
        found.append(scores.detach())
    same(found, expected)
    same(local_state(model), local_state(plain))
    (tables,) = sender.report().exchanges
    assert sender.detach() is model
    with torch.no_grad():
        assert torch.equal(model(data[0])[1], plain(data[0])[1])
    return tables.ahead


def spoilt():
    """Of five batches, rank 1 cannot use the third."""
    rank = dist.get_rank()
    data = [batch(rank, step) for step in range(5)]
    if rank == 1:
        data[2] = KeyedJaggedTensor.from_lists({"u": [[1]], "i": [[11]]})
    model = sharded()
    sender = SparseDataDistUtil(model, None)
    steps, batches = StagedTrainPipeline([sender.start_sparse_data_dist_stage()]), iter(data)
    found = []
    while (given := steps.progress(batches)) is not None:
        try:
            loss, _ = model(given)
        except IndexError as error:
            found.append(str(error))
            continue
        sender.wait_sparse_data_dist()
        loss.backward()
        found.append(bool(loss.isfinite()))
    (tables,) = sender.report().exchanges
    return found, tables.ahead


@pytest.mark.slow  # its processes take long to end
def test_a_batch_that_one_rank_cannot_use_is_an_error_where_all_call_the_model_with_theirs():
    one, other = run(spoilt, 2, timeout=30)
    assert one == other
    found, ahead = one
    assert ahead == 3
    assert [each for each in found if each is True] == [True] * 4
    assert found[2].startswith("Ids of feature 'i' should be in [0, 11), the rows of")


def left_out():
    rank = dist.get_rank()
    data = [batch(rank, step) for step in range(5)]
    model = sharded()
    sender = SparseDataDistUtil(model, None)
    alive = [weakref.ref(each) for each in data]
    for number in range(5):
        given = sender.start_sparse_data_dist(data[number])
        if number in (0, 4):
            model(given)
        sender.wait_sparse_data_dist()
    waiting = [ref() is not None for ref in alive]
    del data, given
    gc.collect()
    return waiting, [ref() is not None for ref in alive]


def test_a_batch_that_the_model_is_not_called_with_is_forgotten_with_the_next():
    assert run(left_out, 2) == [([True] * 5, [False] * 5)] * 2


@pytest.mark.parametrize("by_keyword", [False, True], ids=["", "by keyword"])
@pytest.mark.parametrize("look_up", [False, True], ids=["", "looked up before"])
def test_a_stage_sends_ids_ahead_for_a_model_that_a_program_calls(look_up, by_keyword):
    assert run(staged, 2, look_up, by_keyword) == [4, 4]
