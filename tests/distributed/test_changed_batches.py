"""Batches that a model changes in place: results are those of the plain loop, or an error says why not."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import batch, fused
from tests.distributed.test_pipeline_overlap import local_state, outputs, pipeline, same, sharded
from torchrec.distributed.train_pipeline import (
    SparseDataDistUtil,
    TrainPipelineBase,
    TrainPipelineFusedSparseDist,
    TrainPipelineSemiSync,
    TrainPipelineSparseDist,
)

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

WHY = "is called with a part of its batch that the model changes in place"
MESSAGE = "The input of `tables` should be as it was when its ids were sent, ahead of the forward"


def values(features):
    features.values().remainder_(7)


def lengths(features):
    features.lengths()[:2] += torch.tensor([-1, 1])


class Changing(nn.Module):
    """Changes its batch in place, in training alone, from a step on."""

    def __init__(self, change, first):
        super().__init__()
        inner = fused()
        self.tables, self.over = inner.tables, inner.over
        self.change, self.first, self.step = change, first, 0

    def forward(self, features):
        if self.training and self.step >= self.first:
            self.change(features)
        self.step += 1
        scores = self.over(self.tables(features).values()).squeeze(1)
        return scores.square().mean(), scores


def steps_of(kind, change, first=0):
    model = sharded(Changing(change, first), user=("table_wise", 1), item=("table_wise", 1))
    return model, pipeline(kind, model)


def training(kind, change):
    """Two epochs, with an evaluation after each."""
    rank, found = dist.get_rank(), []
    model, steps = steps_of(kind, change)
    for epoch in range(4):
        model.train(epoch % 2 == 0)
        found += outputs(steps, (batch(rank, 10 * epoch + step) for step in range(4)))
    return found, local_state(model), steps


def changing(change):
    plain, state, _ = training(TrainPipelineBase, change)
    piped, piped_state, steps = training(TrainPipelineSparseDist, change)
    same(plain, piped)
    same(state, piped_state)
    (tables,) = steps.report().exchanges
    return tables.ahead, tables.not_ahead


@pytest.mark.parametrize("change", [values, lengths])
def test_what_the_model_changes_in_place_is_not_sent_ahead(change):
    for ahead, not_ahead in run(changing, 2, change):
        assert ahead == 0
        assert not_ahead == {WHY: 16}


def message_of(step):
    with pytest.raises(ValueError, match=MESSAGE) as caught:
        step()
    return str(caught.value)


def too_late(kind, change):
    _, steps = steps_of(kind, change, first=2)
    data = (batch(dist.get_rank(), step) for step in range(5))
    for _ in range(2):
        steps.progress(data)
    return message_of(lambda: steps.progress(data))


@pytest.mark.parametrize("change", [values, lengths])
@pytest.mark.parametrize("kind", [TrainPipelineSparseDist, TrainPipelineFusedSparseDist])
def test_what_is_changed_in_place_after_it_was_sent_is_an_error(kind, change):
    one, other = run(too_late, 2, kind, change)
    assert one == other


def looked_up_early():
    rank = dist.get_rank()
    model = sharded(Changing(values, 2), user=("row_wise",), item=("table_wise", 1))
    steps = pipeline(TrainPipelineSemiSync, model, start_batch=0)
    data = (batch(rank, step) for step in range(5))
    for _ in range(2):
        steps.progress(data)
    return message_of(lambda: steps.progress(data))


def test_what_is_changed_in_place_after_it_was_looked_up_is_an_error():
    one, other = run(looked_up_early, 2)
    assert one == other


def by_a_program():
    """A program that calls the model itself, and changes a batch behind the stage that has sent it."""
    rank = dist.get_rank()
    model = sharded()
    sender = SparseDataDistUtil(model, None)
    first, second = [sender.start_sparse_data_dist(batch(rank, step)) for step in range(2)]
    model(first)
    sender.wait_sparse_data_dist()
    values(second)
    return message_of(lambda: model(second))


def test_a_stage_that_has_sent_a_batch_does_not_let_it_be_changed():
    one, other = run(by_a_program, 2)
    assert one == other


def one_batch_again_and_again(kind):
    rank = dist.get_rank()
    model = sharded(Changing(values, 0))
    return outputs(pipeline(kind, model), iter([batch(rank, 0)] * 4))


def repeated():
    same(*map(one_batch_again_and_again, (TrainPipelineBase, TrainPipelineSparseDist)))
    return True


def test_a_batch_that_comes_again_may_be_changed_in_each_step():
    assert run(repeated, 2) == [True, True]
