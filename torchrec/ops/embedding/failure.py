"""Errors of a look-up, with the names that go with the numbers."""

from __future__ import annotations

from typing import NoReturn

from torchrec.errors import IdOutOfRangeError
from torchrec.ops.embedding.spec import FIELD, RECORD


def names_of_slot(names: str, slot: int) -> tuple[str, str]:
    """Return the names of the table and the feature of a slot, out of ``LookupSpec.names``.

    Who calls an operator without names is told the number of the slot.
    """
    records = names.split(RECORD)
    table, separator, feature = records[slot].partition(FIELD) if slot < len(records) else ("",) * 3
    return (table, feature) if separator else (f"of slot {slot}", f"of slot {slot}")


def raise_bad_id(names: str, slot: int, sample: int, id: int, rows: int) -> NoReturn:
    """Raise for an id that the policy ``error`` refuses.

    Args:
        names: ``LookupSpec.names``.
        slot: number of the slot.
        sample: bag of the id.
        id: the id.
        rows: valid ids are ``0 <= id < rows``.
    """
    table, feature = names_of_slot(names, slot)
    raise IdOutOfRangeError(table, feature, sample, id, rows)


def raise_bad_bag(names: str, slot: int, sample: int, length: int) -> NoReturn:
    """Raise for a bag that pooling ``NONE`` refuses."""
    table, feature = names_of_slot(names, slot)
    raise ValueError(
        f"With pooling NONE, each sample of feature '{feature}' of table '{table}' should hold "
        f"exactly one id. Received {length} in sample {sample}."
    )
