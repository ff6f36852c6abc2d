"""All metrics against their slow formulas: weighted and not, fused and not, over windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.metrics.metric_cases import (
    CASES,
    TASKS,
    Batch,
    Case,
    assert_reported,
    expected_of,
    make_batches,
    together,
    update,
)
from torchrec.metrics.metrics_config import RecComputeMode
from torchrec.metrics.segmented_ne import SegmentedNEMetric
from torchrec.metrics.tensor_weighted_avg import TensorWeightedAvgMetric

pytestmark = pytest.mark.once

UNFUSED = RecComputeMode.UNFUSED_TASKS_COMPUTATION
FUSED = RecComputeMode.FUSED_TASKS_COMPUTATION
STATES = RecComputeMode.FUSED_TASKS_AND_STATES_COMPUTATION
# One that empties the window, one of one sample, one of none.
SIZES = [5, 7, 1, 6, 8, 0, 4]

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.mark.parametrize("mode", [UNFUSED, FUSED, STATES], ids=["unfused", "fused", "fused states"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "unweighted"])
@each_case
def test_numbers_are_those_of_the_formula(case: Case, weighted: bool, mode: RecComputeMode) -> None:
    if mode != UNFUSED and not case.fused:
        pytest.skip("tasks of this metric cannot be fused")
    metric, batches = case.metric(mode), make_batches(case, SIZES, weighted)
    for batch in batches:
        update(metric, case, batch)
    assert_reported(metric.compute(), expected_of(case, [batches]))


def without_weight(batch: Batch) -> Batch:
    return replace(batch, weights={task: torch.zeros(batch.size) for task in TASKS})


@pytest.mark.parametrize(
    "sizes", [[], [0], [4]], ids=["no update", "empty batch", "weights of zero"]
)
@each_case
def test_numbers_of_no_samples_are_the_declared_ones(case: Case, sizes: list[int]) -> None:
    """They are what the formula gives: 0 or 0.5 or NaN, as the page of metrics says."""
    metric = case.metric(UNFUSED)
    batches = [without_weight(batch) for batch in make_batches(case, sizes, True)]
    for batch in batches:
        update(metric, case, batch)
    assert_reported(metric.compute(), expected_of(case, [batches or make_batches(case, [0], True)]))


@pytest.mark.parametrize("label", [0.0, 1.0], ids=["negatives", "positives"])
@each_case
def test_numbers_of_one_class_are_the_declared_ones(case: Case, label: float) -> None:
    metric = case.metric(FUSED if case.fused else UNFUSED)
    batches = [
        replace(batch, labels={task: torch.full((batch.size,), label) for task in TASKS})
        for batch in make_batches(case, SIZES, True)
    ]
    for batch in batches:
        update(metric, case, batch)
    assert_reported(metric.compute(), expected_of(case, [batches]))


# What a column has no part in.
WITHOUT = {
    "predictions": {
        "ctr", "data_label_average", "label_average", "num_missing_labels", "num_positive_samples",
        "sum_weights", "gauc_num_samples", "examples",
    },
    "labels": {
        "prediction_average", "weighted_avg", "weighted_sum_predictions", "sum_weights",
        "num_missing_labels", "gauc_num_samples", "examples",
    },
    "weights": {"rauc", "grouped_rauc", "unweighted_ne", "gauc_num_samples", "examples"},
}  # fmt: skip


@pytest.mark.parametrize("column", WITHOUT)
@each_case
def test_a_nan_shows_in_its_task_until_it_leaves_the_window(case: Case, column: str) -> None:
    mode, batches = FUSED if case.fused else UNFUSED, make_batches(case, SIZES, True)
    metric, without = case.metric(mode), case.metric(mode)
    given = getattr(batches[0], column)
    spoilt = given["click"].clone()
    spoilt[0] = torch.nan
    update(metric, case, replace(batches[0], **{column: {**given, "click": spoilt}}))
    update(without, case, batches[0])
    numbers = metric.compute()
    for name, value in without.compute().items():
        if "-buy|" in name:
            torch.testing.assert_close(numbers[name], value, rtol=0, atol=0, equal_nan=True)
    kinds = {name: name.split("|")[1].split("_", 1)[1] for name in numbers if "-click|" in name}
    shown = {name for name, kind in kinds.items() if kind not in WITHOUT[column]}
    nan = {name for name, value in numbers.items() if value.isnan().any()}
    if case.kind is SegmentedNEMetric:
        assert nan & shown  # those of the group alone
    elif case.kind is not TensorWeightedAvgMetric or column == "weights":
        assert nan >= shown
    for batch in batches[1:]:
        update(metric, case, batch)
    window = {name: value for name, value in metric.compute().items() if "|window_" in name}
    expected = expected_of(case, [batches])
    assert_reported(window, {name: expected[name] for name in window})


@each_case
def test_batches_that_wait_are_one(case: Case) -> None:
    waiting = case.metric(UNFUSED, fused_update_limit=3)
    at_once = case.metric(UNFUSED)
    batches = make_batches(case, SIZES, True)
    for batch in batches:
        update(waiting, case, batch)
    for start in range(0, len(batches), 3):
        update(at_once, case, together(batches[start : start + 3]))
    found = waiting.compute()
    for name, value in at_once.compute().items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0, equal_nan=True)


@each_case
def test_sums_go_on_from_a_checkpoint(case: Case) -> None:
    metric, batches = case.metric(UNFUSED), make_batches(case, SIZES, True)
    for batch in batches[:4]:
        update(metric, case, batch)
    restored = case.metric(UNFUSED)
    restored.load_state_dict(metric.state_dict())
    for batch in batches[4:]:
        update(metric, case, batch)
        update(restored, case, batch)
    before, after = metric.compute(), restored.compute()
    assert set(before) == set(after)
    for name in before:
        # The API does not save what `lifetime_auprc` is made of.
        if "|window_" not in name and "lifetime_auprc" not in name:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, equal_nan=True)
