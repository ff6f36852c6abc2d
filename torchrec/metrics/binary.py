"""Metrics of predictions of a yes or no, from a stream, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrec.metrics._score_counts import area_variance, scores_of
from torchrec.metrics._score_stream import ScoreStream
from torchrec.metrics.interval import Interval, share_interval
from torchrec.metrics.ne import compute_ne
from torchrec.metrics.report import Report

_SUMS = ("samples", "weight", "positives", "loss", "prediction")
_BLOCK = 16_384  # samples worked on at once, so that what is in between stays in the cache


@dataclass(frozen=True)
class ScoreCurves:
    """How predictions of a yes or no are spread, and how they agree with what was observed.

    Attributes:
        histogram_edges: of the probabilities, one more than there are bars.
        positives: of each bar.
        negatives: of each bar.
        predicted: mean prediction of each of the equally large groups of ascending prediction.
        observed: share of positives in these groups.
        group_weight: how much is in these groups.
    """

    histogram_edges: list[float]
    positives: list[float]
    negatives: list[float]
    predicted: list[float]
    observed: list[float]
    group_weight: list[float]


class BinaryMetrics:
    r"""AUC, normalised entropy, logloss and calibration of logits against labels of 0 and 1.

    With predictions :math:`p`, labels :math:`y` and weights :math:`w`:

    - ``auc``: the share of pairs of a positive and a negative that the scores put in order; a tie
      counts half.
    - ``logloss``: :math:`-\sum w (y \log p + (1 - y) \log(1 - p)) / \sum w`.
    - ``ne``, normalised entropy: ``logloss`` over that of always predicting the mean label
      (He et al., https://doi.org/10.1145/2648584.2648589). Below 1 is better than that.
    - ``calibration``: :math:`\sum w p / \sum w y`, predicted over observed positives.

    What is not defined, as the AUC of a single class, is NaN, and the report says why. With curves come
    intervals of the AUC, by DeLong's method, unless samples have weights.

    An update copies the batch, on whatever device it is, and waits for none. When ``buffer`` samples
    have come together they are worked off at once, into sums in float64 and scores in their order.
    AUC is exact up to ``2 * resolution`` samples; from then on neighbouring scores are counted
    together, and it is close to exact for any distribution (`torchrec.metrics._score_counts`).

    Args:
        buffer: how many samples come together before they are worked off. Default 131,072.
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
        buffer: int = 131_072,
        resolution: int = 32_768,
    ) -> None:
        for name, size in (("buffer", buffer), ("resolution", resolution)):
            if size < 1:
                raise ValueError(f"`{name}` should be at least 1. Received {size}.")
        self._buffer = buffer
        self._resolution = resolution
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._waiting: list[Tensor] = []  # of each update: logits, labels and any weights, (2, B)
        self._used = 0
        self._updates = 0
        self._scores = ScoreStream(self._resolution)
        self._sums = dict.fromkeys(_SUMS, 0.0)

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
        logits = logits.detach().float()  # first: of bfloat16 and integers one would get bfloat16
        columns = [logits, labels] if weights is None else [logits, labels, weights]
        for name, column in zip(("labels", "weights"), columns[1:], strict=False):
            if column.numel() != size:
                raise ValueError(
                    f"`{name}` should be as many as logits ({size}). Received {column.numel()}."
                )
        rows = torch.cat([column.reshape(-1) for column in columns])
        self._waiting.append(rows.view(len(columns), size))
        self._used += size
        self._updates += 1
        if self._used >= self._buffer:
            self._work_off()

    def compute(self, curves: bool = False) -> Report:
        """Report on everything since the last reset.

        Args:
            curves: whether with those of `curves`. Default False.

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
            auc = self._scores.area_under_curve()
            # In bits, as there. The losses are those of logits, which probabilities would round.
            bits = self._sums["loss"] / math.log(2)
            sums = torch.tensor([bits, weight, positives, negatives], dtype=torch.float64)
            ne = compute_ne(sums[0], sums[1], sums[2], sums[3], eta=0.0).item()
        else:
            why = f"all labels are {int(positives > 0)}" if weight > 0 else "there are no samples"
            undefined["auc"] = undefined["ne"] = why
        if positives > 0:
            calibration = self._sums["prediction"] / positives
        else:
            undefined["calibration"] = "no label is 1" if weight > 0 else "there are no samples"
        return Report(
            {"ne": ne, "auc": auc, "logloss": logloss, "calibration": calibration},
            counts={
                "samples": int(self._sums["samples"]), "positives": positives, "weight": weight
            },
            undefined=undefined,
            better={"ne": "lower", "auc": "higher", "logloss": "lower"},
            curves=asdict(self.curves()) if curves else {},
            intervals=self._intervals(auc) if curves else {},
        )  # fmt: skip

    def _intervals(self, auc: float) -> dict[str, Interval]:
        """Return the interval of the AUC, where all samples weigh 1 and it is sure enough to have one."""
        if self._sums["weight"] != self._sums["samples"] or not 0 < auc < 1:
            return {}
        found = share_interval(auc, area_variance(self._scores.counts()))
        return {"auc": found} if math.isfinite(found.low) else {}

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
        keys, positives, negatives = self._scores.counts()
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
        """Take in what another has seen; it is left as it is, but that what waits in it is worked off.

        Args:
            other: the other, of the same resolution.
        """
        self._work_off()
        other._work_off()
        self._scores.merge(other._scores)
        self._add(other._sums)
        self._updates += other._updates

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is to go on from, as tensors on the CPU."""
        state = {
            "waiting": torch.from_numpy(self._columns()),
            "waiting_sizes": torch.tensor([rows.shape[1] for rows in self._waiting]).long(),
            "updates": torch.tensor(self._updates),
            **self._scores.state_dict(),
            "sums": torch.tensor([self._sums[name] for name in _SUMS], dtype=torch.float64),
        }
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Args:
            state: from `state_dict`.
        """
        self.reset()
        sizes = state["waiting_sizes"].tolist()
        self._waiting = [rows.clone() for rows in state["waiting"].split(sizes, dim=1)]
        self._used = sum(sizes)
        self._updates = int(state["updates"])
        self._scores.load_state_dict(state)
        self._sums = dict(zip(_SUMS, state["sums"].tolist(), strict=True))

    def _work_off(self) -> None:
        """Empty the buffer into the counts and the sums."""
        if not self._used:
            return
        logits, labels, *rest = self._columns()
        weights = rest[0].astype(np.float64) if rest else None
        self._check("logits", "numbers", np.isnan(logits), logits)
        self._check("labels", "0 or 1", (labels != 0) & (labels != 1), labels)
        if weights is not None:
            bad = ~np.isfinite(weights) | (weights < 0)
            self._check("weights", "finite and not negative", bad, weights)
        sums = {
            "samples": float(self._used),
            "weight": float(self._used if weights is None else weights.sum()),
            "positives": float((labels if weights is None else weights * labels).sum(dtype=float)),
            "loss": 0.0,
            "prediction": 0.0,
        }
        for start in range(0, self._used, _BLOCK):
            block = slice(start, start + _BLOCK)
            weight = None if weights is None else weights[block]
            loss, prediction = _loss_and_prediction(logits[block], labels[block], weight)
            sums["loss"] += loss
            sums["prediction"] += prediction
        self._waiting, self._used = [], 0
        self._scores.add(logits, labels, weights)
        self._add(sums)

    def _add(self, sums: Mapping[str, float]) -> None:
        for name in _SUMS:
            self._sums[name] += sums[name]

    def _columns(self) -> NDArray[np.float32]:
        """Return what waits: logits, labels and, if there are any, weights, ``(2, N)`` or ``(3, N)``."""
        parts = [rows.float().cpu().numpy() for rows in self._waiting]
        weighted = any(len(part) > 2 for part in parts)
        columns = np.ones((2 + weighted, self._used), np.float32)
        start = 0
        for part in parts:
            columns[: len(part), start : start + part.shape[1]] = part
            start += part.shape[1]
        return columns

    def _check(
        self, name: str, wanted: str, bad: NDArray[np.bool_], values: NDArray[np.floating]
    ) -> None:
        """Raise for the first bad value, naming its update."""
        if not bad.any():
            return
        first = int(bad.argmax())
        ends = np.cumsum([rows.shape[1] for rows in self._waiting])
        part = int(np.searchsorted(ends, first, side="right"))
        update = self._updates - len(ends) + part + 1
        sample = first - (int(ends[part - 1]) if part else 0)
        raise ValueError(
            f"`{name}` should be {wanted}. Received {values[first]} in update {update}, "
            f"sample {sample}."
        )


def _loss_and_prediction(
    logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float64] | None
) -> tuple[float, float]:
    """Return the sum of the losses and that of the probabilities."""
    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide))
    predictions = np.where(wide >= 0, 1.0, small)
    predictions /= 1.0 + small
    # Of a positive the loss is log(1 + exp(-logit)), of a negative log(1 + exp(logit)).
    losses = np.log1p(small)
    losses += np.maximum(np.where(labels > 0, -logits, logits), 0)
    if weights is not None:
        # A sample of weight 0 is none, even with an infinite loss.
        losses = np.where(weights > 0, losses, 0.0) * weights
        predictions *= weights
    return float(losses.sum()), float(predictions.sum())


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)
