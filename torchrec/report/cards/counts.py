"""What was counted on the way: ids hashed, unknown, missing."""

from __future__ import annotations

from markupsafe import Markup

from torchrec.report.card import Card, CardFile, View, facts_html
from torchrec.runs import Run

_SHOWN = 7  # the rest unfolds


def _draw(view: View) -> list[Card]:
    if not view.run.lines:
        return []
    counts = _counts(view.run)
    body = (
        facts_html(counts, _SHOWN)
        if counts
        else Markup('<p class="none">None: every value was taken as it is.</p>')
    )
    about = "Values in the training data that a policy took care of."
    return [Card("Counted on the way", about, body)]


def _counts(run: Run) -> list[tuple[str, str]]:
    totals: dict[str, float] = {}
    for line in run.lines:
        if line.split == "train":
            for name, count in line.ids.items():
                totals[name] = totals.get(name, 0.0) + count
    return [
        (name, f"{count:,.0f}")
        for name, count in sorted(totals.items(), key=lambda item: -item[1])
        if count
    ]


CARDS = CardFile("speed", 20, _draw)
