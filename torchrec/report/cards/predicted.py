"""What is predicted of each task, as its kind draws it, and the curves that training measured."""

from __future__ import annotations

from dataclasses import replace

from torchrec.report.card import Card, CardFile, View, of_task
from torchrec.report.kinds import DISPLAYS
from torchrec.report.kinds.click import curve_cards

_FIRST = (
    "predicted"  # of the curves of a task, whose names begin with its own where there are several
)


def _draw(view: View) -> list[Card]:
    curves = view.run.curves
    tasks = {} if view.predictions is None else {one.prefix: one for one in view.predictions.tasks}
    measured = [name.removesuffix(_FIRST) for name in curves if name.rpartition(".")[2] == _FIRST]
    found = []
    for prefix in dict.fromkeys([*tasks, *measured]):
        cards = DISPLAYS[tasks[prefix].kind].draw(tasks[prefix]) if prefix in tasks else []
        own = {
            name.removeprefix(prefix): x for name, x in curves.items() if name.startswith(prefix)
        }
        cards += curve_cards(own, of_task(prefix))
        found += [replace(card, task=prefix.removesuffix(".")) for card in cards]
    return found


CARDS = CardFile("predictions", 10, _draw)
