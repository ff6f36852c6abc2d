"""The cards of the page, one file each: a new one needs no list to be entered in.

A file declares ``CARDS``, a `torchrec.report.card.CardFile`.
"""

from __future__ import annotations

import importlib
import pkgutil

from torchrec.report.card import Card, CardFile, Part, View


def card_files() -> list[CardFile]:
    """Return what the files of this folder declare, in the order of the page."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        declared = importlib.import_module(f"{__name__}.{module.name}").CARDS
        if not isinstance(declared, CardFile):
            raise TypeError(
                f"`CARDS` of {__name__}.{module.name} should be a CardFile. Received {declared!r}."
            )
        found.append(declared)
    return sorted(found, key=lambda one: one.position)


def draw(view: View, part: Part) -> list[Card]:
    """Return the cards of a part of the page: those of no task, then task by task, wide ones behind the others."""
    found = [card for one in card_files() if one.part == part for card in one.draw(view)]
    tasks = list(dict.fromkeys(["", *(card.task for card in found)]))
    return sorted(found, key=lambda card: (tasks.index(card.task), card.wide))
