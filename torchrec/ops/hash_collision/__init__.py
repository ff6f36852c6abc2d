"""Slot maps by multi-probe hashing: which slot of a table an id holds, found in one step without an index.

A map is one tensor, ``identities``: the id of each slot, -1 where free. An id lies within a few slots of the one that
its hash names, so the map needs nothing beside it, and any part of it that consists of whole buckets is a map as well.

The hash is MurmurHash3 (x64, 128 bits) of the id and eight zero bytes with seed 0, its halves combined by xor.

Paper: Appleby, "MurmurHash3", 2011. Linear probing: Knuth, The Art of Computer Programming, volume 3, section 6.4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchrec.ops import _library
from torchrec.ops.hash_collision import schema
from torchrec.ops.hash_collision.reference import FREE, hash_of

__all__ = [
    "FREE",
    "Assigned",
    "Eviction",
    "Probing",
    "assign_slots",
    "find_slots",
    "hash_of",
    "new_slots",
    "new_totals",
]


class Probing(NamedTuple):
    """How ids find their slots.

    Attributes:
        bounds: int64 ``[buckets + 1]``, where each bucket of this map starts, ascending, and the end.
        num_buckets: how many buckets there are in all, those of other maps included.
        first_bucket: the number of the first one here. Default 0.
        ids_per_bucket: 0 (the default): id i belongs to bucket ``i % num_buckets``; else to ``i // ids_per_bucket``.
        local_ids: whether slots are found and held by what is left of an id within its bucket (``i // num_buckets``,
            or ``i % ids_per_bucket``) instead of by the id. Default False.
        reserved: slots at the end of each bucket that no id holds. Default 0.
        max_probe: how many slots an id may lie in, from the one that its hash names on. Default 128.
        fallback: whether ids without a slot of their own get one that they share: one of those reserved, by their
            hash, or, where there are none, the one that their hash names. Default True; else they get -1.
    """

    bounds: Tensor
    num_buckets: int
    first_bucket: int = 0
    ids_per_bucket: int = 0
    local_ids: bool = False
    reserved: int = 0
    max_probe: int = 128
    fallback: bool = True


class Eviction(NamedTuple):
    """When an id may take the slot of another one: if none is free where it may lie, that with the lowest metadata.

    Attributes:
        metadata: int32 ``[E]``, an hour for each slot, which becomes the score of its id whenever it comes, but is
            never lowered.
        scores: int32 ``[N]``, an hour for each id of the batch.
        threshold: the slot is taken if its metadata is below this; unless
        oldest: it is taken if its metadata is below the score of the id that comes.
    """

    metadata: Tensor
    scores: Tensor
    threshold: int
    oldest: bool = False


class Assigned(NamedTuple):
    """What a batch of ids was given.

    Attributes:
        slots: int64, the shape of the ids.
        evicted: int64 ``[K]``, slots that were taken from another id, in the order of the batch.
    """

    slots: Tensor
    evicted: Tensor


def new_slots(
    count: int, content: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Return a number for each of some slots, in huge pages where the system has them: each access is a random one.

    Args:
        count: of slots.
        content: the number: ``FREE`` for identities.
        dtype: int64 for identities, int32 for metadata.
        device: of the map. Default: the CPU.

    Example:
        >>> new_slots(3, FREE, torch.int64)
        tensor([-1, -1, -1])
    """
    tensor = torch.empty(count, dtype=dtype, device=device)
    library = _library.native
    if library is not None and tensor.device.type == "cpu":
        library.advise_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor.fill_(content)


def new_totals(device: torch.device | str = "cpu") -> Tensor:
    """Return zeros for what both functions count, int64 ``[5]``.

    Occurrences of ids that had a slot; that were given a free one; that were given one of another id; that got none of
    their own; and, of the latter, of those that were not admitted.

    Args:
        device: of the map. Default: the CPU.

    Example:
        >>> new_totals().tolist()
        [0, 0, 0, 0, 0]
    """
    return torch.zeros(5, dtype=torch.int64, device=device)


def find_slots(identities: Tensor, probing: Probing, ids: Tensor, totals: Tensor) -> Tensor:
    """Look up the slots of ids; the map stays as it is.

    Args:
        identities: int64 ``[E]``, the id of each slot, -1 where free.
        probing: how ids find their slots.
        ids: int64, any shape. The id -1 never has a slot of its own.
        totals: of `new_totals`, to which is added.

    Returns:
        int64, the shape of ``ids``; -1 for ids of buckets that the map does not have.

    Raises:
        ValueError: buckets do not lie in the map.

    Example:
        >>> identities = torch.tensor([-1, -1, -1, -1, -1, -1, 99, 70])
        >>> probing = Probing(torch.tensor([0, 8]), num_buckets=1, fallback=False)
        >>> find_slots(identities, probing, torch.tensor([70, 71]), new_totals()).tolist()
        [7, -1]
        >>> probing = probing._replace(fallback=True, max_probe=1)
        >>> find_slots(identities, probing, torch.tensor([70, 71]), new_totals()).tolist()
        [6, 7]
    """
    slots: Tensor = schema.hash_slots_find_(
        identities,
        probing.bounds,
        totals,
        ids,
        probing.first_bucket,
        probing.num_buckets,
        probing.ids_per_bucket,
        probing.local_ids,
        probing.reserved,
        probing.max_probe,
        probing.fallback,
    )
    return slots


def assign_slots(
    identities: Tensor,
    probing: Probing,
    ids: Tensor,
    totals: Tensor,
    eviction: Eviction | None = None,
    admitted: Tensor | None = None,
) -> Assigned:
    """Look up the slots of ids, and give slots to those that have none, one id after the other.

    Args:
        identities: int64 ``[E]``, the id of each slot, -1 where free; changed.
        probing: how ids find their slots.
        ids: int64, any shape.
        totals: of `new_totals`, to which is added.
        eviction: when ids take slots of others. Default: never. Its metadata is changed.
        admitted: bool, the shape of ``ids``: whether each may be given a slot. Default: all.

    Returns:
        The slots, and those that changed hands.

    Raises:
        ValueError: buckets do not lie in the map, or tensors do not fit.

    Example:
        >>> identities = torch.full((3,), -1)
        >>> probing, totals = Probing(torch.tensor([0, 3]), num_buckets=1), new_totals()
        >>> assign_slots(identities, probing, torch.tensor([7, 8, 9, 7, 10]), totals).slots.tolist()
        [0, 2, 1, 0, 1]
        >>> identities.tolist(), totals.tolist()
        ([7, 9, 8], [1, 3, 0, 1, 0])
    """
    metadata = None if eviction is None else eviction.metadata
    scores = None if eviction is None else eviction.scores
    slots, evicted = schema.hash_slots_assign_(
        identities,
        metadata,
        probing.bounds,
        totals,
        ids,
        scores,
        admitted,
        probing.first_bucket,
        probing.num_buckets,
        probing.ids_per_bucket,
        probing.local_ids,
        probing.reserved,
        probing.max_probe,
        probing.fallback,
        0 if eviction is None else eviction.threshold,
        eviction is not None and eviction.oldest,
    )
    return Assigned(slots, evicted)
