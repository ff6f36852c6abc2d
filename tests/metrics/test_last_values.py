"""Metrics that hold the last value, or the time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from torchrec.metrics import tower_qps
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo
from torchrec.metrics.output import OutputMetric
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.scalar import ScalarMetric
from torchrec.metrics.tower_qps import TowerQPSMetric

pytestmark = pytest.mark.once

TASKS = [RecTaskInfo(name="click"), RecTaskInfo(name="buy")]
MODES = pytest.mark.parametrize("mode", RecComputeMode, ids=lambda mode: mode.name)


def make(kind: type[RecMetric], mode: RecComputeMode, **options: object) -> RecMetric:
    return kind(1, 0, 4, TASKS, mode, **{"window_size": 8, **options})


def values(metric: RecMetric) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def update(metric: RecMetric, click: list[float], buy: list[float], **other: object) -> None:
    numbers = {"click": torch.tensor(click), "buy": torch.tensor(buy)}
    metric.update(predictions=numbers, labels=numbers, weights=None, **other)


@MODES
def test_scalar_is_the_last_number_and_the_mean_of_those_in_the_window(
    mode: RecComputeMode,
) -> None:
    metric = make(ScalarMetric, mode, window_size=4)
    for number in range(6):
        update(metric, [number, number + 1.0], [float(-number)] * 2)
    update(metric, [], [])  # no number
    assert values(metric) == {
        "scalar-click|lifetime_scalar": 5.5,
        "scalar-click|window_scalar": pytest.approx(4.0),
        "scalar-buy|lifetime_scalar": -5.0,
        "scalar-buy|window_scalar": pytest.approx(-3.5),
    }
    metric.reset()
    update(metric, [1.0], [2.0])
    assert values(metric)["scalar-buy|window_scalar"] == 2.0


@MODES
def test_output_is_the_mean_of_the_last_batch(mode: RecComputeMode) -> None:
    metric = make(OutputMetric, mode)
    assert metric.get_required_inputs() == {"latest_imp", "total_latest_imp"}
    for latest in ([1.0, 2.0], [3.0, 5.0]):
        outputs = {"latest_imp": torch.tensor(latest), "total_latest_imp": torch.tensor(7.0)}
        update(metric, [0.0], [0.0], required_inputs=outputs)
    update(metric, [], [], required_inputs={name: torch.empty(0) for name in outputs})
    assert values(metric) == {
        f"output-{task}|output_{name}": value
        for task in ("click", "buy")
        for name, value in (("latest_imp", 4.0), ("total_latest_imp", 7.0))
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second from one question to the next."""
    times = (1000.0 + 0.5 * step for step in itertools.count())
    monkeypatch.setattr(tower_qps.time, "monotonic", lambda: next(times))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("warmup_steps", [0, 1, 2])
def test_qps_leaves_the_warm_up_out_of_the_time_alone(warmup_steps: int) -> None:
    metric = make(TowerQPSMetric, RecComputeMode.FUSED_TASKS_COMPUTATION, warmup_steps=warmup_steps)
    sizes = [4, 1, 2, 3, 4]
    for size in sizes:
        update(metric, [0.0] * size, [0.0] * size)
    found = values(metric)
    counted = sizes[max(warmup_steps, 1) :]
    assert found["qps-click|total_examples"] == sum(sizes)
    assert found["qps-buy|lifetime_qps"] == sum(counted) / (0.5 * len(counted))
    assert found["qps-buy|window_qps"] == (3 + 4) / 1.0


@pytest.mark.usefixtures("clock")
def test_qps_goes_on_from_a_checkpoint_without_the_time_between() -> None:
    metric = make(TowerQPSMetric, RecComputeMode.UNFUSED_TASKS_COMPUTATION, warmup_steps=1)
    other = make(TowerQPSMetric, RecComputeMode.UNFUSED_TASKS_COMPUTATION, warmup_steps=1)

    for _ in range(3):
        update(metric, [0.0] * 4, [0.0] * 4)
    other.load_state_dict(metric.state_dict())
    for _ in range(3):
        update(other, [0.0] * 4, [0.0] * 4)
    found: dict[str, Tensor] = other.compute()
    assert found["qps-click|total_examples"].item() == 24
    # Both tasks ask the clock: one second from update to update.
    assert found["qps-click|lifetime_qps"].item() == 4.0
