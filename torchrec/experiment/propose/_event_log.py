"""Whether rows are events: of users who come again and again, with items, at times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from torchrec.datasets.features import SparseFeature
from torchrec.experiment.propose._decide import ColumnProposal
from torchrec.experiment.propose._roles import word_set, words_of

_USER = word_set(
    "user users uid visitor visitors customer customers client buyer shopper member reader viewer "
    "player listener account person"
)
_ITEM = word_set(
    "item items product products movie movies video videos ad ads article articles news song songs track "
    "tracks book books listing listings sku asin isbn content post posts game games recipe recipes offer offers"
)
_OF_IDS = word_set("id ids no key code hash")
_SEVERAL = 3  # rows a user, in the mean
_FEWEST_ITEMS = 20  # of fewer, a history tells little beyond the user


class EventLog(NamedTuple):
    """The columns of a log of events.

    Attributes:
        user: who.
        item: what.
        time: when.
    """

    user: str
    item: str
    time: str


def find_event_log(
    columns: Sequence[ColumnProposal], sample: pa.Table, rows: int
) -> EventLog | None:
    """Return the columns of users, items and times if rows are events; None if they are none.

    Names tell ids of users and of items; of several columns the one with the most distinct values is
    taken. A time has to differ between the rows of a user.

    Args:
        columns: what was decided about each.
        sample: the first rows.
        rows: of all data.
    """
    times = list(filter(attrgetter("is_time"), columns))
    if not times:
        return None
    users = [one for one in _ids(columns, _USER) if _SEVERAL * one.distinct <= rows]
    items = [one for one in _ids(columns, _ITEM) if one.distinct >= _FEWEST_ITEMS]
    if not (users and items):
        return None
    user, item = (max(found, key=lambda one: one.distinct).name for found in (users, items))
    times.sort(key=lambda one: -pc.count_distinct(sample[one.name]).as_py())
    time = next((one.name for one in times if _differs(sample, user, one.name)), None)
    return None if time is None else EventLog(user, item, time)


def name_of_history(item: str, taken: Iterable[str]) -> str:
    """Return a name for the column of the items before a row, which no column has.

    Example:
        >>> name_of_history("productId", []), name_of_history("asin", ["asin_history"])
        ('product_history', 'asin_history_')
    """
    name = "_".join(sorted(_words(item) & _ITEM)) + "_history"
    while name in taken:
        name += "_"
    return name


def _ids(columns: Sequence[ColumnProposal], words: frozenset[str]) -> list[ColumnProposal]:
    """Return columns of ids that are called by some words, and by nothing else."""
    return [
        one
        for one in columns
        if isinstance(one.feature, SparseFeature)
        and _words(one.name) & words
        and not _words(one.name) - words - _OF_IDS
    ]


def _words(name: str) -> frozenset[str]:
    """Return the words of a name, ``item`` for ``itemid``."""
    short = {word: word.removesuffix("id") for word in words_of(name)}
    return frozenset(short[word] if short[word] in _USER | _ITEM else word for word in short)


def _differs(sample: pa.Table, user: str, time: str) -> bool:
    """Say whether most users with several rows have several times; also where there are no such users."""
    rows = sample.select([user, time]).unify_dictionaries()
    counts = rows.group_by(user).aggregate([(time, "count"), (time, "count_distinct")])
    several = counts.filter(pc.greater(counts[f"{time}_count"], 1))
    differ = pc.greater(several[f"{time}_count_distinct"], 1)
    return 2 * (pc.sum(differ).as_py() or 0) >= len(differ)
