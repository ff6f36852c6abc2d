"""Each metric as its formula says, sample by sample or pair by pair, in float64.

Every function takes the samples of a window and returns the values by name. What is no number is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = dict[str, float]
Formula = Callable[["Samples"], Values]

ETA = 1e-12


@dataclass(frozen=True)
class Samples:
    """Samples of one task in the order in which they came.

    Attributes:
        predictions: ``(N,)``, or ``(N, C)`` for several classes.
        labels: ``(N,)``.
        weights: ``(N,)``.
        batch: of each sample, the number of its batch.
        extra: what else a metric reads, ``(N,)`` each.
    """

    predictions: Floats
    labels: Floats
    weights: Floats
    batch: NDArray[np.int64]
    extra: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def of(self, chosen: NDArray[np.bool_]) -> Samples:
        return Samples(
            self.predictions[chosen],
            self.labels[chosen],
            self.weights[chosen],
            self.batch[chosen],
            {name: values[chosen] for name, values in self.extra.items()},
        )

    def groups(self, name: str) -> list[Samples]:
        keys = self.extra[name]
        return [self.of(keys == key) for key in np.unique(keys)]

    def batches(self) -> list[Samples]:
        return [self.of(self.batch == number) for number in np.unique(self.batch)]


def ratio(above: float, below: float, otherwise: float = 0.0) -> float:
    return above / below if below else otherwise


def cross_entropy(s: Samples, weights: Floats) -> tuple[float, float]:
    """Return the sums of the losses in bits, of positives and of negatives."""
    positive = negative = 0.0
    for p, y, w in zip(s.predictions, s.labels, weights, strict=True):
        positive -= w * y * math.log2(p + ETA)
        negative -= w * (1 - y) * math.log2(1 - p + ETA)
    return positive, negative


def entropy(positives: float, weight: float) -> float:
    """Return the sum of the losses of the mean label."""
    if not weight:
        return math.nan
    rate = min(max(positives / weight, ETA), 1 - ETA)
    return -positives * math.log2(rate) - (weight - positives) * math.log2(1 - rate)


def normalized(loss: float, s: Samples, weights: Floats) -> float:
    norm = entropy(float((weights * s.labels).sum()), float(weights.sum()))
    return loss / norm


def ne(s: Samples) -> Values:
    loss = sum(cross_entropy(s, s.weights))
    return {"ne": normalized(loss, s, s.weights)}


def ne_with_logloss(s: Samples) -> Values:
    loss = sum(cross_entropy(s, s.weights))
    return {**ne(s), "logloss": ratio(loss, s.weights.sum())}


def ne_positive(s: Samples) -> Values:
    return {"ne_positive": normalized(cross_entropy(s, s.weights)[0], s, s.weights)}


def unweighted_ne(s: Samples) -> Values:
    ones = np.ones_like(s.weights)
    return {"unweighted_ne": normalized(sum(cross_entropy(s, ones)), s, ones)}


def cali_free_ne(s: Samples) -> Values:
    """NE over the NE of always predicting the mean prediction."""
    weight = s.weights.sum()
    if not weight:
        return {"cali_free_ne": math.nan}
    mean = min(max((s.weights * s.predictions).sum() / weight, ETA), 1 - ETA)
    positives = (s.weights * s.labels).sum()
    constant = -positives * math.log2(mean) - (weight - positives) * math.log2(1 - mean)
    return {"cali_free_ne": ne(s)["ne"] / constant}


def recalibrated(coefficient: float) -> Callable[[Samples], Samples]:
    """Probabilities of a model that was trained on a share of the negatives, put right."""

    def put_right(s: Samples) -> Samples:
        p = s.predictions
        return Samples(p / (p + (1 - p) / coefficient), s.labels, s.weights, s.batch, s.extra)

    return put_right


def segmented_ne(key: str, groups: int, suffix: str = "") -> Formula:
    def values(s: Samples) -> Values:
        parts = (s.of(s.extra[key] == group) for group in range(groups))
        return {f"segmented_ne_{i}{suffix}": ne(part)["ne"] for i, part in enumerate(parts)}

    return values


def calibration(s: Samples) -> Values:
    return {"calibration": ratio((s.weights * s.predictions).sum(), (s.weights * s.labels).sum())}


def ctr(s: Samples) -> Values:
    return {"ctr": ratio((s.weights * s.labels).sum(), s.weights.sum())}


def mse(s: Samples) -> Values:
    value = ratio((s.weights * (s.labels - s.predictions) ** 2).sum(), s.weights.sum())
    return {"mse": value, "rmse": math.sqrt(value)}


def mse_with_r_squared(s: Samples) -> Values:
    mean = ratio((s.weights * s.labels).sum(), s.weights.sum())
    total = (s.weights * (s.labels - mean) ** 2).sum()
    return {
        **mse(s),
        "r_squared": 1 - ratio((s.weights * (s.labels - s.predictions) ** 2).sum(), total),
    }


def mae(s: Samples) -> Values:
    return {"mae": ratio((s.weights * abs(s.labels - s.predictions)).sum(), s.weights.sum())}


def nmse(s: Samples) -> Values:
    """The squared errors over those of always predicting 1."""
    constant = (s.weights * (s.labels - 1) ** 2).sum()
    value = ratio((s.weights * (s.labels - s.predictions) ** 2).sum(), constant)
    return {"nmse": value, "nrmse": math.sqrt(value)}


def average(s: Samples) -> Values:
    weight = s.weights.sum()
    return {
        "label_average": ratio((s.weights * s.labels).sum(), weight),
        "prediction_average": ratio((s.weights * s.predictions).sum(), weight),
    }


def weighted_avg(s: Samples) -> Values:
    mean = ratio((s.weights * s.predictions).sum(), s.weights.sum(), math.nan)
    return {"weighted_avg": mean}


def tensor_weighted_avg(s: Samples) -> Values:
    mean = ratio((s.weights * s.extra["tensor"]).sum(), s.weights.sum(), math.nan)
    return {"weighted_avg": mean}


def sum_weights(s: Samples) -> Values:
    return {"sum_weights": s.weights.sum()}


def num_positive_samples(s: Samples) -> Values:
    return {"num_positive_samples": (s.weights * s.labels).sum()}


def num_missing_labels(s: Samples) -> Values:
    return {"num_missing_labels": s.weights[np.isnan(s.labels)].sum()}


def weighted_sum_predictions(s: Samples) -> Values:
    return {"weighted_sum_predictions": (s.weights * s.predictions).sum()}


def accuracy(threshold: float) -> Formula:
    def values(s: Samples) -> Values:
        right = (s.predictions >= threshold).astype(float) == s.labels
        return {"accuracy": ratio(s.weights[right].sum(), s.weights.sum())}

    return values


def confusion(s: Samples, chosen: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return the weights of true positives, false positives and false negatives."""
    hits = (s.weights * s.labels)[chosen].sum()
    return hits, (s.weights * (1 - s.labels))[chosen].sum(), (s.weights * s.labels)[~chosen].sum()


