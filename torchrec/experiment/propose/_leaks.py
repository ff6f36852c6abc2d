"""What tells the label by itself: copies of it, numbers that decide it, and what only comes after it."""

from __future__ import annotations

import math
from enum import Enum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from torchrec.datasets.transform.columns import Array

_FEW = 20  # distinct values of which each is looked at
_FIRST = 1000
_ENOUGH = 10  # rows, of either label; with fewer nothing is said
_CHANCE = math.log(1e-6)  # less likely than that by chance


class Leak(Enum):
    """How a column tells the label; the value is the sentence that says so."""

    NAME = "its name says that it is made from the label; add it if it is known before"
    COPY = "it tells the label by itself; add it if it is known before the label is"
    OUTCOME = (
        "every row in which it is there, or is not 0, has label 1, as what only happens afterwards; "
        "add it if it is known before the label is"
    )


_NEVER = "Label 1 never comes with it: leave it out if it is only known afterwards"


def made_from_label(name: str, label: str) -> bool:
    """Say whether a name begins with that of the label, as in ``click_probability``."""
    return label.isidentifier() and name.startswith(f"{label}_")


def tells_of_label(values: pa.ChunkedArray, labels: Array) -> Leak | str:
    """Return how the values of a column tell the label alone; if they do not, what else to know, or "".

    Args:
        values: of a sample.
        labels: 0 and 1, NaN for unknown; of as many rows. With less than ten rows of either, nothing
            is said.

    Example:
        >>> label = np.arange(100) % 2
        >>> tells_of_label(pa.chunked_array([label + 3]), label)
        <Leak.COPY: 'it tells the label by itself; add it if it is known before the label is'>
        >>> tells_of_label(pa.chunked_array([np.arange(100) // 2 % 2]), label)
        ''
    """
    if pt.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pt.is_float16(values.type):  # has no kernels
        values = values.cast(pa.float32())
    if pt.is_nested(values.type):
        return ""
    known = np.isfinite(labels)
    if _first_tell_nothing(values.slice(0, _FIRST), labels[:_FIRST], known[:_FIRST]):
        return ""
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    present = _present(values, valid)
    if not _has_both(labels[known & valid]):
        # Nothing, unless there are values only where the label is 1, or something only where it is 0.
        if _only_label(valid, labels, known) == 1:
            return Leak.OUTCOME
        return _NEVER if _only_label(present, labels, known) == 0 else ""
    if _decided_by_threshold(values, labels, known & valid):
        return Leak.COPY
    if _decided_by_value(values.filter(pa.array(known)), labels[known]):
        return Leak.COPY
    only = _only_label(present, labels, known)
    if only is None:
        return ""
    return Leak.OUTCOME if only == 1 else _NEVER


def _first_tell_nothing(values: pa.ChunkedArray, labels: Array, known: Array) -> bool:
    """Say whether the first rows show that a column of many numbers tells nothing, whatever follows them."""
    if not (pt.is_floating(values.type) or pt.is_integer(values.type)):
        return False
    if len(pc.unique(values.filter(pa.array(known)))) <= _FEW + 1:
        return False
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    there = labels[_present(values, valid) & known]
    if not (_has_both(labels[known & valid]) and 0 < np.count_nonzero(there) < len(there)):
        return False
    return _lie_apart(values, labels, known & valid) is False


def _has_both(labels: Array) -> bool:
    ones = int(np.count_nonzero(labels))
    return min(ones, len(labels) - ones) >= _ENOUGH


def _decided_by_threshold(values: pa.ChunkedArray, labels: Array, chosen: Array) -> bool:
    """Say whether all numbers of one label lie below all of the other."""
    if not (pt.is_floating(values.type) or pt.is_integer(values.type)):
        return False
    # A few rows mostly tell that they do not.
    first = _lie_apart(values.slice(0, _FIRST), labels[:_FIRST], chosen[:_FIRST])
    return first is not False and bool(_lie_apart(values, labels, chosen))


def _lie_apart(values: pa.ChunkedArray, labels: Array, chosen: Array) -> bool | None:
    """Say whether the numbers of one label lie below those of the other; None without numbers of both."""
    numbers, labels = values.filter(pa.array(chosen)).to_numpy(), labels[chosen]
    if len(numbers) and np.isnan(numbers.min()):
        labels, numbers = labels[~np.isnan(numbers)], numbers[~np.isnan(numbers)]
    one, other = numbers[labels == 0], numbers[labels == 1]
    if not (len(one) and len(other)):
        return None
    return bool(one.max() < other.min() or other.max() < one.min())


def _decided_by_value(values: pa.ChunkedArray, labels: Array) -> bool:
    """Say whether each value comes with one label; no where values are many, beside the rows."""
    if len(pc.unique(values.slice(0, 1000))) > _FEW + 1:
        return False
    table = pa.table({"value": values, "label": labels}).filter(values.is_valid())
    found = table.group_by("value").aggregate([("label", "min"), ("label", "max")])
    if found.num_rows > min(_FEW, table.num_rows / 5):
        return False
    return bool(pc.all(pc.equal(found["label_min"], found["label_max"])).as_py())


def _present(values: pa.ChunkedArray, valid: Array) -> Array:
    """Say in which rows there is something: no null, zero or false, nor the more frequent of two values."""
    if pt.is_boolean(values.type):
        return _mask(values)
    if pt.is_floating(values.type) or pt.is_integer(values.type):
        numbers = pc.fill_null(values, 0).to_numpy()
        there: Array = valid & (numbers != 0) & ~np.isnan(numbers)
        return there
    if pt.is_string(values.type) or pt.is_large_string(values.type):
        if len(pc.unique(values.slice(0, 1000))) > 3:
            return valid
        counts = pc.value_counts(values.drop_null()).to_pylist()
        if len(counts) != 2:
            return valid
        usual = max(counts, key=lambda one: int(one["counts"]))["values"]
        return valid & ~_mask(pc.equal(values, usual))
    return valid


def _mask(flags: pa.ChunkedArray) -> Array:
    mask: Array = pc.fill_null(flags, False).to_numpy(zero_copy_only=False)
    return mask


def _only_label(present: Array, labels: Array, known: Array) -> float | None:
    """Return the only label of the rows in which something is; None if both come, or one by chance."""
    there = labels[present & known]
    count, rows = len(there), int(np.count_nonzero(known))
    if count < _ENOUGH or count == rows or (there != there[0]).any():
        return None
    share = np.count_nonzero(labels[known] == there[0]) / rows
    likely = share == 1 or count * math.log(max(share, 1e-300)) >= _CHANCE
    return None if likely else float(there[0])
