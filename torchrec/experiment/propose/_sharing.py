"""Which features should share a table: a column of ids, and lists of the same ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchrec.datasets.features import AnyFeature, MultiHotFeature, SequenceFeature, SparseFeature
from torchrec.experiment.propose._decide import ColumnProposal, ids_for
from torchrec.experiment.propose._roles import LIST_WORDS, table_name, words_of
from torchrec.experiment.propose._statistics import ColumnStatistics

_FEWEST = 100  # ids of fewer values meet by chance: every small range begins with 0, 1, 2
_CONTAINED = 0.9


def share_tables(
    columns: Sequence[ColumnProposal], counted: Sequence[ColumnStatistics]
) -> list[ColumnProposal]:
    """Let lists share the table of the column whose ids they hold, where names and values say so.

    Args:
        columns: what was decided about each.
        counted: their statistics, in the same order.

    Returns:
        The columns, in their order.
    """
    found = list(columns)
    for at, column in enumerate(columns):
        if not _may_give_a_table(column):
            continue
        lists = [
            other
            for other, feature in enumerate(found)
            if _holds_ids_of(feature, column, counted[other], counted[at])
        ]
        kind = type(found[lists[0]].feature) if lists else None
        same = [other for other in lists if type(found[other].feature) is kind]  # one pooling
        if same:
            members = [at, *same]
            options = _options(column.name, [counted[member] for member in members])
            for member in members:
                found[member] = _sharing(found[member], column.name, options)
    return found


def _may_give_a_table(column: ColumnProposal) -> bool:
    if not isinstance(column.feature, SparseFeature) or column.distinct <= _FEWEST:
        return False
    return "." not in column.name and table_name(column.name) == column.name


def _holds_ids_of(
    one: ColumnProposal,
    column: ColumnProposal,
    of_list: ColumnStatistics,
    of_column: ColumnStatistics,
) -> bool:
    """Say whether a list holds what another column does, and has no table yet."""
    feature = one.feature
    if not isinstance(feature, MultiHotFeature | SequenceFeature) or feature.table is not None:
        return False
    if one.distinct <= _FEWEST or not _have_one_kind([of_list, of_column]):
        return False
    shared = _singular(one.name) & _singular(column.name)
    return bool(shared - LIST_WORDS) and of_list.overlap(of_column) >= _CONTAINED


def _have_one_kind(columns: Sequence[ColumnStatistics]) -> bool:
    """Say whether ids are of one kind; the parts of strings are of that of a column of integers."""
    return len({one.kind for one in columns}) == 1 or all(one.holds_integers for one in columns)


def _singular(name: str) -> frozenset[str]:
    return frozenset(word.removesuffix("s") for word in words_of(name))


def _options(table: str, members: Sequence[ColumnStatistics]) -> dict[str, object]:
    """Return what all features of a table have to agree on."""
    first, *others = members
    integers = all(one.holds_integers for one in members)
    ids = ids_for(
        first.distinct_with(others),
        min(one.minimum for one in members),
        max(one.maximum for one in members),
        integers=integers and first.kind == "integers",
    )
    return {
        "table": table,
        "ids": ids.ids,
        "rows": ids.rows,
        "out_of_range": ids.out_of_range,
        "min_count": ids.min_count,
    }


def _sharing(column: ColumnProposal, table: str, options: dict[str, object]) -> ColumnProposal:
    assert column.feature is not None
    feature: AnyFeature = column.feature.model_copy(update=options)
    if column.name == table:
        return replace(column, feature=feature)
    reason = f"Ids of `{table}`, whose table it shares"
    return replace(column, feature=feature, reason=". ".join(filter(None, [column.reason, reason])))