def precision(threshold: float) -> Formula:
    def values(s: Samples) -> Values:
        hits, wrong, _ = confusion(s, s.predictions >= threshold)
        return {"precision": ratio(hits, hits + wrong)}

    return values


def recall(threshold: float) -> Formula:
    def values(s: Samples) -> Values:
        hits, _, missed = confusion(s, s.predictions >= threshold)
        return {"recall": ratio(hits, hits + missed)}

    return values


def hindsight_target_pr(target: float) -> Formula:
    """The lowest of 1000 thresholds that has the precision, and what is there."""

    def values(s: Samples) -> Values:
        for index in range(1000):
            # The threshold in the precision of the predictions, which are float32.
            threshold = np.linspace(0, 1, 1000)[index]
            hits, wrong, missed = confusion(s, s.predictions >= threshold)
            if ratio(hits, hits + wrong) >= target:
                break
        return {
            "hindsight_target_pr": index,
            "hindsight_target_precision": ratio(hits, hits + wrong),
            "hindsight_target_recall": ratio(hits, hits + missed),
        }

    return values


def multiclass_recall(s: Samples) -> list[float]:
    """For each k, the share of samples whose label is among the k classes predicted first."""
    hits = [0.0] * s.predictions.shape[1]
    for scores, label, weight in zip(s.predictions, s.labels, s.weights, strict=True):
        order = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
        for k in range(order.index(int(label)), len(hits)):
            hits[k] += weight
    return [ratio(hit, s.weights.sum(), math.nan) for hit in hits]


def multi_label_precision(names: Sequence[str]) -> Formula:
    """Labels and predictions are sets of labels, one bit each."""

    def values(s: Samples) -> Values:
        found = {}
        for bit, name in enumerate(names):
            hits = wrong = 0.0
            for p, y, w in zip(s.predictions, s.labels, s.weights, strict=True):
                if int(p) >> bit & 1:
                    hits, wrong = (hits + w, wrong) if int(y) >> bit & 1 else (hits, wrong + w)
            found[f"multi_label_precision{name}"] = ratio(hits, hits + wrong)
        return found

    return values


def auc_of(s: Samples) -> float:
    """The share of pairs of a positive and a negative that are in order; a tie is half a one."""
    ordered = pairs = 0.0
    for p, y, w in zip(s.predictions, s.labels, s.weights, strict=True):
        for q, z, v in zip(s.predictions, s.labels, s.weights, strict=True):
            pair = w * y * v * (1 - z)
            pairs += pair
            ordered += pair * (1.0 if p > q else 0.5 if p == q else 0.0)
    return ordered / pairs if pairs else 0.5


