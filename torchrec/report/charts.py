"""Charts as inline SVG: styled by the page, readable without scripts.

Colours are classes (``train``, ``valid`` ...), so that one drawing serves light, dark and print. What
the pointer shows is worked out here as well: the script of the page only looks for what is nearest.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from torchrec.report.scale import Scale, clipped, extent, short

WIDTH, HEIGHT = 356.0, 216.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 34.0
_ROW = 19.0  # of a chart of intervals
_LONGEST_NAME = 24  # characters beside a row
_MOST_POINTS = 300
_FEW_POINTS = 25  # so few are drawn as dots as well

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A line: its name, its class in the style sheet, its points, and what the legend adds."""

    name: str
    kind: str
    x: Sequence[float]
    y: Sequence[float]
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """A row of a chart of intervals: name, value, interval (NaN: unknown), and what hovering adds."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing, and what stands around it."""

    title: str
    about: str
    svg: Markup
    legend: list[tuple[str, str]]  # class, name


@dataclass(frozen=True)
class Reference:
    """A level to compare with, as a dashed line: its name, where it is, its class in the style sheet."""

    name: str
    value: float
    kind: str = "best"


@dataclass(frozen=True)
class Mark:
    """A place along the horizontal axis that matters: what is there, and up to where if it is a range."""

    name: str
    x: float
    until: float | None = None


@dataclass(frozen=True)
class Axis:
    """What is along one side: its label, how its numbers are written, and its bounds if fixed."""

    label: str = ""
    write: Format = short
    bounds: tuple[float, float] | None = None


def line_chart(
    title: str,
    about: str,
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    diagonal: bool = False,
    filled: bool = False,
    references: Sequence[Reference] = (),
    marks: Sequence[Mark] = (),
) -> Chart | None:
    """Draw lines; where a value is NaN or infinite a line has a gap, and it ends at the bounds.

    Args:
        title: the heading.
        about: one sentence on how to read it.
        series: the lines. Those without a finite value are left out.
        x: the horizontal axis.
        y: the vertical axis.
        diagonal: draw the line on which ``y`` equals ``x``.
        filled: fill the area below each line.
        references: levels within the bounds, drawn and named; those beyond are only named.
        marks: what happened on the way, and stretches of it.

    Returns:
        The chart, or None if there is nothing to draw.
    """
    series = [thin(line) for line in series if any(map(math.isfinite, line.y))]
    if not series:
        return None
    x_bounds = x.bounds or extent([value for line in series for value in line.x], 0.0)
    y_bounds = y.bounds or extent([value for line in series for value in line.y])
    across, up = _scales(x_bounds, y_bounds)
    parts = [*_stretches(marks, across, up), _axes(across, up, x, y)]
    parts += _references(references, across, up)
    parts += _moments(marks, across, up)
    if diagonal:
        low, high = max(x_bounds[0], y_bounds[0]), min(x_bounds[1], y_bounds[1])
        path = f"M{across(low):.1f},{up(low):.1f}L{across(high):.1f},{up(high):.1f}"
        parts.append(f'<path class="ideal" d="{path}"/>')
    legend = []
    for line in series:
        visible = clipped(list(zip(line.x, line.y, strict=True)), *y_bounds)
        points = [None if point is None else (across(point[0]), up(point[1])) for point in visible]
        if filled:
            parts.append(f'<path class="area {line.kind}" d="{_area(points, up(y_bounds[0]))}"/>')
        parts.append(f'<path class="line {line.kind}" d="{_path(points)}"/>')
        drawn = [point for point in points if point]
        legend += _legend([line if drawn else replace(line, note="(beyond the bounds)")])
        if len(drawn) <= _FEW_POINTS or not _joined(points):
            parts += [
                f'<circle class="dot {line.kind}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>'
                for a, b in drawn
            ]
    hover = _hover(series, across, up, x, y)
    legend += [
        (f"reference {level.kind}", f"{level.name} {y.write(level.value)}{_beyond(level, up)}")
        for level in references
    ]
    legend += [("stretch", mark.name) for mark in marks if mark.until is not None]
    return Chart(title, about, _svg(title, parts, hover), legend)


