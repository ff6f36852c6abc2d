"""Learning rate, speed, and where the time goes."""

from __future__ import annotations

import math

from torchrec.report.card import Card, CardFile, View, chart_cards
from torchrec.report.cards.learning import sample_axis
from torchrec.report.charts import Axis, Chart, Series, line_chart, stacked_chart
from torchrec.runs import Run

_PHASES = ("reading", "lookup", "dense", "optimizer")


def _draw(view: View) -> list[Card]:
    run = view.run
    samples = sample_axis(run)
    rate = Series("learning rate", "train", *run.series("train", "learning_rate"))
    speed = Series("samples/s", "train", *run.series("train", "samples_per_second"))
    top = max((y for y in speed.y if math.isfinite(y)), default=1.0)
    return chart_cards(
        line_chart("Learning rate", "Of the dense layers.", [rate], x=samples, y=Axis()),
        line_chart(
            "Samples per second",
            "While training.",
            [speed],
            x=samples,
            y=Axis(bounds=(0.0, top * 1.08)),
        ),
        _phases(run, samples),
    )


def _phases(run: Run, samples: Axis) -> Chart | None:
    timed = [line for line in run.lines if line.split == "train" and line.time]
    names = list(dict.fromkeys([*_PHASES, *(name for line in timed for name in line.time)]))
    used = [name for name in names if any(line.time.get(name) for line in timed)]
    x = [line.samples for line in timed]
    totals = [max(sum(line.time.values()), 1.0) for line in timed]  # clocks overlap a little
    lines = []
    for name in used:
        shares = [
            line.time.get(name, 0.0) / total for line, total in zip(timed, totals, strict=True)
        ]
        mean = sum(shares) / len(shares)
        kind = f"phase-{names.index(name)}" if name in _PHASES else "phase-other"
        lines.append(Series(name, kind, x, shares, f"{mean:.0%}"))
    return stacked_chart(
        "Where the time goes",
        "Share of a training step.",
        lines,
        x=samples,
        y=Axis(write=lambda share: f"{share:.0%}"),
    )


CARDS = CardFile("speed", 10, _draw)
