"""What metrics report: numbers by name, with what they are of, and curves beside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

from torch import Tensor

from torchrec.metrics.interval import Interval

Better = Literal["higher", "lower"]


@dataclass(frozen=True, eq=False)
class Report(Mapping[str, float]):
    """How good predictions are: a mapping from the names of metrics to numbers.

    Metrics and counts are attributes as well: ``report.auc`` is ``report["auc"]``. Metrics whose names
    are no attributes, or those of something else that a report has, such as ``"click.auc"`` and
    ``"items"``, are got by ``report["items"]`` alone.

    Two reports are equal if all their parts are, NaN and NaN among them; none equals a dictionary, as
    ``dict(report)`` does. They have no hash, like the mappings that they hold.

    Args:
        numbers: the metrics by name; NaN for one that is not defined.
        counts: what they were worked out from, such as ``samples``. Default: nothing.
        undefined: for each metric that is not defined, why. Default: all are.
        better: for each metric that has a direction, which values are better; one can stop early by
            these. Default: none has.
        curves: what can be drawn, by name; only where it was asked for. Default: nothing.
        intervals: of some metrics, where the truth is likely to be in 95 of 100 cases; where curves were
            asked for. Default: nothing.

    Raises:
        ValueError: if a count has the name of a metric.

    Example:
        >>> report = Report(
        ...     {"auc": math.nan, "logloss": 0.1},
        ...     counts={"samples": 2},
        ...     undefined={"auc": "all labels are 0"},
        ... )
        >>> report["logloss"], report.samples, report.undefined["auc"]
        (0.1, 2, 'all labels are 0')
        >>> report.to_json()
        {'auc': None, 'logloss': 0.1, 'samples': 2}
    """

    numbers: Mapping[str, float]
    counts: Mapping[str, float] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    better: Mapping[str, Better] = field(default_factory=dict)
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @classmethod
    def restored(cls, parts: Mapping[str, Any]) -> Report:
        """Return the report that `dataclasses.asdict` took apart, maybe an earlier version's.

        Example:
            >>> from dataclasses import asdict
            >>> report = Report({"auc": 0.7}, intervals={"auc": Interval(0.7, 0.6, 0.8)})
            >>> Report.restored(asdict(report)) == report
            True
        """
        intervals = {name: Interval(**one) for name, one in parts.get("intervals", {}).items()}
        return cls(**{**parts, "intervals": intervals})

    def __post_init__(self) -> None:
        for name in self.counts:
            if name in self.numbers:
                raise ValueError(
                    f"`counts` should have other names than the metrics. Received '{name}' in both."
                )

    def __eq__(self, other: object) -> bool:
        """Return whether all parts are equal."""
        return self._parts() == other._parts() if isinstance(other, Report) else NotImplemented

    def _parts(self) -> list[dict[str, object]]:
        return [
            {
                name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in getattr(self, part.name).items()
            }
            for part in fields(self)
        ]

    def __getitem__(self, name: str) -> float:
        """Return a metric."""
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the metrics."""
        return iter(self.numbers)

    def __len__(self) -> int:
        """Return how many metrics there are."""
        return len(self.numbers)

    def __getattr__(self, name: str) -> float:
        """Return a metric or a count."""
        # Not through attributes that a report being copied or unpickled does not have yet.
        for values in (self.__dict__.get("numbers", {}), self.__dict__.get("counts", {})):
            if name in values:
                value: float = values[name]
                return value
        raise AttributeError(
            f"A report should be asked for one of {[*self.__dict__.get('numbers', {})]}. Received '{name}'."
        )

    def to_json(self) -> dict[str, float | None]:
        """Return metrics and counts by name; None for one that is not finite, which JSON cannot say.

        ``weight``, the sum of the weights of the samples, is left out where each weighs 1.
        """
        found = {**self.numbers, **self.counts}
        if found.get("weight") == found.get("samples"):
            found.pop("weight", None)
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def join_reports(reports: Mapping[str, Report]) -> Report:
    """Return one report of several tasks: the names of each start with its own and a dot.

    Args:
        reports: by name of the task. One alone stays as it is.

    Example:
        >>> list(join_reports({"click": Report({"auc": 0.7}), "seconds": Report({"mse": 2.0})}))
        ['click.auc', 'seconds.mse']
    """
    if len(reports) == 1:
        return next(iter(reports.values()))
    parts: list[dict[str, Any]] = [
        {
            f"{task}.{name}": value
            for task, report in reports.items()
            for name, value in getattr(report, part.name).items()
        }
        for part in fields(Report)
    ]
    return Report(*parts)


def combine_reports(*reports: Report) -> Report:
    """Return one report of several on the same samples, whose metrics differ.

    Args:
        reports: in the order in which their metrics come.

    Example:
        >>> dict(combine_reports(Report({"auc": 0.7}), Report({"mrr(user)": 0.2})))
        {'auc': 0.7, 'mrr(user)': 0.2}
    """
    return Report(
        *(
            {name: value for one in reports for name, value in getattr(one, part.name).items()}
            for part in fields(Report)
        )
    )


class Metrics(Protocol):
    """Metrics of a stream: they take batches in, and report on all since the last reset.

    Whatever has these methods can be the metrics of a task. ``update`` is called in every step, so
    it should be quick and not wait for a device.
    """

    def update(self, scores: Tensor, targets: Tensor, weights: Tensor | None = None, /) -> None:
        """Take a batch in: ``(B,)`` each; weights None: 1 each."""

    def compute(self, curves: bool = False) -> Report:
        """Report on everything since the last reset, with what can be drawn if ``curves``.

        Before the first update the report has all names, and NaN for each.
        """
        ...

    def reset(self) -> None:
        """Forget everything."""

    def merge(self, other: Any, /) -> None:
        """Take in what another of the same kind has seen; it is left as it is."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return all there is to go on from."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from a state."""
