"""From values to places on a chart, and to short text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Scale:
    """Values in ``[low, high]`` mapped to ``[start, end]`` of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return round values inside, about as many as wanted.

        Example:
            >>> Scale(0, 10, 0, 1).ticks()
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
            >>> Scale(0.61, 0.74, 0, 1).ticks(3)
            [0.65, 0.7]
        """
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        rough = span / max(wanted, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(n * step, 12) + 0.0 for n in range(first, last + 1)]


def extent(values: Iterable[float], margin: float = 0.06) -> tuple[float, float]:
    """Return bounds that hold all finite values, with some room.

    Example:
        >>> extent([1.0, 2.0, math.nan], margin=0.0)
        (1.0, 2.0)
        >>> extent([])
        (0.0, 1.0)
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = (high - low) * margin if high > low else abs(high) / 2 or 0.5
    return low - room, high + room


def focus(
    lines: Sequence[tuple[Sequence[float], Sequence[float]]], margin: float = 0.06
) -> tuple[tuple[float, float], bool]:
    """Return bounds for what matters of lines that start with a steep part, such as those of learning.

    That is what comes after the first tenth of the way, without the few most extreme points of a line
    that has many; all of it, if the rest is not much more, or no line has eight points.

    Args:
        lines: ``x`` and ``y`` of each; values may lack (NaN).
        margin: room beside. Default 0.06.

    Returns:
        The bounds, and whether anything is outside.

    Example:
        >>> steep = [1.0, 5.0] + [0.5 - 0.001 * n for n in range(18)]
        >>> bounds, cut = focus([(range(20), steep)], margin=0.0)
        >>> [round(bound, 3) for bound in bounds], cut
        ([0.483, 0.5], True)
    """
    points = [[(x, y) for x, y in zip(*line, strict=True) if math.isfinite(y)] for line in lines]
    every = [point for line in points for point in line]
    if not every:
        return (0.0, 1.0), False
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    late = first + (last - first) / 10
    kept: list[float] = []
    for line in points:
        values = sorted(y for x, y in line if x >= late)
        spared = len(values) // 100
        kept += values[spared : len(values) - spared]
    low, high = min(kept), max(kept)
    lowest, highest = min(y for _, y in every), max(y for _, y in every)
    if max(map(len, points)) < 8 or highest - lowest <= 1.25 * (high - low):
        return extent((lowest, highest), margin), False
    bounds = extent((low, high), margin)
    return bounds, lowest < bounds[0] or highest > bounds[1]


def clipped(
    points: Sequence[tuple[float, float]], low: float, high: float
) -> list[tuple[float, float] | None]:
    """Return the part of a line between two values; None stands for a gap.

    Args:
        points: ``(x, y)``; a ``y`` that is not finite is a gap.
        low: the lower value.
        high: the upper one.

    Example:
        >>> clipped([(0.0, 2.0), (1.0, 0.0), (2.0, math.nan)], 0.0, 1.0)
        [(0.5, 1.0), (1.0, 0.0), None]
    """
    found: list[tuple[float, float] | None] = []
    for number, (x, y) in enumerate(points):
        before = points[number - 1] if number else (x, math.nan)
        crossings = _crossings(before, (x, y), low, high)
        inside = low <= y <= high  # False for NaN
        if found and found[-1] is not None and not low <= before[1] <= high:
            found.append(None)
        found += crossings
        found.append((x, y) if inside else None)
    tidy = [
        point
        for number, point in enumerate(found)
        if point is not None or not number or found[number - 1] is not None
    ]
    return tidy[1:] if tidy and tidy[0] is None else tidy


def _crossings(
    start: tuple[float, float], end: tuple[float, float], low: float, high: float
) -> list[tuple[float, float]]:
    """Return where a straight line crosses two levels, in order."""
    if not (math.isfinite(start[1]) and math.isfinite(end[1])):
        return []
    levels = (low, high) if start[1] < end[1] else (high, low)
    return [
        (start[0] + (end[0] - start[0]) * (level - start[1]) / (end[1] - start[1]), level)
        for level in levels
        if min(start[1], end[1]) < level < max(start[1], end[1])
    ]


def short(value: float, digits: int = 4) -> str:
    """Write a number so that it is read at a glance.

    Example:
        >>> short(0.83412), short(1234567.0), short(15000), short(12.0), short(math.nan)
        ('0.8341', '1.23M', '15k', '12', '–')
        >>> short(0.000012)
        '1.2e-5'
    """
    if not math.isfinite(value):
        return UNKNOWN
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power * (10 if letter == "k" else 0.9995):
            return f"{_trimmed(value / power, 2 if abs(value) < 100 * power else 0)}{letter}"
    if value == int(value):
        return str(int(value))
    if abs(value) < 10.0**-digits:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{_trimmed(float(mantissa), 1)}e{int(exponent)}"
    return _trimmed(value, digits if abs(value) < 10 else 1)


def memory(size: float) -> str:
    """Write a number of bytes.

    Example:
        >>> memory(640), memory(2_560_000)
        ('640 B', '2.4 MiB')
    """
    if not math.isfinite(size):
        return UNKNOWN
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**power:
            return f"{size / 2**power:.1f} {unit}"
    return f"{size:.0f} B"


def duration(seconds: float) -> str:
    """Write a time.

    Example:
        >>> duration(4.25), duration(75), duration(7325)
        ('4.2 s', '1 min 15 s', '2 h 2 min')
    """
    if not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _trimmed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