def interval_chart(
    title: str,
    about: str,
    rows: Sequence[Estimate],
    *,
    x: Axis,
    reference: float | None = None,
    kind: str = "train",
) -> Chart | None:
    """Draw estimates below one another, each a dot on its interval.

    Args:
        title: the heading.
        about: one sentence on how to read it.
        rows: the estimates, from the top. Those that are not finite are left out.
        x: the axis; its bounds default to what holds all intervals.
        reference: a value to compare with. Default none.
        kind: class of the dots in the style sheet.

    Returns:
        The chart, or None if there is nothing to draw.
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return None
    height = _TOP + _BOTTOM + _ROW * len(rows)
    ends = [
        value for row in rows for value in (row.value, row.low, row.high) if math.isfinite(value)
    ]
    bounds = x.bounds or extent([*ends, *([] if reference is None else [reference])])
    names = [
        row.name if len(row.name) <= _LONGEST_NAME else f"{row.name[: _LONGEST_NAME - 1]}…"
        for row in rows
    ]
    left = min(18 + 6.6 * max(map(len, names)), WIDTH * 0.45)
    across = Scale(*bounds, left, WIDTH - _RIGHT)
    foot = height - _BOTTOM
    parts = [
        f'<path class="grid" d="M{across(value):.1f},{_TOP:.1f}V{foot:.1f}"/>'
        f'<text class="tick" x="{across(value):.1f}" y="{foot + 14:.1f}" text-anchor="middle">'
        f"{Markup.escape(x.write(value))}</text>"
        for value in across.ticks(6)
    ]
    if reference is not None and bounds[0] <= reference <= bounds[1]:
        parts.append(f'<path class="ideal" d="M{across(reference):.1f},{_TOP:.1f}V{foot:.1f}"/>')
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        place = _TOP + _ROW * (number + 0.5)
        parts.append(_interval(row, name, place, across, bounds, x, kind))
    parts.append(
        f'<text class="axis-label" x="{(across.start + across.end) / 2:.1f}" y="{foot + 29:.1f}" '
        f'text-anchor="middle">{Markup.escape(x.label)}</text>'
    )
    return Chart(title, about, _svg(title, parts, None, height), [])


def _interval(
    row: Estimate,
    name: str,
    place: float,
    across: Scale,
    bounds: tuple[float, float],
    x: Axis,
    kind: str,
) -> str:
    """Draw one estimate; its numbers are shown where the pointer rests."""
    low, high = (min(max(value, bounds[0]), bounds[1]) for value in (row.low, row.high))
    reach = (
        f'<path class="reach {kind}" d="M{across(low):.1f},{place:.1f}H{across(high):.1f}"/>'
        if math.isfinite(row.low) and math.isfinite(row.high)
        else ""
    )
    text = f"{row.name}: {x.write(row.value)}"
    if reach:
        text += f" [{x.write(row.low)}, {x.write(row.high)}]"
    value = min(max(row.value, bounds[0]), bounds[1])
    return (
        f"<g><title>{Markup.escape(text)}{Markup.escape(row.note and f', {row.note}')}</title>"
        f'<text class="name" x="{across.start - 8:.1f}" y="{place + 3.8:.1f}" text-anchor="end">'
        f"{Markup.escape(name)}</text>{reach}"
        f'<circle class="dot {kind}" cx="{across(value):.1f}" cy="{place:.1f}" r="3.5"/></g>'
    )


def stacked_chart(
    title: str, about: str, series: Sequence[Series], *, x: Axis, y: Axis
) -> Chart | None:
    """Draw shares of a whole on top of each other; all series have the same ``x``.

    Returns:
        The chart, or None if there is nothing to draw.
    """
    series = [thin(line) for line in series]
    if not series or not series[0].x:
        return None
    # The first measurement holds from the start on.
    series = [replace(s, x=[0.0, *s.x], y=[s.y[0], *s.y]) for s in series]
    across, up = _scales(x.bounds or extent(series[0].x, 0.0), y.bounds or (0.0, 1.0))
    below = [0.0] * len(series[0].x)
    parts = []
    for line in series:
        above = [a + (b if math.isfinite(b) else 0.0) for a, b in zip(below, line.y, strict=True)]
        top = [(across(a), up(b)) for a, b in zip(line.x, above, strict=True)]
        bottom = [(across(a), up(b)) for a, b in zip(line.x, below, strict=True)]
        outline = "L".join(f"{a:.1f},{b:.1f}" for a, b in [*top, *reversed(bottom)])
        parts.append(f'<path class="layer {line.kind}" d="M{outline}Z"/>')
        below = above
    parts.append(_axes(across, up, x, y, grid=False))
    hover = _hover(series, across, up, x, y, marks=False)
    return Chart(title, about, _svg(title, parts, hover), _legend(series))


def _beyond(level: Reference, up: Scale) -> str:
    """Say where a level is that is not within the bounds."""
    if up.low <= level.value <= up.high:
        return ""
    return " (further up)" if level.value > up.high else " (further down)"


def _references(references: Sequence[Reference], across: Scale, up: Scale) -> list[str]:
    return [
        f'<path class="reference {level.kind}" d="M{across.start:.1f},{up(level.value):.1f}H{across.end:.1f}"/>'
        for level in references
        if up.low <= level.value <= up.high
    ]


def _stretches(marks: Sequence[Mark], across: Scale, up: Scale) -> list[str]:
    """Shade what has an end."""
    return [
        f'<path class="stretch" d="M{across(mark.x):.1f},{up.end:.1f}H{across(mark.until):.1f}'
        f'V{up.start:.1f}H{across(mark.x):.1f}Z"/>'
        for mark in marks
        if mark.until is not None
    ]


def _moments(marks: Sequence[Mark], across: Scale, up: Scale) -> list[str]:
    """Draw a line with its name at what has none."""
    parts = []
    for mark in marks:
        if mark.until is None and across.low <= mark.x <= across.high:
            place = across(mark.x)
            late = place > (across.start + across.end) / 2
            anchor, beside = ("end", place - 4) if late else ("start", place + 4)
            parts.append(
                f'<path class="moment" d="M{place:.1f},{up.end:.1f}V{up.start:.1f}"/>'
                f'<text class="tick" x="{beside:.1f}" y="{up.end + 8:.1f}" text-anchor="{anchor}">'
                f"{Markup.escape(mark.name)}</text>"
            )
    return parts


def _legend(series: Sequence[Series]) -> list[tuple[str, str]]:
    return [(line.kind, f"{line.name} {line.note}".strip()) for line in series]


def thin(line: Series) -> Series:
    """Keep at most 300 points: means of neighbours, as a screen shows no more.

    Example:
        >>> dense = Series("loss", "train", list(range(1000)), [0.5] * 1000)
        >>> len(thin(dense).x)
        250
    """
    stride = math.ceil(len(line.x) / _MOST_POINTS)
    if stride <= 1:
        return line
    x, y = [], []
    for start in range(0, len(line.x), stride):
        part = line.x[start : start + stride]
        finite = [value for value in line.y[start : start + stride] if math.isfinite(value)]
        x.append(part[-1])
        y.append(sum(finite) / len(finite) if finite else math.nan)
    return replace(line, x=x, y=y)


def _scales(x: tuple[float, float], y: tuple[float, float]) -> tuple[Scale, Scale]:
    return Scale(*x, _LEFT, WIDTH - _RIGHT), Scale(*y, HEIGHT - _BOTTOM, _TOP)


def _axes(across: Scale, up: Scale, x: Axis, y: Axis, grid: bool = True) -> str:
    parts = []
    for value in up.ticks(5):
        if grid:
            line = f"M{across.start:.1f},{up(value):.1f}H{across.end:.1f}"
            parts.append(f'<path class="grid" d="{line}"/>')
        parts.append(
            f'<text class="tick" x="{across.start - 6:.1f}" y="{up(value) + 3.6:.1f}" '
            f'text-anchor="end">{Markup.escape(y.write(value))}</text>'
        )
    foot = up.start
    ticks = across.ticks(4)
    for value in ticks:
        place = across(value)
        anchor = "end" if place > across.end - 12 else "middle"
        place = min(place, across.end + 6) if anchor == "end" else place
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{foot + 14:.1f}" text-anchor="{anchor}">'
            f"{Markup.escape(x.write(value))}</text>"
        )
    middle = (across.start + across.end) / 2
    parts.append(
        f'<path class="axis" d="M{across.start:.1f},{foot:.1f}H{across.end:.1f}"/>'
        f'<text class="axis-label" x="{middle:.1f}" y="{foot + 29:.1f}" text-anchor="middle">'
        f"{Markup.escape(x.label)}</text>"
    )
    return "".join(parts)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    commands, pen_down = [], False
    for point in points:
        if point is None:
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{point[0]:.1f},{point[1]:.1f}")
        pen_down = True
    return "".join(commands)


def _area(points: Sequence[tuple[float, float] | None], foot: float) -> str:
    drawn = [point for point in points if point]
    top = "L".join(f"{a:.1f},{b:.1f}" for a, b in drawn)
    return f"M{drawn[0][0]:.1f},{foot:.1f}L{top}L{drawn[-1][0]:.1f},{foot:.1f}Z"


def _joined(points: Sequence[tuple[float, float] | None]) -> bool:
    """Tell whether any two neighbours are both there: otherwise lines show nothing."""
    return any(a and b for a, b in itertools.pairwise(points))


def _hover(
    series: Sequence[Series], across: Scale, up: Scale, x: Axis, y: Axis, marks: bool = True
) -> str:
    """List, for each ``x``: its place, its text, and (class, name, text, place) of each line there."""
    found: dict[float, list[tuple[str, str, str, float | None]]] = {}
    for line in series:
        for a, b in zip(line.x, line.y, strict=True):
            if math.isfinite(b):
                place = round(up(b), 1) if marks and up.low <= b <= up.high else None
                found.setdefault(a, []).append((line.kind, line.name, y.write(b), place))
    label = f" {x.label.split(' (')[0]}" if x.label else ""
    return json.dumps(
        [[round(across(a), 1), f"{x.write(a)}{label}", rows] for a, rows in sorted(found.items())],
        separators=(",", ":"),
        ensure_ascii=False,
    )


def _svg(title: str, parts: Sequence[str], hover: str | None, height: float = HEIGHT) -> Markup:
    body = "".join(parts)
    shown = "" if hover is None else f' data-hover="{Markup.escape(hover)}"'
    return Markup(
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{Markup.escape(title)}"'
        f"{shown}>{body}</svg>"
    )
