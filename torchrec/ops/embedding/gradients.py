"""What look-ups are given, and their gradients: the rows they are of, and what the kernels do with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from torchrec.ops.embedding import schema
from torchrec.ops.embedding.spec import LookupSpec

Rows = tuple[Tensor, Tensor]
"""Rows of a table, and the gradient of each."""


class Bags(NamedTuple):
    """Input of a pooled look-up, in the order in which the operators take it.

    Attributes:
        values: ids of all keys, int32 or int64, ``(N,)``.
        offsets: int32 or int64, ``(K * B + 1,)`` for K keys: bag b of key k holds the ids at
            ``offsets[k * B + b]`` up to ``offsets[k * B + b + 1]``.
        sample_weights: a factor for each id, ``(N,)``, or None.
        divisors: what mean pooling divides each bag by, int32 or int64, ``(K * B,)``; 0 counts as
            1. Where these bags are parts of larger ones, this is the size of those. Default: the
            number of ids of the bag that have a row.
    """

    values: Tensor
    offsets: Tensor
    sample_weights: Tensor | None = None
    divisors: Tensor | None = None


class Ids(NamedTuple):
    """Input of a look-up of sequences: slot s has the ``counts[s]`` ids from ``starts[s]`` on.

    Attributes:
        values: ids of all keys, int32 or int64, ``(N,)``.
        starts: for each slot.
        counts: for each slot.
        samples: how many samples they are of, for updates that divide by it.
    """

    values: Tensor
    starts: Sequence[int]
    counts: Sequence[int]
    samples: int = 0


@dataclass
class BagGradient:
    """The gradient of a pooled look-up, ``(B, width)``, with what it was looked up by."""

    grad: Tensor
    weights: list[Tensor]
    spec: LookupSpec
    bags: Bags

    @property
    def samples(self) -> int:
        """How many samples looked something up."""
        return self.grad.shape[0]

    def update(self, states: Sequence[Tensor], hyper: Tensor) -> None:
        """Update the tables by one call of the kernel.

        Args:
            states: of all tables, one behind the other.
            hyper: their hyper-parameters, a row a table.
        """
        schema.embedding_bag_update_(
            self.grad, self.weights, states, hyper, self.spec.tensor, *self.bags, self.spec.num_keys
        )

    def pairs(self) -> list[Tensor]:
        """Return, for each table in turn, the rows that were chosen and their gradients."""
        found: list[Tensor] = schema.embedding_bag_sparse_grad(
            self.grad, self.weights, self.spec.tensor, *self.bags, self.spec.num_keys
        )
        return found

    def rows(self) -> list[Rows | None]:
        """Return the rows of each table and their gradients; None for one that is frozen."""
        pairs = self.pairs()
        return [
            None if table.optimizer is None else (rows, grads)
            for table, rows, grads in zip(self.spec.tables, pairs[::2], pairs[1::2], strict=True)
        ]

    def slot_ids(self) -> Ids:
        """Return the ids of each slot."""
        offsets, keys = self.bags.offsets, self.spec.num_keys
        size = (len(offsets) - 1) // keys if keys else 0
        ends = offsets[::size].tolist() if size else [0] * (keys + 1)
        starts = [ends[slot.key] for slot in self.spec.slots]
        counts = [ends[slot.key + 1] - ends[slot.key] for slot in self.spec.slots]
        return Ids(self.bags.values, starts, counts)


@dataclass
class SequenceGradient:
    """The gradients of a look-up of sequences, each ``(count, D)`` or None, one a slot."""

    grads: list[Tensor | None]
    weights: list[Tensor]
    spec: LookupSpec
    ids: Ids

    @property
    def samples(self) -> int:
        """How many samples looked something up."""
        return self.ids.samples

    def update(self, states: Sequence[Tensor], hyper: Tensor) -> None:
        """Update the tables by one call of the kernel; see `BagGradient`."""
        ids = self.ids
        schema.embedding_sequence_update_(
            self.grads,
            self.weights,
            states,
            hyper,
            self.spec.tensor,
            ids.values,
            ids.starts,
            ids.counts,
        )

    def pairs(self) -> list[Tensor]:
        """Return, for each table in turn, the rows that were chosen and their gradients."""
        ids = self.ids
        found: list[Tensor] = schema.embedding_sequence_sparse_grad(
            self.grads, self.weights, self.spec.tensor, ids.values, ids.starts, ids.counts
        )
        return found

    def rows(self) -> list[Rows | None]:
        """Return the rows of each table and their gradients; None for one that is frozen or not used."""
        pairs = self.pairs()
        slots = zip(self.spec.slots, self.grads, strict=True)
        used = {slot.table for slot, grad in slots if grad is not None}
        tables = zip(self.spec.tables, pairs[::2], pairs[1::2], strict=True)
        return [
            None if table.optimizer is None or t not in used else (rows, grads)
            for t, (table, rows, grads) in enumerate(tables)
        ]

    def slot_ids(self) -> Ids:
        """Return the ids of each slot, none of those that got no gradient."""
        counts = [
            0 if grad is None else count
            for grad, count in zip(self.grads, self.ids.counts, strict=True)
        ]
        return Ids(self.ids.values, self.ids.starts, counts)


LookupGradient = BagGradient | SequenceGradient


class Updater(ABC):
    """Takes the gradients of fused tables in the backward pass; a collection has one for each set of its tables."""

    @abstractmethod
    def receive(self, gradient: LookupGradient) -> None:
        """Take the gradient of a look-up of these tables."""
