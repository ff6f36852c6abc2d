"""The configuration: what differs from the defaults, and all of it folded."""

from __future__ import annotations

from markupsafe import Markup

from torchrec.report.card import Card, CardFile, View, facts_html, folded
from torchrec.report.configuration import keys_of


def _draw(view: View) -> list[Card]:
    text = view.run.configuration
    if not text:
        return []
    whole = folded("experiment.yaml, with every default", Markup("<pre>{}</pre>").format(text))
    if view.experiment is None:
        about = "experiment.yaml, which this version does not read as an experiment."
        return [Card("Configuration", about, whole, wide=True)]
    changed = list(keys_of(view.experiment, changed=True).items())
    features = [one for one in changed if one[0].startswith("features.")]
    others = [one for one in changed if not one[0].startswith("features.")]
    body = Markup('<div class="columns">{}</div>').format(facts_html(others))
    if features:
        columns = Markup('<div class="columns">{}</div>').format(facts_html(features))
        body += folded(f"{len(view.experiment.features or {})} features", columns)
    about = "What differs from the defaults."
    return [Card("Configuration", about, body + whole, wide=True)]


CARDS = CardFile("configuration", 10, _draw)
