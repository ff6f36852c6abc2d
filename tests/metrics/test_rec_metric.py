"""The frame of metrics: modes, windows, names, states, batches that wait, and metrics of one's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchrec.metrics.accuracy import AccuracyMetric
from torchrec.metrics.auc import AUCMetric
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace, MetricPrefix
from torchrec.metrics.mse import MSEMetric
from torchrec.metrics.multiclass_recall import MulticlassRecallMetric
from torchrec.metrics.ne import NEMetric, NEMetricComputation
from torchrec.metrics.precision import PrecisionMetric
from torchrec.metrics.rec_metric import (
    MetricComputationReport,
    RecMetric,
    RecMetricComputation,
    RecMetricList,
)
from torchrec.metrics.recall import RecallMetric

pytestmark = pytest.mark.once

FUSED = RecComputeMode.FUSED_TASKS_COMPUTATION
UNFUSED = RecComputeMode.UNFUSED_TASKS_COMPUTATION
TASKS = [RecTaskInfo(name="click"), RecTaskInfo(name="buy")]
Batch = dict[str, dict[str, Tensor]]


def _metric(kind: type[RecMetric], mode: RecComputeMode = UNFUSED, **options: Any) -> RecMetric:
    options = {"window_size": 8, "tasks": TASKS, **options}
    return kind(world_size=1, my_rank=0, batch_size=4, compute_mode=mode, **options)


def _batches(sizes: list[int], seed: int = 0) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)

    def one(size: int) -> Batch:
        return {
            "predictions": {task.name: torch.rand(size, generator=draw) for task in TASKS},
            "labels": {
                task.name: torch.randint(0, 2, (size,), generator=draw).float() for task in TASKS
            },
            "weights": {task.name: torch.rand(size, generator=draw) for task in TASKS},
        }

    return [one(size) for size in sizes]


def _ne(batches: list[Batch], task: str) -> float:
    """Return the normalised entropy by its formula."""
    p, y, w = (
        np.concatenate([batch[part][task].double().numpy() for batch in batches])
        for part in ("predictions", "labels", "weights")
    )
    mean = (w * y).sum() / w.sum()

    def entropy(q: Any) -> float:
        return float(-(w * (y * np.log(q) + (1 - y) * np.log(1 - q))).sum())

    return entropy(p) / entropy(np.full_like(p, mean))


@pytest.mark.parametrize("mode", RecComputeMode, ids=lambda mode: mode.name)
def test_numbers_are_of_all_samples_and_of_the_window_in_every_mode(mode: RecComputeMode) -> None:
    metric, batches = _metric(NEMetric, mode), _batches([4, 3, 0, 5, 2])
    for batch in batches:
        metric.update(**batch)
    found = metric.compute()
    assert set(found) == {
        f"ne-{task}|{prefix}_ne" for task in ("click", "buy") for prefix in ("lifetime", "window")
    }
    for task in ("click", "buy"):
        assert found[f"ne-{task}|lifetime_ne"].item() == pytest.approx(
            _ne(batches, task), rel=1e-12
        )
        window = _ne(batches[-3:], task)
        assert found[f"ne-{task}|window_ne"].item() == pytest.approx(window, rel=1e-12)
        assert found[f"ne-{task}|window_ne"].shape == (() if mode != UNFUSED else (1,))
    local = metric.local_compute()
    assert {name.replace("local_", ""): value for name, value in local.items()} == found


def test_states_have_the_names_of_the_api_and_go_on_where_they_were() -> None:
    first, second = _metric(NEMetric, FUSED), _metric(NEMetric, FUSED)
    batches = _batches([4, 4, 4])
    first.update(**batches[0])
    state = {name: value.clone() for name, value in first.state_dict().items()}
    prefix = "_metrics_computations.0."
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        f"{prefix}cross_entropy_sum": (2,),
        f"{prefix}weighted_num_samples": (2,),
        f"{prefix}pos_labels": (2,),
        f"{prefix}neg_labels": (2,),
    }
    second.load_state_dict(state)
    for metric in (first, second):
        for batch in batches[1:]:
            metric.update(**batch)
    assert first.compute()["ne-buy|lifetime_ne"].equal(second.compute()["ne-buy|lifetime_ne"])
    del state[f"{prefix}pos_labels"]
    with pytest.raises(RuntimeError, match=r"Missing key.*pos_labels"):
        second.load_state_dict(state)
    state = {**first.state_dict(), f"{prefix}pos_labels": torch.zeros(3)}
    with pytest.raises(
        RuntimeError, match=r"pos_labels` should have shape \(2,\). Received \(3,\)"
    ):
        second.load_state_dict(state)


@pytest.mark.parametrize("kind", [NEMetric, MSEMetric, AUCMetric])
def test_a_reset_forgets_everything(kind: type[RecMetric]) -> None:
    metric = _metric(kind)
    before = metric.compute()
    metric.update(**_batches([4])[0])
    assert str(metric.compute()) != str(before)
    metric.reset()
    assert str(metric.compute()) == str(before)


@pytest.mark.parametrize("clone", [False, True])
def test_batches_that_wait_are_taken_in_together(clone: bool) -> None:
    waiting = _metric(NEMetric, fused_update_limit=3, should_clone_update_inputs=clone)
    plain = _metric(NEMetric)
    batches = _batches([2, 1, 3, 2, 1])
    for batch in batches:
        given = {part: {task: x.clone() for task, x in of.items()} for part, of in batch.items()}
        waiting.update(**given)
        if clone:
            for of in given.values():
                for x in of.values():
                    x.fill_(math.nan)
        plain.update(**batch)
    for name in ("ne-click|lifetime_ne", "ne-buy|lifetime_ne"):
        assert waiting.compute()[name].item() == pytest.approx(plain.compute()[name].item())
    # The window drops whole updates: the three batches that were joined, and then nothing.
    assert waiting.compute()["ne-buy|window_ne"].item() == pytest.approx(_ne(batches[3:], "buy"))
    with pytest.raises(ValueError, match="`fused_update_limit` should be 0 where tasks are fused"):
        _metric(NEMetric, FUSED, fused_update_limit=3)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 1, 3, 2]], ids=str)
def test_batches_of_all_tasks_in_one_tensor_wait_as_others_do(sizes: list[int]) -> None:
    waiting, plain = _metric(NEMetric, fused_update_limit=2), _metric(NEMetric)
    for i, batch in enumerate(_batches(sizes)):
        plain.update(**batch)
        rows = {part: torch.stack([of[task.name] for task in TASKS]) for part, of in batch.items()}
        # By task and in one tensor, one after the other.
        waiting.update(**(rows if i != 1 else batch))  # type: ignore[arg-type]
    for name, value in plain.compute().items():
        if "lifetime" in name:
            assert waiting.compute()[name].item() == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_scores_of_classes_wait_as_others_do(size: int) -> None:
    options = {"number_of_classes": 3, "tasks": TASKS[:1]}
    waiting = _metric(MulticlassRecallMetric, fused_update_limit=2, **options)
    plain = _metric(MulticlassRecallMetric, **options)
    draw = torch.Generator().manual_seed(0)
    for _ in range(4):
        batch = {
            "predictions": {"click": torch.rand(size, 3, generator=draw)},
            "labels": {"click": torch.randint(0, 3, (size,), generator=draw)},
            "weights": {"click": torch.rand(size, generator=draw)},
        }
        waiting.update(**batch)
        plain.update(**batch)
    name = "multiclass_recall-click|lifetime_multiclass_recall"
    torch.testing.assert_close(waiting.compute()[name], plain.compute()[name])


@pytest.mark.parametrize("shape", [(3, 4), (8,), (1, 8)], ids=str)
@pytest.mark.parametrize("mode", [FUSED, UNFUSED], ids=lambda mode: mode.name)
def test_a_tensor_of_all_tasks_has_a_row_for_each(
    mode: RecComputeMode, shape: tuple[int, ...]
) -> None:
    with pytest.raises(
        ValueError, match=r"should have a row for each of the tasks \['click', 'buy'"
    ):
        _metric(NEMetric, mode).update(
            predictions=torch.rand(shape), labels=torch.ones(shape), weights=None
        )


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [AccuracyMetric, PrecisionMetric, RecallMetric])
def test_thresholds_mean_the_same_for_predictions_of_any_dtype(
    kind: type[RecMetric], dtype: torch.dtype
) -> None:
    numbers = {}
    for given in (torch.float32, dtype):
        metric = _metric(kind, tasks=TASKS[:1])
        metric.update(
            predictions={"click": torch.tensor([0, 1, 0, 1]).to(given)},
            labels={"click": torch.tensor([0.0, 1.0, 1.0, 0.0])},
            weights={"click": torch.tensor([1.0, 2.0, 3.0, 5.0])},
        )
        numbers[given] = {name: value.item() for name, value in metric.compute().items()}
    assert numbers[dtype] == numbers[torch.float32]


@pytest.mark.parametrize("label", [0.1, -1e6, 0.0])
@pytest.mark.parametrize("batches", [1, 500])
def test_labels_that_are_all_alike_leave_no_variance(label: float, batches: int) -> None:
    metric = _metric(MSEMetric, tasks=TASKS[:1], include_r_squared=True)
    for _ in range(batches):
        metric.update(
            predictions={"click": torch.full((7,), label + 1.0)},
            labels={"click": torch.full((7,), label)},
            weights={"click": torch.full((7,), 0.3)},
        )
    assert metric.compute()["mse-click|lifetime_r_squared"].item() == 1.0
    metric.update(
        predictions={"click": torch.tensor([label])},
        labels={"click": torch.tensor([label * 1.001 + 1.0])},
        weights={"click": torch.tensor([1.0])},
    )
    assert metric.compute()["mse-click|lifetime_r_squared"].item() < 0.0


def test_batches_that_wait_are_saved() -> None:
    metric = _metric(NEMetric, fused_update_limit=5)
    metric.update(**_batches([4])[0])
    assert metric.state_dict()["_metrics_computations.0.weighted_num_samples"].item() > 0


def test_a_task_may_be_missing_where_tasks_are_not_fused() -> None:
    batch = _batches([4])[0]
    part = {name: {"buy": of["buy"]} for name, of in batch.items()}
    metric = _metric(NEMetric)
    metric.update(**part)
    assert metric.compute()["ne-click|lifetime_ne"].isnan().all()
    assert metric.compute()["ne-buy|lifetime_ne"].item() == pytest.approx(_ne([batch], "buy"))
    with pytest.raises(
        ValueError, match=r"`predictions` should have all tasks.*Received \['buy'\]"
    ):
        _metric(NEMetric, FUSED).update(**part)
    batch["labels"]["buy"] = batch["labels"]["buy"][:2]
    with pytest.raises(ValueError, match=r"should have one size. Received {'click': 4, 'buy': 2}"):
        _metric(NEMetric, FUSED).update(**batch)
    with pytest.raises(ValueError, match=r"should have one for each of 2 labels. Received 4"):
        metric.update(**batch)


@pytest.mark.parametrize("mode", [FUSED, UNFUSED], ids=lambda mode: mode.name)
def test_a_task_without_weights_is_zero_until_it_has_some(mode: RecComputeMode) -> None:
    batch, weighted = _batches([4, 4])
    batch["weights"]["buy"] = torch.zeros(4)
    metric = _metric(NEMetric, mode, should_validate_update=True)
    assert metric.compute()["ne-buy|window_ne"].item() == 0
    metric.update(**batch)
    assert metric.compute()["ne-buy|window_ne"].item() == 0
    assert metric.compute()["ne-click|window_ne"].item() == pytest.approx(_ne([batch], "click"))
    for one in (weighted, batch, batch):
        metric.update(**one)
    window = metric.compute()["ne-buy|window_ne"].item()
    if mode == UNFUSED:
        assert window == pytest.approx(_ne([weighted], "buy"))
    else:
        assert math.isnan(window)


def test_weights_are_one_each_by_default_and_shapes_are_flattened() -> None:
    batch = _batches([4])[0]
    ones = {**batch, "weights": {task: torch.ones(4) for task in ("click", "buy")}}
    column = {part: {task: x[:, None] for task, x in of.items()} for part, of in ones.items()}
    stacked = {part: torch.stack(list(of.values())) for part, of in ones.items()}
    for mode in (FUSED, UNFUSED):
        found = []
        for given in (ones, {**batch, "weights": None}, column, stacked):
            metric = _metric(NEMetric, mode)
            metric.update(**given)
            found.append(str(metric.compute()))
        assert found.count(found[0]) == 4


class _LargestLabel(RecMetricComputation):
    """A metric as users write them, with states of its own."""

    largest: Tensor
    total: Tensor

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scale = scale
        zeros = torch.zeros(self._n_tasks)
        self._add_state(
            "largest", zeros, add_window_state=False, dist_reduce_fx="max", persistent=True
        )
        self._add_state(
            "total", zeros, add_window_state=True, dist_reduce_fx="sum", persistent=True
        )

    def update(
        self, *, predictions: Tensor | None, labels: Tensor, weights: Tensor | None, **kwargs: Any
    ) -> None:
        assert weights is not None
        self.largest = torch.maximum(self.largest, labels.amax(-1))
        state = (labels * weights).sum(-1) * self._scale
        self.total += state
        self._aggregate_window_state("total", state, labels.shape[-1])

    def _compute(self) -> list[MetricComputationReport]:
        return [
            MetricComputationReport(MetricName.SCALAR, MetricPrefix.LIFETIME, self.largest, "_max"),
            MetricComputationReport(MetricName.SCALAR, MetricPrefix.LIFETIME, self.total),
            MetricComputationReport(
                MetricName.SCALAR, MetricPrefix.WINDOW, self.get_window_state("total")
            ),
        ]


class _LargestLabelMetric(RecMetric):
    _namespace = MetricNamespace.SCALAR
    _computation_class = _LargestLabel


@pytest.mark.parametrize("mode", [FUSED, UNFUSED], ids=lambda mode: mode.name)
def test_a_metric_of_ones_own_has_windows_states_and_names(mode: RecComputeMode) -> None:
    metric = _metric(_LargestLabelMetric, mode, scale=2.0)
    metrics = RecMetricList([metric, _metric(NEMetric, mode)])
    for labels in ([1.0, 5.0], [2.0, 3.0, 1.0], [0.5] * 5):
        y = {task: torch.tensor(labels) * (1 + i) for i, task in enumerate(("click", "buy"))}
        metrics.update(predictions=y, labels=y, weights=None)
    found = metrics.compute()
    assert len(metrics) == 2
    assert found["scalar-click|lifetime_scalar_max"].item() == 5
    assert found["scalar-buy|lifetime_scalar_max"].item() == 10
    assert found["scalar-buy|lifetime_scalar"].item() == 58
    assert found["scalar-buy|window_scalar"].item() == 34
    other = _metric(_LargestLabelMetric, mode, scale=2.0)
    other.load_state_dict(metric.state_dict())
    assert other.compute()["scalar-buy|lifetime_scalar"].item() == 58
    metric.reset()
    assert metric.compute()["scalar-buy|window_scalar"].item() == 0
    with pytest.raises(ValueError, match=r"Arguments of _LargestLabel should be.*Received \['k'\]"):
        _metric(_LargestLabelMetric, mode, k=3)


class _HalvedNE(NEMetricComputation):
    """A metric of the package, changed as users would."""

    def update(self, *, predictions: Tensor | None, **kwargs: Any) -> None:
        assert predictions is not None
        super().update(predictions=predictions / 2, **kwargs)


class _HalvedNEMetric(NEMetric):
    _computation_class = _HalvedNE


@pytest.mark.parametrize("mode", [FUSED, UNFUSED], ids=lambda mode: mode.name)
def test_predictions_that_a_subclass_changes_are_those_that_count(mode: RecComputeMode) -> None:
    batch = _batches([4])[0]
    changed, plain = _metric(_HalvedNEMetric, mode), _metric(NEMetric, mode)
    # Together with another, which shares its sums of the batch as it came.
    RecMetricList([plain, changed]).update(**batch)
    halves = {**batch, "predictions": {task: x / 2 for task, x in batch["predictions"].items()}}
    assert plain.compute()["ne-buy|lifetime_ne"].item() == pytest.approx(_ne([batch], "buy"))
    assert changed.compute()["ne-buy|lifetime_ne"].item() == pytest.approx(_ne([halves], "buy"))
