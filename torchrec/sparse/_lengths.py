"""Lengths and offsets of bags: what a JaggedTensor and the record of a KeyedJaggedTensor have in common."""

from __future__ import annotations

from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops.jagged import offsets_to_lengths
from torchrec.ops.jagged.schema import lengths_to_offsets  # the operator itself: bags are checked


def number_in(tensor: Tensor) -> int:
    """Return the one number in a tensor. To torch.export it is a number yet to come, which ``int()`` would not give."""
    return tensor.item()  # type: ignore[return-value]


class BagLengths:
    """How long bags are, and where each starts. One of the two is given; the other is computed when it is asked for.

    What was computed is kept, but for while a graph is traced: it would change the inputs of the graph, and make the
    next call compile again.
    """

    _lengths: Tensor | None
    _offsets: Tensor | None
    # Which of the two was computed: only what was given makes up the structure of a pytree.
    _computed: str | None = None

    def lengths(self) -> Tensor:
        """Return the number of values of each bag: ``[B]``, or ``[F * B]`` of F keys."""
        lengths = self._lengths
        if lengths is None:
            assert self._offsets is not None
            lengths = offsets_to_lengths(self._offsets)
            if not is_compiling():
                self._lengths, self._computed = lengths, "lengths"
        return lengths

    def lengths_or_none(self) -> Tensor | None:
        """Return the lengths if they were given or asked for before, or None."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Return where each bag starts in the values, and the end of the last: one number more than lengths."""
        offsets = self._offsets
        if offsets is None:
            assert self._lengths is not None
            offsets = lengths_to_offsets(self._lengths)
            if not is_compiling():
                self._offsets, self._computed = offsets, "offsets"
        return offsets

    def offsets_or_none(self) -> Tensor | None:
        """Return the offsets if they were given or asked for before, or None."""
        return self._offsets


def bounds_given(bags: BagLengths) -> tuple[str, Tensor]:
    """Return what bags were built with: "lengths", or "offsets" where these alone were given; and the tensor."""
    lengths, offsets = given_or_none(bags)
    if lengths is not None:
        return "lengths", lengths
    assert offsets is not None
    return "offsets", offsets


def given_or_none(bags: BagLengths) -> tuple[Tensor | None, Tensor | None]:
    """Return lengths and offsets, each only if it was given."""
    lengths = None if bags._computed == "lengths" else bags._lengths
    offsets = None if bags._computed == "offsets" else bags._offsets
    return lengths, offsets


def bounds_as(bags: BagLengths, name: str) -> Tensor:
    """Return "lengths" or "offsets", and leave no trace of having computed them."""
    held = bags._lengths if name == "lengths" else bags._offsets
    if held is not None:
        return held
    given, bounds = bounds_given(bags)
    return lengths_to_offsets(bounds) if given == "lengths" else offsets_to_lengths(bounds)


def bound_pairs(into: BagLengths, bags: BagLengths) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors that ``into`` holds, lengths and offsets, each with that of other bags to copy from."""
    pairs = []
    if into._lengths is not None:
        pairs.append((into._lengths, bounds_as(bags, "lengths")))
    if into._offsets is not None:
        pairs.append((into._offsets, bounds_as(bags, "offsets")))
    return pairs


def set_computed(bags: BagLengths, name: str | None) -> None:
    """Say which of lengths and offsets that were taken from elsewhere had been computed there."""
    bags._computed = name
