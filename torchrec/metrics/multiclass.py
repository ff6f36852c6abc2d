"""Metrics of predictions of one of several classes, from a stream."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from torchrec.metrics.report import Report

_SUMS = 5  # samples, their weight, those that are right, negative log likelihoods, weights that are none
_NAMES = ("accuracy", "logloss")


class MulticlassMetrics:
    r"""Accuracy and log loss of probabilities of classes.

    With probabilities :math:`p_{ic}`, classes :math:`y_i` and weights :math:`w`:

    - ``accuracy``: :math:`\sum w_i [\arg\max_c p_{ic} = y_i] / \sum w_i`; of classes that are equally
      likely the first is taken.
    - ``logloss``: :math:`-\sum w_i \log p_{i y_i} / \sum w_i`; a probability of 0 counts as the least that
      float32 can hold.

    Sums are kept in float64 on the device of the predictions, which an update does not wait for.

    Example:
        >>> metrics = MulticlassMetrics()
        >>> metrics.update(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), torch.tensor([0.0, 1.0]))
        >>> report = metrics.compute()
        >>> report.accuracy, round(report.logloss, 4), report.samples
        (0.5, 1.1513, 2)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums = torch.zeros(_SUMS, dtype=torch.float64)

    def update(self, scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Take a batch in.

        Args:
            scores: probabilities, ``(B, K)``.
            targets: classes, 0 to K - 1, ``(B,)``.
            weights: of the samples, not negative, ``(B,)``. Default: 1 each.

        Raises:
            ValueError: if shapes differ. Values that are not finite are seen by ``compute``.
        """
        if scores.dim() != 2:
            raise ValueError(f"`scores` should have shape (B, K). Received {tuple(scores.shape)}.")
        for name, column in (("targets", targets), ("weights", weights)):
            if column is not None and column.numel() != len(scores):
                raise ValueError(
                    f"`{name}` should be as many as scores ({len(scores)}). Received {column.numel()}."
                )
        classes = targets.reshape(-1).long()
        scores = scores.detach().float()
        likelihoods = scores.gather(1, classes.unsqueeze(1)).squeeze(1)
        losses = -likelihoods.clamp(min=torch.finfo(torch.float32).tiny).double().log()
        right = (scores.argmax(dim=1) == classes).double()
        weight = torch.ones_like(right) if weights is None else weights.reshape(-1).double()
        size = right.new_tensor(float(right.numel()))
        bad = ((weight < 0) | ~weight.isfinite()).sum().double()
        sums = [size, weight.sum(), weight @ right, weight @ losses, bad]
        self._sums = self._sums.to(right.device) + torch.stack(sums)

    def compute(self, curves: bool = False) -> Report:
        """Report on everything since the last reset.

        Args:
            curves: without effect: there is nothing to draw.

        Raises:
            ValueError: if a probability was not finite, or a weight negative or not finite.
        """
        samples, weight, right, losses, bad = self._sums.tolist()
        if bad:
            raise ValueError(
                f"`weights` should be finite and not negative. Received {int(bad)} of {int(samples)} "
                "that are not."
            )
        if not math.isfinite(losses):
            raise ValueError(
                f"`scores` should be probabilities. Received ones whose losses sum to {losses}."
            )
        numbers = {"accuracy": right / weight, "logloss": losses / weight} if weight else {}
        return Report(
            numbers or dict.fromkeys(_NAMES, math.nan),
            counts={"samples": int(samples), "weight": weight},
            undefined={} if numbers else dict.fromkeys(_NAMES, "there are no samples"),
            better={"accuracy": "higher", "logloss": "lower"},
        )

    def merge(self, other: MulticlassMetrics) -> None:
        """Take in what another has seen; it is left as it is.

        Args:
            other: the other.
        """
        self._sums = self._sums.to(other._sums.device) + other._sums

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is to go on from, on the CPU."""
        return {"sums": self._sums.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Args:
            state: from `state_dict`.
        """
        self._sums = state["sums"].clone()
