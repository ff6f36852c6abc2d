"""Metrics of predictions of a number, from a stream."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from torchrec.metrics.report import Report
from torchrec.ops.metrics import weighted_sums

_SUMS = 5  # samples, their weight, squared errors, absolute errors, weights that are none


class RegressionMetrics:
    r"""Mean squared and mean absolute error of predictions of a number.

    With predictions :math:`p`, targets :math:`y` and weights :math:`w`:

    - ``mse``: :math:`\sum w (p - y)^2 / \sum w`.
    - ``mae``: :math:`\sum w |p - y| / \sum w`.

    Sums are kept in float64 on the device of the predictions, which an update does not wait for.

    Example:
        >>> metrics = RegressionMetrics()
        >>> metrics.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
        >>> report = metrics.compute()
        >>> report.mse, report.mae, report.samples
        (4.5, 1.5, 2)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums = torch.zeros(_SUMS, dtype=torch.float64)

    def update(self, scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Take a batch in.

        Args:
            scores: the predictions, ``(B,)`` or ``(B, 1)``.
            targets: as many.
            weights: of the samples, not negative, as many. Default: 1 each.

        Raises:
            ValueError: if sizes differ. Values that are not finite are seen by ``compute``.
        """
        for name, column in (("targets", targets), ("weights", weights)):
            if column is not None and column.numel() != scores.numel():
                raise ValueError(
                    f"`{name}` should be as many as scores ({scores.numel()}). "
                    f"Received {column.numel()}."
                )
        rows = [x.detach().reshape(1, -1) for x in (scores, targets)]
        weight = torch.ones_like(rows[0]) if weights is None else weights.detach().reshape(1, -1)
        total, _, _, squared, absolute = weighted_sums(*rows, weight).flatten()
        size = total.new_tensor(float(scores.numel()))
        bad = ((weight < 0) | ~weight.isfinite()).sum().double()
        self._sums = self._sums.to(total.device) + torch.stack(
            [size, total, squared, absolute, bad]
        )

    def compute(self, curves: bool = False) -> Report:
        """Report on everything since the last reset.

        Args:
            curves: without effect: there is nothing to draw.

        Raises:
            ValueError: if a prediction or a target was not finite, or a weight negative or not finite.
        """
        samples, weight, squared, absolute, bad = self._sums.tolist()
        if bad:
            raise ValueError(
                f"`weights` should be finite and not negative. Received {int(bad)} of {int(samples)} "
                "that are not."
            )
        if not math.isfinite(squared):
            raise ValueError(
                "`scores` and `targets` should be numbers whose errors have a square. Received a sum "
                f"of squared errors of {squared}."
            )
        numbers = {"mse": squared / weight, "mae": absolute / weight} if weight else {}
        why = "there are no samples"
        return Report(
            numbers or dict.fromkeys(("mse", "mae"), math.nan),
            counts={"samples": int(samples), "weight": weight},
            undefined={} if numbers else dict.fromkeys(("mse", "mae"), why),
            better={"mse": "lower", "mae": "lower"},
        )

    def merge(self, other: RegressionMetrics) -> None:
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
