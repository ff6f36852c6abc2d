"""What has to be the same on all ranks in a step, or what they send one another would not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

__all__ = ["NUM_TERMS", "Terms", "check_terms", "number_of"]


class Terms(NamedTuple):
    """What ranks tell one another in each step, as it may change while a program runs.

    Attributes:
        has_graph: whether a backward pass may follow.
        rounds: of the exchanges that an update takes.
        collects: whether gradients wait for a later update, as within `accumulate()`.
        trained: which tables are not frozen, by `number_of`.
        dtype: of vectors, by `number_of`.
    """

    has_graph: bool
    rounds: int
    collects: bool
    trained: int
    dtype: int


# What all ranks should do, in the order of the terms.
_SHOULD = (
    "call a collection within `torch.no_grad()`, or none. Received `torch.is_grad_enabled()` {}",
    "give tables whose columns are on several ranks the same optimizers, those too that have nothing of them. "
    "Received rules that ask for {} sums over rows",
    "be within `accumulate()`, or none. Received {}",
    "train the same tables. Received `requires_grad` that differs, of numbers {}",
    "cast their tables to the same dtype. Received different ones, of numbers {}",
)
NUM_TERMS = len(_SHOULD)


def number_of(what: bytes) -> int:
    """Return a number that hardly anything else has, the same in every process."""
    return crc32(what)


def check_terms(of_ranks: Sequence[Sequence[int]]) -> None:
    """Refuse a step whose terms differ between ranks; all ranks call this, with the same terms.

    Args:
        of_ranks: for each rank, the numbers of its `Terms`.

    Raises:
        ValueError: naming the first one that differs.

    Example:
        >>> check_terms([[1, 0, 0, 3, 5], [0, 0, 0, 3, 5]])
        Traceback (most recent call last):
        ValueError: All ranks should call a collection within `torch.no_grad()`, or none. Received \
`torch.is_grad_enabled()` [1, 0], by rank.
    """
    if all(numbers == of_ranks[0] for numbers in of_ranks):
        return
    for should, numbers in zip(_SHOULD, zip(*of_ranks, strict=True), strict=True):
        if len(set(numbers)) > 1:
            raise ValueError(f"All ranks should {should.format(list(numbers))}, by rank.")
