"""Learning rates over time, against formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from torchrec.training import ScheduleOptions
from torchrec.training.schedule import Plateau, Schedule, learning_rate_factor

pytestmark = pytest.mark.once

EXPECTED = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - 0.9 * done,
    "cosine": lambda done: 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2,
    "exponential": lambda done: 0.1**done,
    "plateau": lambda done: 1.0,  # as long as evaluations improve
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


def test_writes_what_differs_alone() -> None:
    class Counted(dict[str, float]):
        written = 0

        def __setitem__(self, key: str, value: float) -> None:
            self.written += 1
            super().__setitem__(key, value)

    group = Counted(lr=0.5)
    schedule = Schedule(ScheduleOptions(warmup_steps=2), [group], total=4)
    assert [schedule.write(step) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]
    assert group.written == 2
    schedule.end()
    assert (group.written, group["lr"]) == (2, 0.5)
    group["lr"] = 0.1  # as a state that was loaded has it
    assert schedule.write(2) == group["lr"] == 0.5
    group["lr"] = 0.1
    schedule.end()
    assert group["lr"] == 0.5


def test_exponential_decay_has_no_end_at_zero() -> None:
    with pytest.raises(ValueError, match=r"`schedule.final` should be above 0 for exponential"):
        ScheduleOptions(decay="exponential")


def test_warming_up_beyond_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps` should be less than the steps .* \(95\)"):
        Schedule(ScheduleOptions(warmup_steps=100), [], 95)


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("final", [0.0, 0.02, 0.5])
def test_a_plateau_is_that_of_pytorch(patience: int, final: float) -> None:
    """On losses that fall, rise, stand still and fall again."""
    losses = [5.0, 4.0, 4.0, 4.5, 3.0, 3.5, 3.4, 3.3, 3.2, 3.1, 3.0, 2.0, 2.5, 2.5, 2.5, 2.5]
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.2, patience=patience, threshold=0.0, min_lr=final, eps=0.0
    )
    plateau = Plateau(ScheduleOptions(decay="plateau", factor=0.2, patience=patience, final=final))
    best = math.inf
    for loss in losses:
        before = plateau.factor
        lowered = plateau.lowers(loss < best)
        best = min(best, loss)
        reference.step(loss)
        assert plateau.factor == pytest.approx(optimizer.param_groups[0]["lr"])
        assert lowered == (plateau.factor < before)
    assert plateau.factor < 1.0


def test_a_plateau_comes_on_top_of_warming_up() -> None:
    options = ScheduleOptions(warmup_steps=4, decay="plateau", factor=0.5)
    plateau = Plateau(options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8.0)
    schedule = Schedule(options, optimizer.param_groups, None, plateau)
    assert [schedule.write(step) for step in (0, 1)] == [2.0, 4.0]
    assert plateau.lowers(False)
    assert [schedule.write(step) for step in (2, 3, 4, 99)] == [3.0, 4.0, 4.0, 4.0]
    schedule.end()
    assert optimizer.param_groups[0]["lr"] == 8.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"factor": 0.5},
            r"`schedule.factor` should be given for .* plateau. Received 0.5 for con",
        ),
        (
            {"decay": "cosine", "patience": 2},
            r"`schedule.patience` should be given for .* for cosi",
        ),
        (
            {"decay": "plateau", "factor": 1.0},
            r"`schedule.factor` should be in \(0, 1\). Received 1",
        ),
        ({"decay": "plateau", "patience": -1}, r"`schedule.patience` should be at least 0. Rec"),
    ],
    ids=str,
)
def test_wrong_plateaus_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleOptions(**options)
