"""The processes that trained together: what each had, and how long it waited for the others."""

from __future__ import annotations

from torchrec.report.card import Card, CardFile, View, table_html
from torchrec.report.scale import UNKNOWN, duration, memory, short

_COLUMNS = (
    ("seconds", "training", duration),
    ("waited", "waited", duration),
    ("sent_bytes", "sent a step", memory),
    ("messages", "messages a step", short),
    ("layer_bytes", "layers", memory),
    ("table_bytes", "tables", memory),
    ("peak_rss_bytes", "peak memory", memory),
)


def _draw(view: View) -> list[Card]:
    ranks = view.run.ranks
    if not ranks:
        return []
    rows = [
        (
            f"rank {number}",
            [write(rank[key]) if key in rank else UNKNOWN for key, _, write in _COLUMNS],
        )
        for number, rank in enumerate(ranks)
    ]
    body = table_html(["", *(name for _, name, _ in _COLUMNS)], rows)
    sizes = [rank.get("table_bytes", 0.0) for rank in ranks]
    balance = max(sizes) * len(sizes) / sum(sizes) if sum(sizes) else 1.0
    about = (
        f"{len(ranks)} processes trained together. The largest part of the tables is {balance:.2f} times the "
        "mean. Waited: before steps, for the rank that was last. Sent: ids, vectors and their gradients, to "
        "all other ranks together; gradients of layers, of this size, are added up beside. Of a run that was resumed, "
        "all is since then."
    )
    found = [Card("Ranks", about, body, wide=True)]
    if view.run.plan:
        where = [(name, [text]) for name, text in view.run.plan.items()]
        about = "Which ranks had what of each table."
        found.append(Card("Plan", about, table_html(["table", "where"], where)))
    return found


CARDS = CardFile("speed", 20, _draw)
