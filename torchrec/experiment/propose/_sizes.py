"""How large tables should be: rows, dimension, and how ids find their rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torchrec.datasets.features import IdSource
from torchrec.types import IdPolicy

DIM_RULE = (
    "6 x distinct ** 0.25 (Wang et al., Deep & Cross Network, 2017), averaged over the tables, as a "
    "power of two: all tables of a model have one dimension"
)
_MOST_PLAIN = 10_000
_MOST_WORDS = 1_000_000
_MOST_ROWS = 1 << 24
_SMALL, _MANY = 20_000, 2_000_000  # rows of training data
_MOST_NUMBERS = 1 << 25  # in all tables, for a pass over them a step


@dataclass(frozen=True)
class IdProposal:
    """How the ids of a feature find their rows.

    Attributes:
        ids: how, as a feature says it.
        rows: number of rows.
        out_of_range: what becomes of other ids where they are ``"plain"``.
        min_count: how often an id should come to have a row of its own in a vocabulary.
    """

    ids: IdSource
    rows: int
    out_of_range: IdPolicy = IdPolicy.ERROR
    min_count: int = 1


def proposed_ids(distinct: int, minimum: float, maximum: float, *, integers: bool) -> IdProposal:
    """Propose how ids find their rows.

    Small integers that fill their range choose rows themselves. Up to a million distinct ids get a
    vocabulary, in which those that came once share the row of unknown ids: so that row learns what
    a rare id is like. More are hashed, into twice as many rows as there are ids, rounded down to a
    power of two, so that at most half of them meet another one.

    Args:
        distinct: number of distinct ids.
        minimum: smallest id.
        maximum: largest id.
        integers: whether ids are integers.

    Example:
        >>> proposed_ids(21, 0, 20, integers=True)
        IdProposal(ids='plain', rows=21, out_of_range=<IdPolicy.UNKNOWN: 'unknown'>, min_count=1)
        >>> proposed_ids(3706, 1, 3952_000, integers=True).rows
        3800
        >>> proposed_ids(3_000_000, 0, 0, integers=False).rows
        4194304
    """
    if integers and minimum >= 0 and maximum < min(_MOST_PLAIN, 2 * distinct + 10):
        return IdProposal("plain", int(maximum) + 1, out_of_range=IdPolicy.UNKNOWN)
    if distinct <= _MOST_WORDS:
        return IdProposal("vocabulary", round_up(distinct), min_count=2 if distinct >= 100 else 1)
    rows = min(_MOST_ROWS, 1 << int(math.log2(2 * distinct)))
    return IdProposal("hash", rows)


def round_up(number: int) -> int:
    """Round up to two digits.

    Example:
        >>> round_up(3706), round_up(99), round_up(100_001)
        (3800, 99, 110000)
    """
    unit = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // unit) * unit


def proposed_dim(distinct: Iterable[int]) -> int:
    """Propose one dimension for tables of so many distinct ids, from 8 to 64; 16 if there are none.

    Wang et al., "Deep & Cross Network for Ad Click Predictions" (2017), give each feature
    ``6 * distinct ** 0.25``. Our models need one dimension, so that is averaged.

    Example:
        >>> proposed_dim([2, 21, 3706])
        16
    """
    rules = [6 * count**0.25 for count in distinct]
    if not rules:
        return 16
    return min(64, max(8, 1 << round(math.log2(sum(rules) / len(rules)))))


def proposed_batch_size(rows: int) -> int:
    """Propose a batch size, from 128 to 4,096, for 64 steps or more in a pass over so many rows.

    Example:
        >>> proposed_batch_size(10_000), proposed_batch_size(60_000), proposed_batch_size(10**8)
        (128, 512, 4096)
    """
    return min(4096, max(128, 1 << int(math.log2(max(1, rows / 64)))))


def proposed_epochs(rows: int) -> int:
    """Propose at most how many passes over so many rows, to be ended early when they do not help.

    Example:
        >>> proposed_epochs(10_000), proposed_epochs(3_000_000), proposed_epochs(10**8)
        (30, 3, 1)
    """
    return 30 if rows < _MANY else 3 if rows < 20_000_000 else 1


def proposed_decay(rows: int) -> float:
    """Propose the L2 penalty of the tables for so many rows of training data.

    The loss is a mean over samples, so a penalty that is right for a number of samples is half as
    large for twice as many; more than .05 helped nowhere. Where few passes are made, there is little to
    hold back, and a penalty slows learning down. `docs/defaults.md` has the figures.

    Example:
        >>> proposed_decay(10_000), proposed_decay(600_000), proposed_decay(10**8)
        (0.05, 0.01, 0.0)
    """
    if rows >= _MANY:
        return 0.0
    return float(f"{min(0.05, 8_000 / max(1, rows)):.1g}")


def is_small(rows: int) -> bool:
    """Whether a pass has too few steps for batch normalisation and for tables that start near zero."""
    return rows < _SMALL


def updates_all_rows(rows: Iterable[int], dim: int) -> bool:
    """Whether a step can afford to update all rows of tables with so many: in up to about 20 ms.

    Example:
        >>> updates_all_rows([100_000] * 26, 16), updates_all_rows([40_000_000], 16)
        (False, False)
        >>> updates_all_rows([6_040, 3_706], 32)
        True
    """
    return sum(rows) * dim <= _MOST_NUMBERS
