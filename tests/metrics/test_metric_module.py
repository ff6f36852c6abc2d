"""All metrics of a job: what is generated, taken in, reported, throttled, saved and handed over."""

from __future__ import annotations

import logging
import math
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor

from torchrec.metrics import metric_module, throughput
from torchrec.metrics.deferrable_metrics import DeferrableMetrics
from torchrec.metrics.metric_module import (
    RecMetricModule,
    StateMetric,
    generate_metric_module,
)
from torchrec.metrics.metrics_config import (
    BatchSizeStage,
    MetricsConfig,
    RecComputeMode,
    RecMetricDef,
    RecMetricEnum,
    RecTaskInfo,
    StateMetricEnum,
    ThroughputDef,
)
from torchrec.metrics.rec_metric import RecMetricException
from torchrec.metrics.throughput import ThroughputMetric

pytestmark = pytest.mark.once

TASKS = [
    RecTaskInfo(name=f"t{i}", label_name=f"l{i}", prediction_name=f"p{i}", weight_name=f"w{i}")
    for i in range(2)
]


class _LearningRate(StateMetric):
    def get_metrics(self) -> dict[str, Tensor | float]:
        return {"lr": 0.5}


def _module(*kinds: RecMetricEnum, definition: dict[str, Any] | None = None, **options: Any) -> Any:
    chosen = {"rec_tasks": TASKS, "window_size": 8, **(definition or {})}
    arguments = {
        name: options.pop(name)
        for name in ("batch_size_stages", "state_metrics_mapping")
        if name in options
    }
    config = MetricsConfig(
        rec_tasks=TASKS, rec_metrics={kind: RecMetricDef(**chosen) for kind in kinds}, **options
    )
    return generate_metric_module(
        RecMetricModule,
        config,
        batch_size=4,
        world_size=1,
        my_rank=0,
        device=torch.device("cpu"),
        **{"state_metrics_mapping": {}, **arguments},
    )


def _out(size: int = 4, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{part}{i}": torch.rand(size, generator=draw).round()
        if part == "l"
        else torch.rand(size, generator=draw)
        for i in range(2)
        for part in "lpw"
    }


@pytest.mark.parametrize("mode", RecComputeMode, ids=lambda mode: mode.name)
def test_a_module_reports_by_the_names_of_the_api(mode: RecComputeMode) -> None:
    module = _module(
        RecMetricEnum.NE,
        RecMetricEnum.MSE,
        RecMetricEnum.AUC,
        rec_compute_mode=mode,
        throughput_metric=ThroughputDef(),
        state_metrics=[StateMetricEnum.OPTIMIZERS],
        state_metrics_mapping={StateMetricEnum.OPTIMIZERS: _LearningRate()},
    )
    for seed in range(3):
        module.update(_out(seed=seed))
    found = module.compute()
    of_tasks = {
        *(f"ne-{task}|{prefix}_ne" for task in ("t0", "t1") for prefix in ("lifetime", "window")),
        *(
            f"mse-{task}|{prefix}_{name}"
            for task in ("t0", "t1")
            for prefix in ("lifetime", "window")
            for name in ("mse", "rmse")
        ),
        "auc-t0|window_auc",
        "auc-t1|window_auc",
    }
    counts = {f"throughput-throughput|{name}_examples" for name in ("total", "attempt")}
    assert set(found) == of_tasks | counts | {"optimizers-optimizers|lr"}
    assert found["throughput-throughput|total_examples"].item() == 12
    assert found["optimizers-optimizers|lr"] == 0.5
    assert set(module.local_compute()) == {name.replace("|", "|local_") for name in of_tasks}
    module.reset()
    assert module.compute()["ne-t0|lifetime_ne"].isnan().all()


def test_tasks_are_given_or_chosen_by_position() -> None:
    by_position = {"rec_tasks": [], "rec_task_indices": [1]}
    module = _module(RecMetricEnum.NE, definition=by_position)
    assert list(module.compute()) == ["ne-t1|lifetime_ne", "ne-t1|window_ne"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rec_task_indices": [1]}, "one only. Received 2 tasks and 1 positions"),
        ({"rec_tasks": []}, "should be given, and one only. Received 0 tasks and 0 positions"),
        ({"rec_tasks": [], "rec_task_indices": [5]}, "should be from 0 to 1. Received 5"),
        ({"window_size": 3}, "should hold a batch of each of 1 ranks: 4 samples. Received 3"),
        ({"arguments": {"zzz": 1}}, r"should be those that it documents. Received \['zzz'\]"),
    ]
    for definition, message in cases:
        with pytest.raises(ValueError, match=message):
            _module(RecMetricEnum.NE, definition=definition)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_pt2_compile": True}, "`enable_pt2_compile` should be False"),
        ({"compute_interval_steps": 0}, "`compute_interval_steps` should be 1 or more. Received 0"),
        ({"min_compute_interval": -1.0}, "should be from 0 to `max_compute_interval`. Received -1"),
        (
            {"min_compute_interval": 5.0, "max_compute_interval": 1.0},
            "should be from 0 to `max_compute_interval`. Received 5.0 and 1.0",
        ),
        ({"state_metrics": [StateMetricEnum.OPTIMIZERS]}, r"\['optimizers'\] are missing"),
        ({"fused_update_limit": 2, "rec_compute_mode": RecComputeMode(1)}, "where tasks are fused"),
        ({"batch_size_stages": [BatchSizeStage(4, 2)]}, "should be None. Received 2"),
    ],
)
def test_configurations_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _module(RecMetricEnum.NE, **options)