def auprc_of(s: Samples) -> float:
    """The mean over positives of the precision where they are found."""
    value = 0.0
    for p in np.unique(s.predictions):
        hits, wrong, _ = confusion(s, s.predictions >= p)
        here = (s.weights * s.labels)[s.predictions == p].sum()
        value += here * ratio(hits, hits + wrong)
    return ratio(value, (s.weights * s.labels).sum())


def rauc_of(s: Samples) -> float:
    """The share of pairs that are not in the wrong order, of any labels."""
    pairs = list(combinations(range(len(s.labels)), 2))
    wrong = sum(
        (s.labels[i] - s.labels[j]) * (s.predictions[i] - s.predictions[j]) < 0 for i, j in pairs
    )
    return 1 - wrong / len(pairs) if pairs else 0.5


def auc(s: Samples) -> Values:
    return {"auc": auc_of(s)}


def auprc(s: Samples) -> Values:
    return {"auprc": auprc_of(s)}


def rauc(s: Samples) -> Values:
    return {"rauc": rauc_of(s)}


def grouped(name: str, formula: Callable[[Samples], float], otherwise: float = 0.5) -> Formula:
    """The plain mean over groups, beside the value of all samples."""

    def values(s: Samples) -> Values:
        parts = [formula(group) for group in s.groups("grouping_keys")]
        mean = sum(parts) / len(parts) if parts else otherwise
        return {name: formula(s), f"grouped_{name}": mean}

    return values


def gauc(s: Samples) -> Values:
    """The mean AUC of the candidate lists of each batch that can be put in order."""
    found = []
    for batch in s.batches():
        for group in batch.groups("list"):
            positives = (group.weights * group.labels).sum()
            negatives = (group.weights * (1 - group.labels)).sum()
            if positives > 0 and negatives > 0 and len(np.unique(group.predictions)) > 1:
                found.append(auc_of(group))
    return {"gauc": ratio(sum(found), len(found)), "gauc_num_samples": len(found)}


def xauc(s: Samples) -> Values:
    """The share of pairs within a batch that predictions and labels put in the same order."""
    same = pairs = 0.0
    for batch in s.batches():
        for i, j in combinations(range(len(batch.labels)), 2):
            weight = batch.weights[i] * batch.weights[j]
            pairs += weight
            predicted = np.sign(batch.predictions[i] - batch.predictions[j])
            same += weight * (predicted == np.sign(batch.labels[i] - batch.labels[j]))
    return {"xauc": ratio(same, pairs)}


def session_choice(s: Samples, scores: Floats, top: int) -> NDArray[np.bool_]:
    """Whether fewer than so many samples of the session have a higher score."""
    sessions = s.extra["session"]
    above = [
        ((sessions == k) & (scores > score)).sum()
        for k, score in zip(sessions, scores, strict=True)
    ]
    return np.array(above, dtype=np.int64) < top


def session_level(which: str, top: int, rank_labels: bool = False) -> Formula:
    """Precision or recall of the first samples of each session, within each batch."""

    def values(s: Samples) -> Values:
        sums = np.zeros(3)
        for batch in s.batches():
            labels = batch.labels
            if rank_labels:
                labels = session_choice(batch, labels, top).astype(float)
            ranked = Samples(batch.predictions, labels, batch.weights, batch.batch, batch.extra)
            sums += confusion(ranked, session_choice(batch, batch.predictions, top))
        hits, wrong, missed = sums
        if which == "precision":
            return {"precision_session_level": ratio(hits, hits + wrong)}
        return {"recall_session_level": ratio(hits, hits + missed, math.nan)}

    return values


def ndcg(
    *,
    exponential: bool = False,
    k: int = -1,
    loss: bool = True,
    without_single: bool = False,
    scale: bool = False,
    negative: bool = False,
    key: str = "session_id",
) -> Formula:
    """The mean over the sessions of each batch, ties in the order in which samples came."""

    def gain(s: Samples, order: list[int]) -> float:
        gains = [2 ** s.labels[i] - 1 if exponential else s.labels[i] for i in order]
        return sum(g / math.log2(n + 2) for n, g in enumerate(gains[: k if k > 0 else None]))

    def session(s: Samples) -> float:
        def order(scores: Floats) -> list[int]:
            return sorted(range(len(scores)), key=lambda i: -scores[i])

        value = ratio(gain(s, order(s.predictions)), gain(s, order(s.labels)))
        return (1 - value if loss else value) * (1 if scale else s.weights.max())

    def values(s: Samples) -> Values:
        found = []
        for batch in s.batches():
            p, y, w = batch.predictions, batch.labels, batch.weights
            if negative:
                p, y = 1 - p, 1 - y
            if scale:
                p, y = p * w, y * w
            ready = Samples(p, y, w, batch.batch, batch.extra)
            found += [
                session(group)
                for group in ready.groups(key)
                if len(group.labels) > 1 or not without_single
            ]
        return {"ndcg": ratio(sum(found), len(found), math.nan)}

    return values
