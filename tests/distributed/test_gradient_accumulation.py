"""Gradients of several batches that add up: what counts as one of them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import batch
from tests.distributed.test_pipeline_overlap import local_state, pipeline, same, sharded
from torchrec.distributed.train_pipeline import (
    GradientAccumulationConfig,
    GradientAccumulationWrapper,
    TrainPipelineBase,
    TrainPipelineSparseDist,
)

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels
CPU = torch.device("cpu")


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, given):
        scores = (self.weight * given).sum()
        return scores.square(), scores.detach()


def one_process(kind, is_enabled=True, warmup=0):
    model = Square()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    config = GradientAccumulationConfig(is_enabled, num_steps=2, num_warmup_steps=warmup)
    steps = GradientAccumulationWrapper(kind(model, optimizer, CPU), optimizer, model, config)
    return model, steps


def evaluate(model, steps, data):
    model.eval()
    steps.progress(iter([data]))
    model.train()


@pytest.mark.parametrize("kind", [TrainPipelineBase, TrainPipelineSparseDist])
def test_evaluation_between_batches_of_one_step_loses_no_gradients(kind):
    model, steps = one_process(kind)
    data = iter([torch.full((1,), float(n)) for n in (1, 2, 3, 4)])
    weights = []
    for _ in range(4):
        evaluate(model, steps, torch.full((1,), 9.0))
        steps.progress(data)
        weights.append(model.weight.item())
    # Gradients are 2 * weight * n^2: those of 1 and 2 at a weight of 1, those of 3 and 4 at 0.9.
    assert weights == pytest.approx([1.0, 0.9, 0.9, 0.45])
    assert steps.current_step == 4


def test_evaluation_is_no_part_of_the_warm_up():
    model, steps = one_process(TrainPipelineBase, warmup=1)
    data = iter([torch.ones(1)] * 2)
    evaluate(model, steps, torch.ones(1))
    steps.progress(data)
    assert model.weight.item() == pytest.approx(0.98)
    steps.progress(data)
    assert model.weight.item() == pytest.approx(0.98)


def test_batches_are_counted_where_the_optimizer_does_not_wait():
    model, steps = one_process(TrainPipelineBase, is_enabled=False)
    steps.set_step(5)
    steps.progress(iter([torch.ones(1)]))
    evaluate(model, steps, torch.ones(1))
    assert steps.current_step == 6
    assert model.weight.item() == pytest.approx(0.98)


def waiting(kind, numbers, evaluates):
    """Train on as many batches as a rank has, two a step, and return what that has led to."""
    rank = dist.get_rank()
    model = sharded()
    inner = pipeline(kind, model)
    config = GradientAccumulationConfig(True, num_steps=2, num_warmup_steps=0)
    steps = GradientAccumulationWrapper(inner, inner._optimizer, model, config)
    data = (batch(rank, step) for step in range(numbers[rank]))
    try:
        while True:
            steps.progress(data)
            if evaluates:
                evaluate(model, steps, batch(rank, 9))
    except StopIteration:
        return local_state(model), steps.current_step


def evaluated(kind):
    alone, _ = waiting(kind, (4, 4), evaluates=False)
    beside, count = waiting(kind, (4, 4), evaluates=True)
    same(alone, beside)
    return count


@pytest.mark.parametrize("kind", [TrainPipelineBase, TrainPipelineSparseDist])
def test_ranks_that_evaluate_in_between_train_as_those_that_do_not(kind):
    assert run(evaluated, 2, kind) == [4, 4]


def layers(kind):
    state, count = waiting(kind, (5, 1), evaluates=False)
    return [each.tolist() for each in state[-2:]], count


@pytest.mark.parametrize("kind", [TrainPipelineBase, TrainPipelineSparseDist])
def test_a_rank_that_has_run_out_of_data_steps_with_the_others(kind):
    (one, count), (other, other_count) = run(layers, 2, kind)
    assert one == other
    assert count == other_count == 5
