"""Metrics in a thread: the numbers of those that are not, in order, and errors that are told."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from torchrec.metrics.cpu_offloaded_metric_module import CPUOffloadedRecMetricModule
from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
from torchrec.metrics.metrics_config import (
    MetricsConfig,
    RecMetricDef,
    RecMetricEnum,
    RecTaskInfo,
    ThroughputDef,
)
from torchrec.metrics.rec_metric import RecMetricException

pytestmark = pytest.mark.once

TASK = RecTaskInfo(name="click", label_name="y", prediction_name="p", weight_name="w")
CPU = torch.device("cpu")


def _module(
    kind: type[RecMetricModule], config: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    definition = RecMetricDef(rec_tasks=[TASK], window_size=20)
    options = {"throughput_metric": ThroughputDef(), **(config or {})}
    return generate_metric_module(
        kind,
        MetricsConfig(
            rec_tasks=[TASK],
            rec_metrics={RecMetricEnum.NE: definition, RecMetricEnum.AUC: definition},
            **options,
        ),
        batch_size=4,
        world_size=1,
        my_rank=0,
        state_metrics_mapping={},
        device=CPU,
        module_kwargs=kwargs,
    )


def _offloaded(**kwargs: Any) -> Any:
    return _module(CPUOffloadedRecMetricModule, model_out_device=CPU, **kwargs)


def _out(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "y": torch.rand(4, generator=draw).round(),
        "p": torch.rand(4, generator=draw),
        "w": torch.rand(4, generator=draw),
    }


@pytest.mark.parametrize("together", [1, 3, 10])
def test_numbers_are_those_of_all_updates_before(together: int) -> None:
    plain, offloaded = _module(RecMetricModule), _offloaded(update_batch_size=together)
    pairs = []
    for step in range(12):
        for module in (plain, offloaded):
            module.update(_out(step))
        if step % 4 == 1:
            pairs.append((dict(plain.compute()), offloaded.async_compute()))
    for expected, found in pairs:
        assert str(dict(found)) == str(expected)
    assert str(dict(offloaded.local_compute())) == str(dict(plain.local_compute()))
    assert str(offloaded.state_dict()) == str(plain.state_dict())
    other = _offloaded()
    other.load_state_dict(offloaded.state_dict())
    assert str(other.state_dict()) == str(plain.state_dict())
    offloaded.reset()
    assert offloaded.compute()["ne-click|lifetime_ne"].isnan().all()
    for module in (offloaded, other):
        module.shutdown()


def test_states_that_are_handed_over_are_of_all_updates_before() -> None:
    plain, offloaded, other = _module(RecMetricModule), _offloaded(), _offloaded()
    for step in range(4):
        plain.update(_out(step))
        offloaded.update(_out(step))
    other.update(_out(9))
    states = offloaded.get_pre_compute_states()
    assert str(states["ne"]) == str(plain.get_pre_compute_states()["ne"])
    other.load_pre_compute_states(states)
    assert other.compute()["auc-click|window_auc"].equal(plain.compute()["auc-click|window_auc"])
    for module in (offloaded, other):
        module.shutdown()


def test_outputs_that_are_written_over_are_copied_if_asked_for() -> None:
    expected = _module(RecMetricModule)
    expected.update(_out(0))
    offloaded = _offloaded(clone_model_out=True)
    out = _out(0)
    offloaded.update(out)
    for x in out.values():
        x.zero_()
    name = "ne-click|lifetime_ne"
    assert offloaded.compute()[name].equal(expected.compute()[name])
    offloaded.shutdown()


def test_an_error_in_the_thread_reaches_whoever_waits_and_the_next_call() -> None:
    offloaded = _offloaded(update_batch_size=1)
    out = _out(0)
    del out["p"]
    offloaded.update(out)
    with pytest.raises((ValueError, RecMetricException), match="should have the prediction 'p'"):
        offloaded.async_compute().resolve()
    for call in (lambda: offloaded.update(_out(1)), offloaded.state_dict, offloaded.shutdown):
        with pytest.raises(RecMetricException, match="Metrics failed in their thread: `model_out`"):
            call()


def test_the_thread_ends_and_then_refuses() -> None:
    before = threading.active_count()
    offloaded = _offloaded()
    offloaded.update(_out(0))
    offloaded.shutdown()
    offloaded.shutdown()
    assert threading.active_count() == before
    with pytest.raises(RecMetricException, match="before `shutdown`, not after"):
        offloaded.update(_out(0))


def test_more_computations_than_may_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offloaded = _offloaded(compute_queue_size=2)
    goes_on = threading.Event()
    compute = offloaded.rec_metrics.compute
    monkeypatch.setattr(offloaded.rec_metrics, "compute", lambda: goes_on.wait(20) and compute())
    found = [offloaded.async_compute() for _ in range(2)]
    with pytest.raises(RecMetricException, match="At most 2 computations should wait"):
        offloaded.async_compute()
    assert [metrics.is_resolved() for metrics in found] == [False, False]
    goes_on.set()
    assert all(len(metrics) == 5 for metrics in found)
    offloaded.shutdown()


@pytest.mark.parametrize("name", ["update_queue_size", "compute_queue_size", "update_batch_size"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` should be 1 or more. Received 0"):
        _offloaded(**{name: 0})


def test_a_configuration_that_asks_for_the_thread_needs_its_class() -> None:
    config = {"use_cpu_offloaded_rec_metric_module": True}
    with pytest.raises(ValueError, match="`metric_class` should be a CPUOffloadedRecMetricModule"):
        _module(RecMetricModule, config)
    _module(CPUOffloadedRecMetricModule, config, model_out_device=CPU).shutdown()
