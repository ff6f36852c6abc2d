"""Routing in plain PyTorch: the specification, right on every device."""

from __future__ import annotations

import torch
from torch import Tensor

BAND = ("slot", "first", "end", "base")


def check_routing(rows: Tensor, lengths: Tensor, counts: list[int], bands: list[int]) -> None:
    """Refuse sizes that do not fit one another."""
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise TypeError(
            f"`rows` should be int64 of shape (N,). Received {rows.dtype} of shape {tuple(rows.shape)}."
        )
    if min(counts, default=0) < 0 or sum(counts) != rows.shape[0]:
        raise ValueError(
            f"`counts` should not be negative and sum to the number of rows ({rows.shape[0]}). "
            f"Received {counts}."
        )
    if lengths.dim() != 2 or lengths.shape[0] != len(counts):
        raise ValueError(
            f"`lengths` should have one line a slot ({len(counts)}). Received {tuple(lengths.shape)}."
        )
    slots = bands[::4]
    if len(bands) % 4 or slots != sorted(slots) or not {*slots} <= {*range(len(counts))}:
        raise ValueError(
            f"`bands` should be {BAND} one behind the other, in order of their slots, which are below "
            f"{len(counts)}. Received {bands}."
        )


def route_rows(
    rows: Tensor, lengths: Tensor, counts: list[int], bands: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the rows of each slot by the band that they lie in; see ``routing.route_rows``."""
    check_routing(rows, lengths, counts, bands)
    device, size = rows.device, lengths.shape[1]
    records = [bands[i : i + 4] for i in range(0, len(bands), 4)]
    routed, places, band_lengths, band_counts = [], [], [], []
    bags = torch.arange(size, device=device)
    for slot, mine in enumerate(rows.split(counts)):
        bag_of = bags.repeat_interleave(lengths[slot].long(), output_size=counts[slot])
        place = torch.full((len(mine),), -1, dtype=torch.int32, device=device)
        sent = 0
        for _, first, end, base in (record for record in records if record[0] == slot):
            chosen = ((mine >= first) & (mine < end)).nonzero()[:, 0]
            place[chosen] = torch.arange(sent, sent + len(chosen), dtype=torch.int32, device=device)
            routed.append((mine[chosen] - first + base).int())
            band_lengths.append(bag_of[chosen].bincount(minlength=size).int())
            band_counts.append(len(chosen))
            sent += len(chosen)
        places.append(place)
    values = torch.cat([torch.empty(0, dtype=torch.int32, device=device), *routed])
    padded = torch.full((len(rows),), -1, dtype=torch.int32, device=device)
    padded[: len(values)] = values
    return (
        padded,
        torch.cat([torch.empty(0, dtype=torch.int32, device=device), *places]),
        torch.stack(band_lengths) if band_lengths else lengths.new_empty((0, size)).int(),
        torch.tensor(band_counts, dtype=torch.int64, device=device),
    )
