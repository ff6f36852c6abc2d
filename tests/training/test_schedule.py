"""Learning rates over time, against formulas written out."""

from __future__ import annotations

import math

import pytest
import torch

from torchrec.training import ScheduleOptions
from torchrec.training.schedule import Schedule, learning_rate_factor

EXPECTED = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - 0.9 * done,
    "cosine": lambda done: 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2,
    "exponential": lambda done: 0.1**done,
}


@pytest.mark.parametrize("decay", EXPECTED)
@pytest.mark.parametrize("warmup", [0, 4])
def test_course(decay: str, warmup: int) -> None:
    final = 0.0 if decay == "constant" else 0.1
    options = ScheduleOptions(warmup_steps=warmup, decay=decay, final=final)
    factors = [learning_rate_factor(options, step, 20) for step in range(25)]
    assert factors[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    after = [EXPECTED[decay](min(i / (19 - warmup), 1.0)) for i in range(25 - warmup)]
    assert factors[warmup:] == pytest.approx(after)


def test_one_step_only() -> None:
    options = ScheduleOptions(decay="linear")
    assert learning_rate_factor(options, 0, 1) == 1.0


def test_writes_all_groups() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 10.0}]
    optimizer = torch.optim.SGD(groups, lr=5.0)
    schedule = Schedule(ScheduleOptions(decay="linear", final=0.5), optimizer.param_groups, 3)
    for step, factor in enumerate([1.0, 0.75, 0.5, 0.5]):
        assert schedule.write(step) == 10 * factor
        assert [group["lr"] for group in optimizer.param_groups] == [factor, 10 * factor]
    schedule.end()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 10.0]


def test_exponential_decay_has_no_end_at_zero() -> None:
    with pytest.raises(ValueError, match=r"`schedule.final` should be above 0 for exponential"):
        ScheduleOptions(decay="exponential")


def test_warming_up_beyond_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps` should be less than the steps .* \(95\)"):
        Schedule(ScheduleOptions(warmup_steps=100), [], 95)
