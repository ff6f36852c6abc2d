"""All metrics against their slow formulas: weighted and not, fused and not, over windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.metrics.metric_cases import (
    CASES,
    TASKS,
    Case,
    in_window,
    make_batches,
    samples_of,
    update,
)
from torchrec.metrics.metrics_config import RecComputeMode

pytestmark = pytest.mark.once

UNFUSED = RecComputeMode.UNFUSED_TASKS_COMPUTATION
FUSED = RecComputeMode.FUSED_TASKS_COMPUTATION
# One that empties the window, one of one sample, one of none.
SIZES = [5, 7, 1, 6, 8, 0, 4]

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def assert_reported(found: dict[str, Tensor], expected: dict[str, object]) -> None:
    """Compare numbers by name; what is beside them is counts since the start."""
    beside = {name for name in found if name.endswith("|total_examples")}
    assert set(found) - beside == set(expected)
    for name, value in expected.items():
        # AUC is float32.
        tolerance = 1e-6 if found[name].dtype == torch.float32 else 1e-9
        np.testing.assert_allclose(
            found[name].flatten().numpy(), np.ravel(value), tolerance, tolerance, err_msg=name
        )


def expected_of(case: Case, batches: list) -> dict[str, object]:
    expected: dict[str, object] = {}
    for task in TASKS:
        parts = {"window": in_window(case, batches, task)}
        if case.lifetime:
            parts["lifetime"] = samples_of(batches, task)
        for prefix, samples in parts.items():
            for name, value in case.formula(samples).items():
                expected[f"{case.kind._namespace}-{task}|{prefix}_{name}"] = value
    return expected


@pytest.mark.parametrize("mode", [UNFUSED, FUSED], ids=["unfused", "fused"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "unweighted"])
@each_case
def test_numbers_are_those_of_the_formula(case: Case, weighted: bool, mode: RecComputeMode) -> None:
    if mode == FUSED and not case.fused:
        pytest.skip("tasks of this metric cannot be fused")
    metric, batches = case.metric(mode), make_batches(case, SIZES, weighted)
    for batch in batches:
        update(metric, case, batch)
    assert_reported(metric.compute(), expected_of(case, batches))
