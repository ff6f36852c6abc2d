"""Every metric with its slow formula, its options, and samples that it makes something of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.metrics import slow_formulas as slow
from tests.metrics.slow_formulas import Formula, Samples
from torchrec.metrics.accuracy import AccuracyMetric
from torchrec.metrics.auc import AUCMetric
from torchrec.metrics.auprc import AUPRCMetric
from torchrec.metrics.average import AverageMetric
from torchrec.metrics.cali_free_ne import CaliFreeNEMetric
from torchrec.metrics.calibration import CalibrationMetric
from torchrec.metrics.calibration_with_recalibration import RecalibratedCalibrationMetric
from torchrec.metrics.ctr import CTRMetric
from torchrec.metrics.gauc import GAUCMetric
from torchrec.metrics.hindsight_target_pr import HindsightTargetPRMetric
from torchrec.metrics.mae import MAEMetric
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo, SessionMetricDef
from torchrec.metrics.mse import MSEMetric
from torchrec.metrics.multi_label_precision import MultiLabelPrecisionMetric
from torchrec.metrics.multiclass_recall import MulticlassRecallMetric
from torchrec.metrics.ndcg import NDCGMetric
from torchrec.metrics.ne import NEMetric
from torchrec.metrics.ne_positive import NEPositiveMetric
from torchrec.metrics.ne_with_recalibration import RecalibratedNEMetric
from torchrec.metrics.nmse import NMSEMetric
from torchrec.metrics.num_missing_labels import NumMissingLabelsMetric
from torchrec.metrics.num_positive_samples import NumPositiveSamplesMetric
from torchrec.metrics.precision import PrecisionMetric
from torchrec.metrics.precision_session import PrecisionSessionMetric
from torchrec.metrics.rauc import RAUCMetric
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.recall import RecallMetric
from torchrec.metrics.recall_session import RecallSessionMetric
from torchrec.metrics.segmented_ne import GroupingKeyConfig, SegmentedNEMetric
from torchrec.metrics.serving_calibration import ServingCalibrationMetric
from torchrec.metrics.serving_ne import ServingNEMetric
from torchrec.metrics.sum_weights import SumWeightsMetric
from torchrec.metrics.tensor_weighted_avg import TensorWeightedAvgMetric
from torchrec.metrics.unweighted_ne import UnweightedNEMetric
from torchrec.metrics.weighted_avg import WeightedAvgMetric
from torchrec.metrics.weighted_sum_predictions import WeightedSumPredictionsMetric
from torchrec.metrics.xauc import XAUCMetric

TASKS = ("click", "buy")
BATCH_SIZE = 8  # the largest of the batches, which the window has to hold
Draw = Callable[[np.random.Generator, int], tuple[NDArray[Any], NDArray[Any]]]


def clicks(draw: np.random.Generator, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return draw.random(size), draw.integers(0, 2, size)


def ratings(draw: np.random.Generator, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both with ties."""
    return draw.integers(0, 8, size) / 8, draw.integers(0, 5, size)


