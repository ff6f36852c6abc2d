"""Metrics of predictions of a yes or no, from a stream, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrec.metrics._score_counts import (
    ScoreCounts,
    area_under_curve,
    compress_counts,
    count_scores,
    merge_counts,
    no_counts,
    scores_of,
)
from torchrec.metrics.binary_report import BinaryReport, ScoreCurves

_SUMS = ("samples", "weight", "positives", "loss", "prediction")


class BinaryMetrics:
    """AUC, normalised entropy, logloss and calibration of logits against labels of 0 and 1.

    An update copies the batch into a buffer that is there already, and waits for no device. A full
    buffer is worked off at once, into sums in float64 and a list of scores with their counts of
    positives and negatives. The list is exact until it has more than ``2 * resolution`` scores, and
    close to it, for any distribution, from then on (`torchrec.metrics._score_counts`).

    Args:
        device: where the logits are. Default: the CPU.
        buffer: how many samples are collected before they are worked off. Default 131,072.
        resolution: how many scores the list is compressed to. Default 32,768.

    Raises:
        ValueError: if a size is not positive.

    Example:
        >>> metrics = BinaryMetrics()
        >>> metrics.update(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]))
        >>> metrics.update(torch.tensor([0.5, 0.0]), torch.tensor([0.0, 1.0]))
        >>> report = metrics.compute()
        >>> report.auc, round(report.logloss, 4), report.samples
        (0.75, 0.5269, 4)
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        buffer: int = 131_072,
        resolution: int = 32_768,
    ) -> None:
        for name, size in (("buffer", buffer), ("resolution", resolution)):
            if size < 1:
                raise ValueError(f"`{name}` should be at least 1. Received {size}.")
        self._logits = torch.zeros(buffer, device=device)
        self._labels = torch.zeros(buffer, device=device)
        self._weights: Tensor | None = None
        self._resolution = resolution
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._used = 0
        self._ends: list[int] = []  # where in the buffer each update ends, to name a bad one
        self._updates = 0
        self._weights = None
        self._parts: list[ScoreCounts] = []  # to be merged
        self._sums = dict.fromkeys(_SUMS, 0.0)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Take a batch in.

        Args:
            logits: floating, ``(B,)`` or ``(B, 1)``; they may be infinite. Read as float32.
            labels: 0 or 1, as many.
            weights: of the samples, not negative, as many. Default: 1 each.

        Raises:
            ValueError: if sizes differ. What is wrong with the values (NaN, labels other than 0 and
                1) is seen when the buffer is worked off, at the latest by ``compute``.
        """
        size = logits.numel()
        given = (
            (("labels", labels),) if weights is None else (("labels", labels), ("weights", weights))
        )
        for name, tensor in given:
            if tensor.numel() != size:
                raise ValueError(
                    f"`{name}` should be as many as logits ({size}). Received {tensor.numel()}."
                )
        if weights is not None and self._weights is None:
            self._weights = torch.ones_like(self._logits)
        logits, labels = logits.reshape(-1), labels.reshape(-1)
        self._updates += 1
        done = 0
        while done < size:
            start = self._used
            taken = min(size - done, len(self._logits) - start)
            self._logits[start : start + taken].copy_(logits[done : done + taken])
            self._labels[start : start + taken].copy_(labels[done : done + taken])
            if self._weights is not None:
                part = 1.0 if weights is None else weights.reshape(-1)[done : done + taken]
                self._weights[start : start + taken] = part
            self._used += taken
            self._ends.append(self._used)
            done += taken
            if self._used == len(self._logits):
                self._work_off()

    def compute(self) -> BinaryReport:
        """Report on everything since the last reset.

        Raises:
            ValueError: if a logit was NaN, a label neither 0 nor 1, or a weight negative or not
                finite; it names the update.
        """
        self._work_off()
        weight, positives = self._sums["weight"], self._sums["positives"]
        negatives = weight - positives
        undefined: dict[str, str] = {}
        auc = ne = logloss = calibration = math.nan
        if weight > 0:
            logloss = self._sums["loss"] / weight
        else:
            undefined["logloss"] = "there are no samples"
        if positives > 0 and negatives > 0:
            auc = area_under_curve(merge_counts(self._parts))
            rate = positives / weight
            entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
            ne = logloss / entropy
        else:
            why = f"all labels are {int(positives > 0)}" if weight > 0 else "there are no samples"
            undefined["auc"] = undefined["ne"] = why
        if positives > 0:
            calibration = self._sums["prediction"] / positives
        else:
            undefined["calibration"] = "no label is 1" if weight > 0 else "there are no samples"
        return BinaryReport(
            samples=int(self._sums["samples"]),
            weight=weight,
            positives=positives,
            auc=auc,
            ne=ne,
            logloss=logloss,
            calibration=calibration,
            undefined=undefined,
        )

    def curves(self, bars: int = 50, groups: int = 20) -> ScoreCurves:
        """Return the histogram of the predictions and the calibration curve.

        Args:
            bars: of the histogram, over probabilities from 0 to 1.
            groups: of ascending prediction and about equal size.

        Example:
            >>> metrics = BinaryMetrics()
            >>> metrics.update(torch.tensor([-9.0, 0.0, 0.0, 9.0]), torch.tensor([0, 1, 0, 1]))
            >>> curves = metrics.curves(bars=2, groups=2)
            >>> curves.positives, curves.negatives
            ([0.0, 2.0], [1.0, 1.0])
        """
        self._work_off()
        keys, positives, negatives = merge_counts(self._parts)
        probability = _sigmoid(scores_of(keys).astype(np.float64))
        edges = np.linspace(0.0, 1.0, bars + 1)
        weight = positives + negatives
        total = float(weight.sum())
        group = np.zeros(len(weight), np.int64)
        if total > 0:
            middle = (np.cumsum(weight) - weight / 2) / total
            group = np.minimum((middle * groups).astype(np.int64), groups - 1)
        size = np.bincount(group, weight, groups)
        there = size > 0
        predicted = np.bincount(group, weight * probability, groups)[there] / size[there]
        observed = np.bincount(group, positives, groups)[there] / size[there]
        return ScoreCurves(
            histogram_edges=edges.tolist(),
            positives=np.histogram(probability, edges, weights=positives)[0].tolist(),
            negatives=np.histogram(probability, edges, weights=negatives)[0].tolist(),
            predicted=predicted.tolist(),
            observed=observed.tolist(),
            group_weight=size[there].tolist(),
        )

    def merge(self, other: BinaryMetrics) -> None:
        """Take in what another has seen; it is left as it is, but for its buffer being worked off.

        Args:
            other: the other, of the same resolution.
        """
        self._work_off()
        other._work_off()
        self._add(other._merged(), other._sums)
        self._updates += other._updates

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is to go on from, as tensors on the CPU."""
        parts = [no_counts(), *self._parts]
        state = {
            "logits": self._logits[: self._used],
            "labels": self._labels[: self._used],
            "ends": torch.tensor(self._ends, dtype=torch.int64),
            "updates": torch.tensor(self._updates),
            "keys": torch.from_numpy(np.concatenate([part.keys for part in parts])),
            "positives": torch.from_numpy(np.concatenate([part.positives for part in parts])),
            "negatives": torch.from_numpy(np.concatenate([part.negatives for part in parts])),
            "sizes": torch.tensor([len(part.keys) for part in self._parts], dtype=torch.int64),
            "sums": torch.tensor([self._sums[name] for name in _SUMS], dtype=torch.float64),
        }
        if self._weights is not None:
            state["weights"] = self._weights[: self._used]
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Args:
            state: from `state_dict`, of metrics with a buffer that is not larger.

        Raises:
            ValueError: if the buffer is too small.
        """
        used = len(state["logits"])
        if used >= len(self._logits) and used:
            raise ValueError(
                f"`buffer` should be above {used}, which the state has in it. "
                f"Received {len(self._logits)}."
            )
        self.reset()
        self._logits[:used] = state["logits"].to(self._logits.device)
        self._labels[:used] = state["labels"].to(self._labels.device)
        if "weights" in state:
            self._weights = torch.ones_like(self._logits)
            self._weights[:used] = state["weights"].to(self._logits.device)
        self._used = used
        self._ends = state["ends"].tolist()
        self._updates = int(state["updates"])
        columns = [
            [part.clone().numpy() for part in state[name].split(state["sizes"].tolist())]
            for name in ScoreCounts._fields
        ]
        self._parts = [ScoreCounts(*part) for part in zip(*columns, strict=True)]
        self._sums = dict(zip(_SUMS, state["sums"].tolist(), strict=True))

    def _work_off(self) -> None:
        """Empty the buffer into the counts and the sums."""
        if not self._used:
            return
        logits = self._logits[: self._used].cpu().numpy()
        labels = self._labels[: self._used].cpu().numpy()
        weights = None
        if self._weights is not None:
            weights = self._weights[: self._used].cpu().numpy().astype(np.float64)
        self._check("logits", "numbers", np.isnan(logits), logits)
        self._check("labels", "0 or 1", (labels != 0) & (labels != 1), labels)
        if weights is not None:
            bad = ~np.isfinite(weights) | (weights < 0)
            self._check("weights", "finite and not negative", bad, weights)
        # Of a positive the loss is log(1 + exp(-logit)), of a negative log(1 + exp(logit)).
        wide = logits.astype(np.float64)
        small = np.exp(-np.abs(wide))
        losses = np.maximum(np.where(labels > 0, -wide, wide), 0.0) + np.log1p(small)
        predictions = np.where(wide >= 0, 1.0, small) / (1.0 + small)
        if weights is not None:
            # A sample of weight 0 is none, even with an infinite loss.
            losses = np.where(weights > 0, losses, 0.0) * weights
            predictions = predictions * weights
        counts = count_scores(logits, labels, weights)
        sums = {
            "samples": float(self._used),
            "weight": float(self._used if weights is None else weights.sum()),
            "positives": float(counts.positives.sum()),
            "loss": float(losses.sum()),
            "prediction": float(predictions.sum()),
        }
        self._used = 0
        self._ends = []
        self._add(counts, sums)

    def _add(self, counts: ScoreCounts, sums: Mapping[str, float]) -> None:
        self._parts.append(counts)
        # Several at once: to merge costs as much as the list is long, however short the part.
        if sum(len(part.keys) for part in self._parts) > 8 * self._resolution:
            self._parts = [self._merged()]
        for name in _SUMS:
            self._sums[name] += sums[name]

    def _merged(self) -> ScoreCounts:
        counts = merge_counts(self._parts)
        if len(counts.keys) > 2 * self._resolution:
            counts = compress_counts(counts, self._resolution)
        return counts

    def _check(
        self, name: str, wanted: str, bad: NDArray[np.bool_], values: NDArray[np.floating]
    ) -> None:
        """Raise for the first bad value, naming its update."""
        if not bad.any():
            return
        first = int(bad.argmax())
        part = int(np.searchsorted(self._ends, first, side="right"))
        update = self._updates - len(self._ends) + part + 1
        sample = first - (self._ends[part - 1] if part else 0)
        raise ValueError(
            f"`{name}` should be {wanted}. Received {values[first]} in update {update}, "
            f"sample {sample}."
        )


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)
