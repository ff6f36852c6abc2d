"""What `BinaryMetrics` reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BinaryReport:
    r"""How good predictions of a yes or no are.

    With predictions :math:`p`, labels :math:`y` and weights :math:`w`:

    - ``auc``: the share of pairs of a positive and a negative that the scores put in order; a tie
      counts half.
    - ``logloss``: :math:`-\sum w (y \log p + (1 - y) \log(1 - p)) / \sum w`.
    - ``ne``, normalised entropy: ``logloss`` over that of always predicting the mean label
      (He et al., https://doi.org/10.1145/2648584.2648589). Below 1 is better than that.
    - ``calibration``: :math:`\sum w p / \sum w y`, predicted over observed positives.

    What is not defined, as the AUC of a single class, is NaN, and ``undefined`` says why.

    Example:
        >>> report = BinaryReport(samples=2, weight=2.0, positives=0.0, logloss=0.1,
        ...                       undefined={"auc": "all labels are 0"})
        >>> report.to_json()["auc"], report.undefined["auc"]
        (None, 'all labels are 0')
    """

    samples: int = 0
    weight: float = 0.0
    positives: float = 0.0
    auc: float = math.nan
    ne: float = math.nan
    logloss: float = math.nan
    calibration: float = math.nan
    undefined: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, float | int | None]:
        """Return the numbers by name; None for one that is not finite, which JSON cannot say."""
        numbers = {
            "auc": self.auc,
            "ne": self.ne,
            "logloss": self.logloss,
            "calibration": self.calibration,
        }
        return {
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "samples": self.samples,
            "positives": self.positives,
        }


@dataclass(frozen=True)
class ScoreCurves:
    """What a report draws.

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
