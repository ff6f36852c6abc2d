"""What a column is to a model, decided from its statistics, its name and a sample of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from torchrec.datasets.features import (
    AnyFeature,
    DenseFeature,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
    VectorFeature,
)
from torchrec.datasets.transform.columns import TIMES, Array, read_numbers, whole
from torchrec.experiment.propose._leaks import Leak, made_from_label, tells_of_label
from torchrec.experiment.propose._roles import (
    looks_like_id,
    looks_like_number,
    looks_ordered,
)
from torchrec.experiment.propose._sizes import IdProposal, proposed_ids
from torchrec.experiment.propose._statistics import EXACT, ColumnStatistics
from torchrec.experiment.propose._times import epoch_unit

_FEW = 100  # integers of no more distinct values are categories, whatever their name
_ENOUGH = 100  # with fewer rows, a value of its own in every row says nothing
_FEW_ROWS = 10  # of a table that no id takes: nothing to save
_OFTEN = 5  # a value comes so often that its neighbours, in a quantity, would come too
_LONELY = 0.2
_LARGEST_VECTOR = 4096
_UNSURE = "A quantity by its values; if it is an id, say `type: sparse`"
_TEXT = "text"
_ORDERED = "In order of time by its name, latest last"


@dataclass(frozen=True)
class ColumnProposal:
    """What was found out about a column, and what is proposed.

    Attributes:
        name: of the column.
        seen: what was seen, in words, as "3,706 distinct, 0.2 % null".
        feature: what it is to the model; None if it is left out.
        reason: why it is left out, or what else should be known of the proposal.
        distinct: number of distinct values.
        is_time: whether it tells when a row came to be.
        gives_away: whether it seems to be made from the label.
    """

    name: str
    seen: str
    feature: AnyFeature | None = None
    reason: str = ""
    distinct: int = 0
    is_time: bool = False
    gives_away: bool = False

    @property
    def note(self) -> str:
        """What was seen, and the reason."""
        return " ".join(_sentence(part) for part in (self.seen, self.reason) if part)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def decide(
    one: ColumnStatistics, values: pa.ChunkedArray, label: str, labels: Array
) -> ColumnProposal:
    """Decide what a column is.

    Args:
        one: its statistics.
        values: those of the first rows.
        label: column or expression of the label.
        labels: of these rows, 0 and 1.
    """
    unit = _unit_of_time(one, values)
    if unit:
        purpose = "to split by it, store it as timestamps" if unit == _TEXT else "for splitting by"
        reason = f"a time ({unit}), {purpose}; as a feature, later rows lie outside what was seen"
        return ColumnProposal(one.name, _seen(one), reason=reason, is_time=unit != _TEXT)
    unusable = one.text.unconverted or _unusable(one)
    if unusable:
        return ColumnProposal(one.name, _seen(one), reason=unusable)
    told = Leak.NAME if made_from_label(one.name, label) else tells_of_label(values, labels)
    if isinstance(told, Leak):
        return ColumnProposal(one.name, _seen(one), reason=told.value, gives_away=True)
    feature, reason = _feature(one, values)
    reason = ". ".join(filter(None, [reason, told]))
    return ColumnProposal(one.name, _seen(one), feature, reason, one.distinct)


def left_out(one: ColumnStatistics, reason: str) -> ColumnProposal:
    """Return a column that others read."""
    return ColumnProposal(one.name, _seen(one), reason=reason)


def _unit_of_time(one: ColumnStatistics, values: pa.ChunkedArray) -> str | None:
    """Return how a column writes points in time, None if it does not: durations and times of day are none."""
    if one.is_list or not one.values or pt.is_duration(one.type) or pt.is_time(one.type):
        return None
    if one.kind in TIMES:
        return str(one.type)
    if one.kind in ("integers", "numbers"):
        return epoch_unit(one.name, one.minimum, one.maximum, values)
    return _TEXT if one.text.is_time else None


def _unusable(one: ColumnStatistics) -> str | None:
    """Return why a column can be no feature, None if it can."""
    if not one.name:
        return "it has no name"
    if one.kind == "other" or (one.is_list and one.kind in TIMES):
        return f"values of type {one.type} are no feature"
    if not one.values:
        return "there is no value in any row"
    if one.is_list and one.kind == "numbers" and not _are_vectors(one):
        return "lists of numbers are a feature where all have one length, up to 4,096"
    if one.distinct == 1 and not one.nulls and not one.is_list:
        return "the same value in every row"
    integral = one.kind in ("integers", "strings") and not one.is_list
    # Beyond what is counted exactly, within what the estimate may be off.
    most = one.rows if one.distinct < EXACT else 0.98 * one.rows
    if (
        integral
        and one.rows >= _ENOUGH
        and one.distinct >= most
        and not looks_like_number(one.name)
    ):
        return "a value of its own in every row"
    return None


def _feature(one: ColumnStatistics, values: pa.ChunkedArray) -> tuple[AnyFeature, str]:
    """Return the proposed feature of a column that can be one, and what should be known of it."""
    if one.kind in TIMES:
        return _dense(one, values), "In seconds"
    if one.is_list and one.kind == "numbers":
        return VectorFeature(size=one.longest, separator=one.text.separator), ""
    if one.kind == "numbers" and not _are_integers(one):
        if one.distinct == 1:  # filled with their mean, those that are missing would be the same
            return DenseFeature(fill=0.0), "One value, or none, which counts as 0"
        return _dense(one, values), ""
    if one.kind != "strings" and not one.is_list and _is_quantity(one, values):
        return _dense(one, values), "" if looks_like_number(one.name) else _UNSURE
    ids = ids_for(one.distinct, one.minimum, one.maximum, integers=one.kind != "strings")
    reason = "More distinct values than rows: some share one" if ids.rows < one.distinct else ""
    if not one.is_list and one.distinct == 1:
        reason = "One value, or none"
    if not one.is_list and one.rows >= _ENOUGH and 2 * one.distinct > one.rows:
        reason = "Most values come once: little can be learned about each"
    common: dict[str, object] = {
        "ids": ids.ids,
        "rows": ids.rows,
        "out_of_range": ids.out_of_range,
        "min_count": ids.min_count,
    }
    if not one.is_list:
        return SparseFeature.model_validate(common), reason
    if one.text.separator is not None:
        common["separator"] = one.text.separator
    if one.text.weight_separator is not None:
        common["weight_separator"] = one.text.weight_separator
    if looks_ordered(one.name):
        return SequenceFeature.model_validate(common), ". ".join(filter(None, [_ORDERED, reason]))
    return MultiHotFeature.model_validate(common), reason


def _are_vectors(one: ColumnStatistics) -> bool:
    """Say whether lists of numbers have one length."""
    return one.shortest == one.longest <= _LARGEST_VECTOR


def ids_for(distinct: int, minimum: float, maximum: float, *, integers: bool) -> IdProposal:
    """Propose how ids find their rows: `proposed_ids`, without rows that no id takes.

    Integers that start high, as years or ids from a million on, would leave the rows below them
    without an id.

    Example:
        >>> ids_for(80, 1920, 1999, integers=True).ids, ids_for(80, 0, 79, integers=True).ids
        ('vocabulary', 'plain')
        >>> ids_for(3000, 900, 4000, integers=True)
        IdProposal(ids='vocabulary', rows=3000, out_of_range=<IdPolicy.ERROR: 'error'>, min_count=2)
    """
    high = minimum > max(_FEW_ROWS, maximum / 10)
    return proposed_ids(distinct, minimum, maximum, integers=integers and not high)


def _are_integers(one: ColumnStatistics) -> bool:
    """Say whether floating-point numbers are integers that some tool turned to them, as for nulls.

    Two whole numbers are two categories, as of integers. Two fractions stay a number: ids are whole,
    and as a number nothing of the two is lost, which scaled are 0 and 1 but for a linear layer, while a
    third that comes later lies where it belongs.
    """
    if not one.whole or max(-one.minimum, one.maximum) >= 2**53:
        return False
    return bool(one.nulls) or one.distinct <= 2 or looks_like_id(one.name)


def _is_quantity(one: ColumnStatistics, values: pa.ChunkedArray) -> bool:
    """Say whether integers are numbers to compute with, no ids."""
    # Two values are two categories, whatever the name promises: of one there is nothing to compute.
    if pt.is_boolean(one.type) or one.distinct <= 2 or looks_like_id(one.name):
        return False
    if looks_like_number(one.name) or one.minimum < -1:
        return True
    if one.distinct <= _FEW:  # -1 among a few is what stands for none of them
        return False
    # Ids fill their range, or are spread over that of a hash; quantities thin out towards the top.
    span = one.maximum - one.minimum + 1
    return (one.minimum < 0 or 2 * one.distinct < span < 2**40) and not _are_codes(values)


def _are_codes(values: pa.ChunkedArray) -> bool:
    """Say whether integers come again and again while those next to them never do.

    What is counted or measured has neighbours where it is frequent; postcodes and numbers of
    devices have gaps.

    Example:
        >>> _are_codes(pa.chunked_array([[10115, 20095, 50667, 80331, 81543] * 20]))
        True
        >>> _are_codes(pa.chunked_array([[0, 1, 2, 3, 900] * 20]))
        False
    """
    numbers = read_numbers(whole(values)).present()
    found, counts = np.unique(numbers[numbers >= 0].astype(np.int64), return_counts=True)
    often = counts >= _OFTEN
    rows = int(counts[often].sum())
    if len(found) < 2 or 2 * rows < len(numbers):
        return False
    step = int(np.gcd.reduce(np.diff(found)))  # prices may all end on 0
    lonely = ~(np.isin(found - step, found) | np.isin(found + step, found))
    return bool(counts[often & lonely].sum() > _LONELY * rows)


def _dense(one: ColumnStatistics, values: pa.ChunkedArray) -> DenseFeature:
    """Return a dense feature, with the logarithm if the numbers have a long tail."""
    numbers = read_numbers(whole(values)).present()
    if len(numbers) < 3:
        return DenseFeature()
    centred = numbers - numbers.mean()
    squares = centred * centred  # a power of 3 takes as long as all else that is done to a column
    variance = float(squares.mean())
    skewness = float((squares * centred).mean()) / variance**1.5 if variance else 0.0
    return DenseFeature(log=skewness > 3)


def _seen(one: ColumnStatistics) -> str:
    """Say what was seen in a column."""
    if one.kind == "other":
        return f"{one.type}"
    measured = (one.kind == "numbers" or one.kind in TIMES) and one.distinct > _FEW
    about = "" if one.distinct < EXACT else "about "
    words = [] if measured else [f"{about}{one.distinct:,} distinct"]
    if one.kind in ("integers", "numbers") and math.isfinite(one.minimum):
        style = ",.0f" if one.whole and max(-one.minimum, one.maximum) < 1e18 else ",.4g"
        words.append(f"{one.minimum:{style}} to {one.maximum:{style}}")
    if one.is_list and one.kind == "numbers" and _are_vectors(one):
        words.append(f"{one.longest} in a row")
    elif one.is_list:
        words.append(f"{one.mean_length:.1f} in a row, {one.longest:,} at most")
    if one.nulls:
        share = 100 * one.nulls / one.rows
        words.append("all null" if one.nulls == one.rows else f"{_percent(share)} null")
    return ", ".join(words)


def _percent(share: float) -> str:
    return f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"
