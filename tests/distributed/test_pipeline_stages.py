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