def test_arguments_of_a_metric_reach_it() -> None:
    module = _module(RecMetricEnum.NE, definition={"arguments": {"include_logloss": True}})
    module.update(_out())
    assert "ne-t1|window_logloss" in module.compute()


def test_metrics_ask_for_further_outputs_by_name() -> None:
    module = _module(RecMetricEnum.AUC, definition={"arguments": {"grouped_auc": True}})
    assert module.get_required_inputs() == ["grouping_keys"]
    module.update(
        {
            "l0": torch.tensor([0.0, 1.0, 0.0, 1.0]),
            "p0": torch.tensor([0.1, 0.2, 0.3, 0.1]),
            "w0": torch.ones(4),
            **{f"{part}1": torch.empty(0) for part in "lpw"},
            "grouping_keys": torch.tensor([1, 1, 2, 2]),
        }
    )
    assert module.compute()["auc-t0|window_grouped_auc"].item() == 0.5
    with pytest.raises(ValueError, match="should have the required input 'grouping_keys'"):
        module.update(_out())
    out = _out()
    del out["p1"]
    with pytest.raises(ValueError, match="`model_out` should have the prediction 'p1'"):
        _module(RecMetricEnum.NE).update(out)


class _Clock:
    """A clock that only steps move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (metric_module, throughput):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_the_interval_follows_the_time_that_steps_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)

    def computed(seconds: float, steps: int, **options: Any) -> list[int]:
        module = _module(RecMetricEnum.NE, **options)
        found = []
        for step in range(1, steps + 1):
            clock.now += seconds
            module.update(_out())
            if module.should_compute():
                module.compute()
                found.append(step)
        return found

    assert computed(1.0, 7, compute_interval_steps=3) == [3, 6]
    # Too often: from the second time on, four seconds lie between two computations.
    assert computed(1.0, 12, compute_interval_steps=1, min_compute_interval=4.0) == [1, 2, 4, 8, 12]
    # Too seldom: a step takes longer than the longest interval.
    assert computed(5.0, 5, compute_interval_steps=2, max_compute_interval=3.0) == [2, 4, 5]
    assert computed(1.0, 6, compute_interval_steps=2, max_compute_interval=math.inf) == [2, 4, 6]


def test_throughput_counts_after_the_warm_up_and_in_its_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = _Clock(monkeypatch)
    metric = ThroughputMetric(batch_size=8, world_size=2, window_seconds=4, warmup_steps=2)
    for seconds in (1.0, 1.0, 2.0, 2.0, 4.0):
        clock.now += seconds
        metric.update()
    found = {name.split("|")[1]: value.item() for name, value in metric.compute().items()}
    assert found == {
        "total_examples": 80,
        "attempt_examples": 80,
        "lifetime_throughput": 48 / 8,
        "window_throughput": 32 / 6,
        "attempt_throughput": 48 / 8,
    }
    other = ThroughputMetric(batch_size=8, world_size=2, window_seconds=4, warmup_steps=1)
    other.load_state_dict(metric.state_dict())
    assert sorted(metric.state_dict()) == [
        "time_lapse_after_warmup",
        "total_examples",
        "warmup_examples",
    ]
    for _ in range(2):
        clock.now += 1.0
        other.update()
    found = {name.split("|")[1]: value.item() for name, value in other.compute().items()}
    assert (found["total_examples"], found["attempt_examples"]) == (112, 32)
    assert (found["lifetime_throughput"], found["attempt_throughput"]) == (64 / 9, 16.0)


def test_batch_sizes_change_with_the_stages(caplog: pytest.LogCaptureFixture) -> None:
    stages = [BatchSizeStage(4, 2), BatchSizeStage(16, None)]

    def metric() -> ThroughputMetric:
        return ThroughputMetric(
            batch_size=8, world_size=1, window_seconds=10**5, batch_size_stages=stages
        )

    first = metric()
    assert "the window is cut to 7200" in caplog.text
    for _ in range(3):
        first.update()
    found = first.compute()
    assert found["throughput-throughput|total_examples"].item() == 24
    assert found["throughput-throughput|batch_size"].item() == 16
    second = metric()
    second.load_state_dict(first.state_dict())
    second.update()
    assert second.compute()["throughput-throughput|total_examples"].item() == 40
    for name in ("window_seconds", "warmup_steps"):
        options: dict[str, Any] = {"window_seconds": 1, "warmup_steps": 1, name: 0}
        with pytest.raises(ValueError, match=f"`{name}` should be 1 or more. Received 0"):
            ThroughputMetric(batch_size=8, world_size=1, **options)


def test_states_are_saved_and_what_a_checkpoint_lacks_begins_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved = _module(RecMetricEnum.NE, throughput_metric=ThroughputDef())
    saved.update(_out())
    state = saved.state_dict()
    assert "rec_metrics.rec_metrics.0._metrics_computations.1.cross_entropy_sum" in state
    module = _module(RecMetricEnum.NE, RecMetricEnum.MSE, throughput_metric=ThroughputDef())
    module.load_state_dict(state)
    assert "The checkpoint has no `rec_metrics.rec_metrics.1`" in caplog.text
    assert module.compute()["ne-t1|lifetime_ne"].equal(saved.compute()["ne-t1|lifetime_ne"])
    assert module.compute()["throughput-throughput|total_examples"].item() == 4
    assert module.compute()["mse-t1|lifetime_mse"].item() == 0


def test_what_a_checkpoint_lacks_begins_anew_where_something_was_seen() -> None:
    saved = _module(RecMetricEnum.NE)
    saved.update(_out(seed=1))
    module = _module(RecMetricEnum.NE, RecMetricEnum.MSE, throughput_metric=ThroughputDef())
    module.update(_out(seed=2))
    module.load_state_dict(saved.state_dict())
    found = module.compute()
    assert found["ne-t1|lifetime_ne"].equal(saved.compute()["ne-t1|lifetime_ne"])
    assert found["mse-t1|lifetime_mse"].item() == found["mse-t1|window_mse"].item() == 0
    assert found["throughput-throughput|total_examples"].item() == 0


@pytest.mark.parametrize("mode", RecComputeMode, ids=lambda mode: mode.name)
def test_states_are_handed_over_to_another_module(mode: RecComputeMode) -> None:
    kinds = (RecMetricEnum.NE, RecMetricEnum.AUC)
    first = _module(*kinds, rec_compute_mode=mode, throughput_metric=ThroughputDef())
    second = _module(*kinds, rec_compute_mode=mode, throughput_metric=ThroughputDef())
    for seed in range(3):
        first.update(_out(seed=seed))
    states = first.get_pre_compute_states()
    assert {"cross_entropy_sum", "window_cross_entropy_sum"} <= set(states["ne"]["t0"])
    second.load_pre_compute_states(states)
    assert str(dict(second.compute())) == str(dict(first.compute()))
    with pytest.raises(RecMetricException, match="`unsync` of metric 'ne' should be called"):
        second.update(_out())
    second.unsync()
    assert second.compute()["ne-t0|lifetime_ne"].isnan().all()
    with pytest.raises(ValueError, match=r"`source` should have 'ne'. Received \['auc', 'through"):
        second.load_pre_compute_states({k: v for k, v in states.items() if k != "ne"})


def test_metrics_on_their_way_are_waited_for() -> None:
    future: Future[dict[str, Any]] = Future()
    metrics = DeferrableMetrics(future)
    seen: list[Any] = []
    metrics.subscribe(seen.append)
    metrics["b"] = 2
    assert (metrics.is_resolved(), bool(metrics), repr(metrics)) == (
        False,
        True,
        "DeferrableMetrics(pending)",
    )
    assert metrics["b"] == 2
    future.set_result({"a": 1})
    metrics.update({"c": 3})
    assert dict(metrics) == {"a": 1, "b": 2, "c": 3}
    assert seen == [{"a": 1, "b": 2}]
    failed: Future[dict[str, Any]] = Future()
    metrics = DeferrableMetrics(failed)
    metrics.subscribe(seen.append, on_error=lambda error: seen.append(str(error)))
    failed.set_exception(ValueError("x"))
    assert seen[-1] == "x"
    with pytest.raises(ValueError, match="x"):
        metrics.resolve()
    with pytest.raises(RecMetricException, match="on a CPUOffloadedRecMetricModule"):
        _module(RecMetricEnum.NE).async_compute()


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
