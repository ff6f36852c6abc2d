"""What metrics refuse, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchrec.metrics.auc import AUCMetric
from torchrec.metrics.gauc import GAUCMetric
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo, SessionMetricDef
from torchrec.metrics.multi_label_precision import MultiLabelPrecisionMetric
from torchrec.metrics.multiclass_recall import MulticlassRecallMetric
from torchrec.metrics.ndcg import NDCGMetric
from torchrec.metrics.precision_session import PrecisionSessionMetric
from torchrec.metrics.rec_metric import RecMetric, RecMetricException, RecMetricList
from torchrec.metrics.recall_session import RecallSessionMetric
from torchrec.metrics.segmented_ne import SegmentedNEMetric
from torchrec.metrics.tensor_weighted_avg import TensorWeightedAvgMetric
from torchrec.metrics.weighted_avg import WeightedAvgMetric

pytestmark = pytest.mark.once


def make(kind: type[RecMetric], task: dict[str, Any] | None = None, **options: Any) -> RecMetric:
    return kind(1, 0, 4, [RecTaskInfo(name="click", **(task or {}))], **options)


def sessions(top: int | None) -> dict[str, Any]:
    return {"session_metric_def": SessionMetricDef("session", top)}


@pytest.mark.parametrize(
    ("kind", "task", "options", "message"),
    [
        (NDCGMetric, {}, {"k": 0}, "`k` should be -1 or at least 1. Received 0."),
        (
            MultiLabelPrecisionMetric,
            {},
            {"num_labels": 2, "label_names": ["like"]},
            "`label_names` should be 2, as `num_labels` says. Received 1.",
        ),
        (
            SegmentedNEMetric,
            {},
            {"grouping_keys": [{"nme": "country"}]},
            r"`grouping_keys` should be mappings with name, .* Received \['nme'\].",
        ),
        (
            TensorWeightedAvgMetric,
            {},
            {},
            "`tensor_name` of task 'click' should be the name of an output. Received None.",
        ),
        (RecallSessionMetric, {}, {}, "`session_metric_def` of task 'click' should be .* None."),
        (
            RecallSessionMetric,
            sessions(None),
            {},
            "`top_threshold` of sessions 'session' should be at least 1. Received None.",
        ),
        (
            PrecisionSessionMetric,
            sessions(0),
            {},
            "`top_threshold` of sessions 'session' should be at least 1. Received 0.",
        ),
        (
            PrecisionSessionMetric,
            sessions(2),
            {"compute_mode": RecComputeMode.FUSED_TASKS_COMPUTATION},
            r"`compute_mode` of precision session-level metrics should be unfused. .*'click'",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(
    kind: type[RecMetric], task: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, RecMetricException), match=message):
        make(kind, task, **options)


def keys(*values: float) -> dict[str, Any]:
    return {"required_inputs": {"grouping_keys": torch.tensor(values)}}


@pytest.mark.parametrize(
    ("metric", "other", "message"),
    [
        (make(NDCGMetric), {}, r"of NDCGComputation should have 'session_id'. Received \[\]."),
        (
            make(NDCGMetric),
            {"required_inputs": {"session_id": torch.arange(3)}},
            r"`session_id` of NDCGComputation should have one for each of 2 samples. Received \(3,\).",
        ),
        (
            make(RecallSessionMetric, sessions(1)),
            keys(0, 1),
            r"should have 'session'. Received \['grouping_keys'\].",
        ),
        (
            make(SegmentedNEMetric, num_groups=2),
            keys(0, 2),
            r"`grouping_keys` should be from 0 to 1 \(`num_groups` - 1\). Received 2.",
        ),
        (
            make(SegmentedNEMetric, num_groups=2),
            keys(-1, 0),
            r"`grouping_keys` should be from 0 to 1 \(`num_groups` - 1\). Received -1.",
        ),
        (
            make(SegmentedNEMetric, num_groups=2),
            keys(0.0, 1.0),
            "`grouping_keys` should be integers, or `cast_keys_to_int` True. Received torch.float32.",
        ),
        (
            make(AUCMetric, grouped_auc=True),
            keys(0, 1, 1),
            r"`grouping_keys` of AUCMetricComputation should have one for each of 2 samples. Received",
        ),
        (make(GAUCMetric), {}, "`num_candidates` of GAUC should be a tensor. Received None."),
        (
            make(GAUCMetric),
            {"num_candidates": torch.tensor([1, 2])},
            r"`num_candidates` should sum to the samples of the batch \(2\). Received 3.",
        ),
        (
            make(TensorWeightedAvgMetric, {"tensor_name": "watched"}),
            {"required_inputs": {"watched": torch.zeros(3)}},
            "`watched` should have one for each of 2 samples. Received 3.",
        ),
        (
            make(MulticlassRecallMetric, number_of_classes=3),
            {},
            r"`predictions` should be \(1, 2, 3\), a score for each of 3 classes .* Received \(1, 2\).",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(
    metric: RecMetric, other: dict[str, Any], message: str
) -> None:
    columns = {"click": torch.tensor([0.0, 1.0])}
    with pytest.raises(ValueError, match=message):
        metric.update(predictions=columns, labels=columns, weights=None, **other)


def test_floating_groups_are_taken_where_that_is_asked() -> None:
    metric = make(SegmentedNEMetric, num_groups=2, cast_keys_to_int=True)
    columns = {"click": torch.tensor([0.5, 0.25])}
    labels = {"click": torch.tensor([1.0, 0.0])}
    metric.update(predictions=columns, labels=labels, weights=None, **keys(0.0, 0.0))
    assert metric.compute()["segmented_ne-click|lifetime_segmented_ne_0"] < 1


def test_names_that_two_would_have_are_refused() -> None:
    task = RecTaskInfo(name="click", tensor_name="watched")
    with pytest.raises(ValueError, match=r"`tasks` of metric 'gauc' .* \['click', 'click'\]"):
        GAUCMetric(1, 0, 4, [task, task])
    for description, refused in ((None, True), ("_watched", False)):
        metrics = RecMetricList(
            [
                WeightedAvgMetric(1, 0, 4, [task]),
                TensorWeightedAvgMetric(1, 0, 4, [task], description=description),
            ]
        )
        if refused:
            with pytest.raises(
                RecMetricException, match=r"Received 'weighted_avg-click\|lifetime_"
            ):
                metrics.compute()
        else:
            assert len(metrics.compute()) == 4
