"""Slot maps in plain PyTorch and Python, on any device: the specification of the kernels.

An id belongs to a bucket, a run of slots. Its hash, modulo the slots of the bucket that ids can hold, names the first
slot that it may lie in; it lies there or, where other ids do, in one of the slots behind, up to ``max_probe`` of them,
and from the end of the bucket on at its start. A slot never becomes free again, so a free one ends every search.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FREE = -1  # the identity of a slot that no id holds


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift as unsigned numbers are."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _rotate(x: Tensor, bits: int) -> Tensor:
    return (x << bits) | _shift_right(x, 64 - bits)


def _finish(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 33)) * _signed(0xFF51AFD7ED558CCD)
    x = (x ^ _shift_right(x, 33)) * _signed(0xC4CEB9FE1A85EC53)
    return x ^ _shift_right(x, 33)


def hash_of(ids: Tensor) -> Tensor:
    """Return MurmurHash3 (x64, 128 bits) of each id and eight zeros with seed 0, its halves combined by xor."""
    low = _rotate(ids * _signed(0x87C37B91114253D5), 31) * 0x4CF5AD432745937F
    low = _rotate(low, 27) * 5 + 0x52DCE729
    high = (low * 5 + 0x38495AB5) ^ 16
    low = (low ^ 16) + high
    high = high + low
    low, high = _finish(low), _finish(high)
    low = low + high
    return low ^ (high + low)


def _modulo(hashes: Tensor, sizes: Tensor | int) -> Tensor:
    """Return the remainders of hashes as unsigned numbers."""
    half = _shift_right(hashes, 1) % sizes  # a size below 2**62, so nothing below overflows
    return (2 * half + (hashes & 1)) % sizes


class Places(NamedTuple):
    """Where ids belong, each ``[N]``.

    Attributes:
        here: bool, whether the map has the id's bucket.
        keys: the identity of the id's slot.
        starts: the first slot of its bucket.
        sizes: slots of the bucket that ids can hold.
        homes: the first slot to search, from the start of the bucket.
        shared: the slot of an id that has none of its own.
    """

    here: Tensor
    keys: Tensor
    starts: Tensor
    sizes: Tensor
    homes: Tensor
    shared: Tensor


def places_of(
    ids: Tensor,
    bounds: Tensor,
    first_bucket: int,
    num_buckets: int,
    ids_per_bucket: int,
    local_ids: bool,
    reserved: int,
    fallback: bool,
) -> Places:
    """Return where ids belong; see ``torchrec.ops.hash_collision.Probing``."""
    span, count = ids_per_bucket, num_buckets
    if span:
        buckets = torch.where(ids < 0, -1, ids.div(span, rounding_mode="floor"))
        rest = ids - buckets * span
    else:
        buckets, rest = ids % count, ids.div(count, rounding_mode="floor")
    keys = rest if local_ids else ids
    buckets = buckets - first_bucket
    here = (buckets >= 0) & (buckets < bounds.numel() - 1)
    buckets = buckets.clamp(0, bounds.numel() - 2)
    starts = bounds[buckets]
    sizes = bounds[buckets + 1] - starts - reserved
    hashes = hash_of(keys)
    homes = _modulo(hashes, sizes)
    if not fallback:
        shared = torch.full_like(ids, -1)
    elif reserved:
        shared = starts + sizes + _modulo(hashes, reserved)
    else:
        shared = starts + homes
    return Places(here, keys, starts, sizes, homes, shared)


def find_(
    identities: Tensor,
    bounds: Tensor,
    totals: Tensor,
    ids: Tensor,
    first_bucket: int,
    num_buckets: int,
    ids_per_bucket: int,
    local_ids: bool,
    reserved: int,
    max_probe: int,
    fallback: bool,
) -> Tensor:
    """Look up the slots of ids, a slot of every search at a time; see ``torchrec.ops.hash_collision.find_slots``."""
    flat = ids.flatten()
    places = places_of(
        flat, bounds, first_bucket, num_buckets, ids_per_bucket, local_ids, reserved, fallback
    )
    slots = torch.where(places.here, places.shared, -1)
    searching = (places.here & (places.keys != FREE)).nonzero().squeeze(1)
    held = 0
    for step in range(max_probe):
        searching = searching[step < places.sizes[searching]]
        if not searching.numel():
            break
        sizes = places.sizes[searching]
        slot = places.starts[searching] + (places.homes[searching] + step) % sizes
        known = identities[slot]
        found = known == places.keys[searching]
        slots[searching[found]] = slot[found]
        held += int(found.sum())
        searching = searching[~found & (known != FREE)]
    totals[0] += held
    totals[3] += int(places.here.sum()) - held
    return slots.view(ids.shape)


def assign_(
    identities: Tensor,
    metadata: Tensor | None,
    bounds: Tensor,
    totals: Tensor,
    ids: Tensor,
    scores: Tensor | None,
    admitted: Tensor | None,
    first_bucket: int,
    num_buckets: int,
    ids_per_bucket: int,
    local_ids: bool,
    reserved: int,
    max_probe: int,
    fallback: bool,
    threshold: int,
    oldest: bool,
) -> tuple[Tensor, Tensor]:
    """Give slots to ids, one after the other; see ``torchrec.ops.hash_collision.assign_slots``."""
    flat = ids.flatten()
    places = places_of(
        flat, bounds, first_bucket, num_buckets, ids_per_bucket, local_ids, reserved, fallback
    )
    for name, each in (("scores", scores), ("admitted", admitted)):
        if each is not None and each.numel() != flat.numel():
            raise ValueError(
                f"`{name}` should be as many as the ids ({flat.numel()}). Received {each.numel()}."
            )
    owners = identities.tolist()
    hours = None if metadata is None else metadata.tolist()
    hour_of = [0] * flat.numel() if scores is None else scores.flatten().tolist()
    may_enter = [True] * flat.numel() if admitted is None else admitted.flatten().tolist()
    slots, evicted, counts = [], [], [0, 0, 0, 0, 0]
    rows = zip(*(column.tolist() for column in places), hour_of, may_enter, strict=True)
    for here, key, start, size, home, shared, hour, admit in rows:
        slot = None
        if here and key != FREE:
            probed = [start + (home + step) % size for step in range(min(max_probe, size))]
            slot = next((s for s in probed if owners[s] in (key, FREE)), None)
            if slot is not None and owners[slot] == key:
                counts[0] += 1
                slots.append(slot)
                if hours is not None:
                    hours[slot] = max(hours[slot], hour)
                continue
            if not admit:
                slot = None
                counts[4] += 1
            elif slot is not None:
                counts[1] += 1
            elif hours is not None:
                last = min(probed, key=hours.__getitem__)
                if hours[last] < (hour if oldest else threshold):
                    slot = last
                    evicted.append(slot)
                    counts[2] += 1
        if slot is None:
            slots.append(shared if here else -1)
            counts[3] += here
            continue
        owners[slot] = key
        if hours is not None:
            hours[slot] = hour
        slots.append(slot)
    identities.copy_(torch.tensor(owners, dtype=torch.int64))
    if metadata is not None:
        metadata.copy_(torch.tensor(hours, dtype=torch.int32))
    totals += torch.tensor(counts, device=totals.device)
    found = torch.tensor(slots, dtype=torch.int64, device=ids.device).view(ids.shape)
    return found, torch.tensor(evicted, dtype=torch.int64, device=ids.device)
