"""Routing in plain PyTorch: the specification, right on every device."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

BAND = ("slot", "first", "end", "base")
BLOCK = ("input", "start", "stride", "output", "start", "stride", "rows", "columns", "kind")
DIVIDES, ADDS = 1, 2
_MOST_ROWS = 2**31


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


def check_bands(records: list[list[int]]) -> None:
    """Refuse bands that lie on one another, or are none."""
    for slot, first, end, base in records:
        if not (0 <= first <= end and base >= 0 and end - first < _MOST_ROWS - base):
            raise ValueError(
                "`bands` should have rows from 0 on, and less than 2 ** 31 of them. "
                f"Received {[slot, first, end, base]}."
            )
    for before, band in pairwise(records):
        if before[0] == band[0] and band[1] < before[2]:
            raise ValueError(
                f"`bands` of a slot should be in order, and not overlap. Received {before}, {band}."
            )


def route_rows(
    rows: Tensor, lengths: Tensor, counts: list[int], bands: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the rows of each slot by the band that they lie in; see ``routing.route_rows``."""
    check_routing(rows, lengths, counts, bands)
    device, size = rows.device, lengths.shape[1]
    records = [bands[i : i + 4] for i in range(0, len(bands), 4)]
    check_bands(records)
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


def check_written(tensors: list[Tensor]) -> None:
    """Refuse tensors to be written that have no memory, or share where they begin: the order would tell who is seen."""
    held = [tensor.data_ptr() for tensor in tensors if tensor.numel() and not tensor.is_meta]
    if 0 in held or len(set(held)) < len(held):
        raise ValueError("`outputs` should have memory of their own, each. Received others.")


def check_blocks(
    outputs: list[Tensor], inputs: list[Tensor], blocks: list[int], divisor: int
) -> None:
    """Refuse tensors that do not fit one another, and numbers that are no blocks."""
    dtypes = {tensor.dtype for tensor in (*outputs, *inputs)}
    if len(dtypes) > 1:
        raise ValueError(
            "`inputs` and `outputs` should be of one dtype. "
            f"Received {[tensor.dtype for tensor in (*inputs, *outputs)]}."
        )
    if any(output.dim() != 1 or not output.is_contiguous() for output in outputs):
        raise ValueError(
            "`outputs` should be contiguous, of one dimension. "
            f"Received {[tuple(output.shape) for output in outputs]}."
        )
    check_written(outputs)
    if divisor < 1 or len(blocks) % len(BLOCK):
        raise ValueError(
            f"`blocks` should be {BLOCK} one behind the other, `divisor` 1 or more. "
            f"Received {len(blocks)} numbers and {divisor}."
        )


def _block_of(tensors: list[Tensor], place: list[int], rows: int, columns: int) -> Tensor:
    number, start, stride = place
    if not 0 <= number < len(tensors) or min(start, stride, rows, columns) < 0:
        raise ValueError(
            "`blocks` should name a tensor that there is, and have no negative number. Received others."
        )
    tensor = tensors[number]
    if rows and columns and start + (rows - 1) * stride + columns > tensor.numel():
        raise ValueError(
            "`blocks` should lie inside of their tensors. Received one that does not, of tensor number "
            f"{number}."
        )
    if not rows or not columns:
        return tensor.new_empty((rows, columns))
    return tensor.as_strided((rows, columns), (stride, 1), tensor.storage_offset() + start)


def copy_blocks_(
    outputs: list[Tensor], inputs: list[Tensor], blocks: list[int], divisor: int
) -> None:
    """Copy rectangles of some tensors into others; see ``routing.copy_blocks_``."""
    check_blocks(outputs, inputs, blocks, divisor)
    flat = [tensor.contiguous().view(-1) for tensor in inputs]
    for i in range(0, len(blocks), len(BLOCK)):
        record = blocks[i : i + len(BLOCK)]
        rows, columns, kind = record[6:]
        source = _block_of(flat, record[:3], rows, columns)
        target = _block_of(outputs, record[3:6], rows, columns)
        if not 0 <= kind <= DIVIDES + ADDS or (kind and not source.is_floating_point()):
            raise ValueError("`blocks` should copy, or be of floats. Received others.")
        found = source / divisor if kind & DIVIDES else source
        target.copy_(target + found if kind & ADDS else found)
