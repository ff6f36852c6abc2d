"""Routing in plain PyTorch: the specification, right on every device."""

from __future__ import annotations

import torch
from torch import Tensor

BAND = ("slot", "first", "end", "base")
BLOCK = ("input", "start", "stride", "output", "start", "stride", "rows", "columns", "kind")
DIVIDES, ADDS = 1, 2


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


def check_blocks(
    inputs: list[Tensor], sizes: list[int], blocks: list[int], divisor: int
) -> list[list[int]]:
    """Refuse blocks of tensors that do not fit one another; return them one by one."""
    if not inputs or len({tensor.dtype for tensor in inputs}) > 1:
        raise ValueError(
            "`inputs` should be one tensor or more, of one dtype. "
            f"Received {[tensor.dtype for tensor in inputs]}."
        )
    if divisor < 1 or min(sizes, default=0) < 0 or len(blocks) % len(BLOCK):
        raise ValueError(
            f"`blocks` should be {BLOCK} one behind the other, `sizes` not negative, `divisor` 1 or more. "
            f"Received {len(blocks)} numbers, {sizes}, {divisor}."
        )
    return [blocks[i : i + len(BLOCK)] for i in range(0, len(blocks), len(BLOCK))]


def _block_of(tensors: list[Tensor], place: list[int], rows: int, columns: int) -> Tensor:
    number, start, stride = place
    if not 0 <= number < len(tensors) or min(start, stride, rows, columns) < 0:
        raise ValueError(
            "`blocks` should name a tensor that there is, and have no negative number. Received others."
        )
    size = tensors[number].numel()
    if rows and columns and start + (rows - 1) * stride + columns > size:
        raise ValueError(
            "`blocks` should lie inside of their tensors. Received one that does not, of tensor number "
            f"{number}."
        )
    if not rows or not columns:
        return tensors[number].new_empty((rows, columns))
    return tensors[number].as_strided((rows, columns), (stride, 1), start)


def copy_blocks(
    inputs: list[Tensor], sizes: list[int], blocks: list[int], divisor: int
) -> list[Tensor]:
    """Copy rectangles of some tensors into new ones; see ``routing.copy_blocks``."""
    records = check_blocks(inputs, sizes, blocks, divisor)
    flat = [tensor.reshape(-1).clone() for tensor in inputs]  # no view: `start` counts from 0
    outputs = [inputs[0].new_empty(size) for size in sizes]
    for record in records:
        rows, columns, kind = record[6:]
        if not 0 <= kind <= DIVIDES + ADDS or (kind and not inputs[0].is_floating_point()):
            raise ValueError("`blocks` should copy, or be of floats. Received others.")
        source = _block_of(flat, record[:3], rows, columns)
        target = _block_of(outputs, record[3:6], rows, columns)
        found = source / divisor if kind & DIVIDES else source
        target.copy_(target + found if kind & ADDS else found)
    return outputs
