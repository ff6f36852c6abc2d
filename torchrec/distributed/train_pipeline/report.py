"""What a pipeline has hidden of its exchanges, for how long, and what it has not and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["ExchangeReport", "Exchanges", "PipelineReport"]


@dataclass(frozen=True)
class ExchangeReport:
    """The exchange of input of one sharded module, over all steps so far. Times are seconds in all.

    Attributes:
        name: of the call: the path of the module.
        ahead: steps whose input was sent ahead.
        in_flight: how long ids were on their way, at most, before they were needed.
        waited: how long they were waited for then.
        sizes_waited: how long the sizes before them were waited for.
        not_ahead: why in other steps input was not sent ahead -> in how many.
        not_ahead_seconds: how long exchanges of these steps took.
    """

    name: str
    ahead: int
    in_flight: float
    waited: float
    sizes_waited: float
    not_ahead: dict[str, int]
    not_ahead_seconds: float

    @property
    def hidden(self) -> float:
        """Share of the exchange of ids that other work has hidden, 0 to 1, of the steps whose input was sent ahead.

        Who waits sees the end of the exchange, so that it has taken the time before and the time of waiting.

        Example:
            >>> ExchangeReport("tables", 4, 0.75, 0.25, 0.0, {}, 0.0).hidden
            0.75
        """
        total = self.in_flight + self.waited
        return self.in_flight / total if total else 0.0


@dataclass(frozen=True)
class PipelineReport:
    """What overlapped.

    Attributes:
        steps: made so far.
        exchanges: of the calls of sharded modules, in their order.
    """

    steps: int
    exchanges: list[ExchangeReport]

    def __str__(self) -> str:
        lines = [f"{self.steps} steps"]
        for each in self.exchanges:
            if each.ahead:
                per = 1e3 / each.ahead
                lines.append(
                    f"{each.name}: ids sent ahead in {each.ahead} steps, {each.hidden:.0%} hidden: on their way "
                    f"{each.in_flight * per:.2f} ms before they were needed, then waited for {each.waited * per:.2f} "
                    f"ms; sizes waited for {each.sizes_waited * per:.2f} ms"
                )
            for reason, count in each.not_ahead.items():
                lines.append(f"{each.name}: not ahead in {count} steps: it {reason}")
        return "\n".join(lines)


@dataclass
class _Times:
    ahead: int = 0
    in_flight: float = 0.0
    waited: float = 0.0
    sizes_waited: float = 0.0
    not_ahead: Counter[str] = field(default_factory=Counter)
    not_ahead_seconds: float = 0.0


class Exchanges:
    """Times of the exchanges of a pipeline."""

    def __init__(self) -> None:
        self._times: dict[str, _Times] = {}
        self.steps = 0

    def _of(self, name: str) -> _Times:
        return self._times.setdefault(name, _Times())

    def sizes(self, name: str, waited: float) -> None:
        """Count that the sizes of what is sent ahead have come.

        Args:
            name: of the call.
            waited: seconds that they were waited for.
        """
        self._of(name).sizes_waited += waited

    def ids(self, name: str, in_flight: float, waited: float) -> None:
        """Count that ids have come that were sent ahead.

        Args:
            name: of the call.
            in_flight: seconds on their way before they were needed.
            waited: seconds that they were waited for then.
        """
        times = self._of(name)
        times.ahead += 1
        times.in_flight += in_flight
        times.waited += waited

    def not_ahead(self, name: str, seconds: float, reason: str) -> None:
        """Count an exchange that was made when it was needed.

        Args:
            name: of the call.
            seconds: that it took.
            reason: why it was not made ahead.
        """
        times = self._of(name)
        times.not_ahead[reason] += 1
        times.not_ahead_seconds += seconds

    def report(self) -> PipelineReport:
        """Return what has been counted so far."""
        return PipelineReport(
            self.steps,
            [
                ExchangeReport(
                    name,
                    each.ahead,
                    each.in_flight,
                    each.waited,
                    each.sizes_waited,
                    dict(each.not_ahead),
                    each.not_ahead_seconds,
                )
                for name, each in self._times.items()
            ],
        )