def classes(draw: np.random.Generator, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return draw.integers(0, 6, (size, 4)) / 6, draw.integers(0, 4, size)


def label_sets(draw: np.random.Generator, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return draw.integers(0, 8, size), draw.integers(0, 8, size)


def missing(draw: np.random.Generator, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return draw.random(size), np.where(draw.random(size) < 0.4, np.nan, 1.0)


@dataclass(frozen=True)
class Case:
    """A metric, what it should give, and of what.

    Attributes:
        kind: the metric.
        formula: what it should give, of the samples of a window.
        options: of the metric.
        task: options of the tasks.
        inputs: the names of what it asks for beside.
        draw: predictions and labels.
        whole_batches: whether a window is whole batches, and not the last samples.
        lifetime: whether it reports on all samples.
        fused: whether tasks can be fused.
    """

    kind: type[RecMetric]
    formula: Formula
    options: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    draw: Draw = clicks
    whole_batches: bool = True
    lifetime: bool = True
    fused: bool = True

    def metric(
        self, mode: RecComputeMode, world_size: int = 1, rank: int = 0, fused_update_limit: int = 0
    ) -> RecMetric:
        tasks = [RecTaskInfo(name=name, **self.task) for name in TASKS]
        if self.kind is TensorWeightedAvgMetric:
            for task in tasks:
                task.tensor_name = f"tensor_{task.name}"
        return self.kind(
            world_size,
            rank,
            BATCH_SIZE,
            tasks,
            mode,
            window_size=16 * world_size,
            fused_update_limit=fused_update_limit,
            **self.options,
        )


def multiclass(s: Samples) -> dict[str, Any]:
    return {"multiclass_recall": slow.multiclass_recall(s)}


def two_keys(s: Samples) -> dict[str, float]:
    first = slow.segmented_ne("grouping_keys", 3, "@grouping_keys")(s)
    return {**first, **slow.segmented_ne("country", 2, "@country")(s)}


def recalibrated_ne(s: Samples) -> dict[str, float]:
    return slow.ne_with_logloss(slow.recalibrated(0.3)(s))


def recalibrated_calibration(s: Samples) -> dict[str, float]:
    return slow.calibration(slow.recalibrated(0.3)(s))


def of_samples(kind: type[RecMetric], formula: Formula, draw: Draw, **options: Any) -> Case:
    inputs = ("grouping_keys",) if options else ()
    return Case(kind, formula, options, {}, inputs, draw, whole_batches=False, lifetime=False)


def of_sessions(kind: type[RecMetric], formula: Formula, top: int, ranked: bool = False) -> Case:
    task = {"session_metric_def": SessionMetricDef("session", top, ranked)}
    return Case(kind, formula, {}, task, ("session",), ratings if ranked else clicks, fused=False)


def ndcg(formula: Formula, task: dict[str, Any] | None = None, **options: Any) -> Case:
    key = options.get("session_key", "session_id")
    return Case(NDCGMetric, formula, options, task or {}, (key,), ratings)


KEYS = [GroupingKeyConfig("grouping_keys", 3), {"name": "country", "num_groups": 2}]
CASES = {
    "accuracy": Case(AccuracyMetric, slow.accuracy(0.5)),
    "accuracy at 0.3": Case(AccuracyMetric, slow.accuracy(0.3), {"threshold": 0.3}),
    "average": Case(AverageMetric, slow.average, draw=ratings),
    "auc": of_samples(AUCMetric, slow.auc, clicks),
    "auc grouped": of_samples(
        AUCMetric, slow.grouped("auc", slow.auc_of), clicks, grouped_auc=True
    ),
    "auprc": of_samples(AUPRCMetric, slow.auprc, clicks),
    "auprc grouped": of_samples(
        AUPRCMetric, slow.grouped("auprc", slow.auprc_of, 0.0), clicks, grouped_auprc=True
    ),
    "cali_free_ne": Case(CaliFreeNEMetric, slow.cali_free_ne),
    "calibration": Case(CalibrationMetric, slow.calibration),
    "calibration recalibrated": Case(
        RecalibratedCalibrationMetric, recalibrated_calibration, {"recalibration_coefficient": 0.3}
    ),
    "ctr": Case(CTRMetric, slow.ctr),
    "gauc": Case(GAUCMetric, slow.gauc),
    "hindsight_target_pr": Case(
        HindsightTargetPRMetric, slow.hindsight_target_pr(0.6), {"target_precision": 0.6}
    ),
    "hindsight_target_pr never": Case(
        HindsightTargetPRMetric, slow.hindsight_target_pr(1.1), {"target_precision": 1.1}
    ),
    "mae": Case(MAEMetric, slow.mae, draw=ratings),
    "mse": Case(MSEMetric, slow.mse, draw=ratings),
    "mse with r_squared": Case(
        MSEMetric, slow.mse_with_r_squared, {"include_r_squared": True}, draw=ratings
    ),
    "multi_label_precision": Case(
        MultiLabelPrecisionMetric,
        slow.multi_label_precision(["label_0", "label_1", "label_2"]),
        {"num_labels": 3},
        draw=label_sets,
    ),
    "multi_label_precision named": Case(
        MultiLabelPrecisionMetric,
        slow.multi_label_precision(["like", "share"]),
        {"num_labels": 2, "label_names": ["like", "share"]},
        draw=label_sets,
    ),
    "multiclass_recall": Case(
        MulticlassRecallMetric, multiclass, {"number_of_classes": 4}, draw=classes
    ),
    "ndcg": ndcg(slow.ndcg()),
    "ndcg exponential": ndcg(
        slow.ndcg(loss=False, exponential=True),
        report_ndcg_as_decreasing_curve=False,
        exponential_gain=True,
    ),
    "ndcg at 2": ndcg(slow.ndcg(loss=False, k=2), k=2, report_ndcg_as_decreasing_curve=False),
    "ndcg without single": ndcg(slow.ndcg(without_single=True), remove_single_length_sessions=True),
    "ndcg scaled": ndcg(slow.ndcg(scale=True), scale_by_weights_tensor=True),
    "ndcg negative": ndcg(slow.ndcg(negative=True), {"is_negative_task": True}),
    "ndcg by session": ndcg(slow.ndcg(key="session"), session_key="session"),
    "ne": Case(NEMetric, slow.ne),
    "ne with logloss": Case(NEMetric, slow.ne_with_logloss, {"include_logloss": True}),
    "ne_positive": Case(NEPositiveMetric, slow.ne_positive),
    "ne recalibrated": Case(
        RecalibratedNEMetric,
        recalibrated_ne,
        {"recalibration_coefficient": 0.3, "include_logloss": True},
    ),
    "nmse": Case(NMSEMetric, slow.nmse, draw=ratings),
    "num_missing_labels": Case(NumMissingLabelsMetric, slow.num_missing_labels, draw=missing),
    "num_positive_samples": Case(NumPositiveSamplesMetric, slow.num_positive_samples),
    "precision": Case(PrecisionMetric, slow.precision(0.5)),
    "precision at 0.3": Case(PrecisionMetric, slow.precision(0.3), {"threshold": 0.3}),
    "precision_session": of_sessions(PrecisionSessionMetric, slow.session_level("precision", 2), 2),
    "precision_session ranked": of_sessions(
        PrecisionSessionMetric, slow.session_level("precision", 1, True), 1, ranked=True
    ),
    "rauc": of_samples(RAUCMetric, slow.rauc, ratings),
    "rauc grouped": of_samples(
        RAUCMetric, slow.grouped("rauc", slow.rauc_of), ratings, grouped_rauc=True
    ),
    "recall": Case(RecallMetric, slow.recall(0.5)),
    "recall at 0.3": Case(RecallMetric, slow.recall(0.3), {"threshold": 0.3}),
    "recall_session": of_sessions(RecallSessionMetric, slow.session_level("recall", 2), 2),
    "recall_session ranked": of_sessions(
        RecallSessionMetric, slow.session_level("recall", 2, True), 2, ranked=True
    ),
    "segmented_ne": Case(
        SegmentedNEMetric,
        slow.segmented_ne("grouping_keys", 3),
        {"num_groups": 3},
        inputs=("grouping_keys",),
    ),
    "segmented_ne of a listed key": Case(
        SegmentedNEMetric,
        slow.segmented_ne("country", 2, "@country"),
        {"grouping_keys": ["country"], "num_groups": 2},
        inputs=("country",),
    ),
    "segmented_ne of two keys": Case(
        SegmentedNEMetric, two_keys, {"grouping_keys": KEYS}, inputs=("grouping_keys", "country")
    ),
    "serving_ne": Case(ServingNEMetric, slow.ne),
    "serving_calibration": Case(ServingCalibrationMetric, slow.calibration),
    "sum_weights": Case(SumWeightsMetric, slow.sum_weights),
    "tensor_weighted_avg": Case(
        TensorWeightedAvgMetric,
        slow.tensor_weighted_avg,
        inputs=("tensor_click", "tensor_buy"),
    ),
    "unweighted_ne": Case(UnweightedNEMetric, slow.unweighted_ne),
    "weighted_avg": Case(WeightedAvgMetric, slow.weighted_avg),
    "weighted_sum_predictions": Case(WeightedSumPredictionsMetric, slow.weighted_sum_predictions),
    "xauc": Case(XAUCMetric, slow.xauc, draw=ratings),
}


@dataclass(frozen=True)
class Batch:
    """What a model puts out in a step: of each task, and of all."""

    predictions: dict[str, Tensor]
    labels: dict[str, Tensor]
    weights: dict[str, Tensor] | None
    other: dict[str, Tensor]

    @property
    def size(self) -> int:
        return len(self.labels[TASKS[0]])


def make_batches(case: Case, sizes: Sequence[int], weighted: bool, seed: int = 0) -> list[Batch]:
    """Draw batches; their float32 are the numbers that the formula gets, too."""
    draw = np.random.default_rng(seed)
    batches = []
    for size in sizes:
        columns = {task: case.draw(draw, size) for task in TASKS}
        other: dict[str, NDArray[Any]] = {
            "grouping_keys": draw.integers(0, 3, size),
            "country": draw.integers(0, 2, size),
            "session": draw.integers(0, 3, size),
            "session_id": draw.integers(0, 3, size),
            "list": np.sort(draw.integers(0, 3, size)),
            **{f"tensor_{task}": draw.random(size) for task in TASKS},
        }
        batches.append(
            Batch(
                {task: torch.tensor(columns[task][0]).float() for task in TASKS},
                {task: torch.tensor(columns[task][1]).float() for task in TASKS},
                {task: torch.tensor(draw.random(size)).float() for task in TASKS}
                if weighted
                else None,
                {
                    name: torch.tensor(values).float() if "tensor" in name else torch.tensor(values)
                    for name, values in other.items()
                },
            )
        )
    return batches


def together(batches: Sequence[Batch]) -> Batch:
    """Return the samples of some batches as one."""

    def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return Batch(
        joined([batch.predictions for batch in batches]),
        joined([batch.labels for batch in batches]),
        joined([batch.weights for batch in batches if batch.weights is not None]) or None,
        joined(
            [
                {**batch.other, "list": batch.other["list"] + 3 * i}  # none of their lists is one
                for i, batch in enumerate(batches)
            ]
        ),
    )


def update(metric: RecMetric, case: Case, batch: Batch) -> None:
    other: dict[str, Any] = {}
    if case.inputs:
        other["required_inputs"] = {name: batch.other[name] for name in case.inputs}
    if case.kind is GAUCMetric:
        other["num_candidates"] = batch.other["list"].bincount(minlength=3)
    metric.update(
        predictions=batch.predictions, labels=batch.labels, weights=batch.weights, **other
    )


def samples_of(batches: Sequence[Batch], task: str, first_batch: int = 0) -> Samples:
    """Put the samples of a task in some batches together."""

    def column(parts: Sequence[Tensor]) -> NDArray[Any]:
        joined: NDArray[Any] = torch.cat(list(parts)).numpy()
        return joined.astype(np.float64) if joined.dtype == np.float32 else joined

    labels = column([batch.labels[task] for batch in batches])
    weights = [batch.weights[task] for batch in batches if batch.weights is not None]
    extra = {name: column([batch.other[name] for batch in batches]) for name in batches[0].other}
    return Samples(
        column([batch.predictions[task] for batch in batches]),
        labels,
        column(weights) if weights else np.ones_like(labels),
        np.repeat(np.arange(len(batches)) + first_batch, [batch.size for batch in batches]),
        {**extra, "tensor": extra[f"tensor_{task}"]},
    )


def in_window(case: Case, batches: Sequence[Batch], task: str, size: int = 16) -> Samples:
    """Return the samples of the last batches that fit, or the last samples."""
    if not case.whole_batches:
        samples = samples_of(batches, task)
        return samples.of(np.arange(len(samples.labels)) >= len(samples.labels) - size)
    first = len(batches)
    while first > 0 and sum(batch.size for batch in batches[first - 1 :]) <= size:
        first -= 1
    return samples_of(batches[first:], task, first)


def joined(parts: Sequence[Samples]) -> Samples:
    """Put the samples of several ranks together; none of their batches is one."""
    return Samples(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("predictions", "labels", "weights")
        ),
        np.concatenate([part.batch + 1000 * rank for rank, part in enumerate(parts)]),
        {name: np.concatenate([part.extra[name] for part in parts]) for name in parts[0].extra},
    )


def expected_of(case: Case, by_rank: Sequence[Sequence[Batch]]) -> dict[str, Any]:
    """Return what is reported of the batches of all ranks, but for counts since the start."""
    expected: dict[str, Any] = {}
    for task in TASKS:
        parts = {"window": joined([in_window(case, batches, task) for batches in by_rank])}
        if case.lifetime:
            parts["lifetime"] = joined([samples_of(batches, task) for batches in by_rank])
        for prefix, samples in parts.items():
            for name, value in case.formula(samples).items():
                expected[f"{case.kind._namespace}-{task}|{prefix}_{name}"] = value
        if case.kind is AUPRCMetric:
            window = expected[f"auprc-{task}|window_auprc"]
            expected[f"auprc-{task}|lifetime_auprc"] = mean_of_stretches(by_rank, task, window)
    return expected


def mean_of_stretches(
    by_rank: Sequence[Sequence[Batch]], task: str, otherwise: float, size: int = 16
) -> float:
    """Return the mean AUPRC of stretches of batches that are complete."""
    complete: list[Sequence[Batch]] = []
    for batches in by_rank:
        first = 0
        for end in range(len(batches)):
            if sum(batch.size for batch in batches[first : end + 1]) > size:
                complete.append(batches[first:end])
                first = end
    parts = [samples_of(stretch, task) for stretch in complete]
    weight = sum(part.weights.sum() for part in parts)
    return (
        sum(part.weights.sum() * slow.auprc_of(part) for part in parts) / weight
        if weight
        else otherwise
    )


def assert_reported(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    """Compare numbers by name; what is beside them is counts since the start."""
    beside = {name for name in found if name.endswith("|total_examples")}
    assert set(found) - beside == set(expected)
    for name, value in expected.items():
        # AUC is float32.
        tolerance = 1e-6 if found[name].dtype == torch.float32 else 1e-9
        np.testing.assert_allclose(
            found[name].flatten().numpy(), np.ravel(value), tolerance, tolerance, err_msg=name
        )
