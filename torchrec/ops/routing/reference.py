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


def check_written(name: str, tensors: list[Tensor]) -> None:
    """Refuse tensors to be written that have no memory, or share where they begin: the order would tell who is seen."""
    held = [tensor.data_ptr() for tensor in tensors if tensor.numel() and not tensor.is_meta]
    if 0 in held or len(set(held)) < len(held):
        raise ValueError(f"`{name}` should have memory of their own, each. Received others.")


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
    check_written("outputs", outputs)
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


def check_slots(tables: list[Tensor], rows: Tensor, slots: list[int]) -> list[list[int]]:
    """Refuse slots that do not fit the tables and the rows; return them one by one."""
    if any(table.dtype != torch.float32 or table.dim() != 1 for table in tables):
        raise TypeError("`tables` should be float32 of shape (rows,). Received others.")
    if rows.dim() != 1 or rows.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"`rows` should be int32 or int64 of shape (N,). Received {rows.dtype} of {tuple(rows.shape)}."
        )
    if len(slots) % 3:
        raise ValueError("`slots` should be three numbers each. Received others.")
    found = [slots[i : i + 3] for i in range(0, len(slots), 3)]
    for table, start, count in found:
        if not (0 <= table < len(tables) and min(start, count) >= 0 and start + count <= len(rows)):
            raise ValueError(
                "`slots` should name a table that there is, and ids that there are. Received others."
            )
    return found


def _rows_of_slots(tables: list[Tensor], rows: Tensor, slots: list[list[int]]) -> list[Tensor]:
    found = [rows[start : start + count].long() for _, start, count in slots]
    for s, ((table, _, _), mine) in enumerate(zip(slots, found, strict=True)):
        if ((mine < 0) | (mine >= len(tables[table]))).any():
            raise IndexError(
                f"`rows` of slot number {s} should be in [0, {len(tables[table])}). Received others."
            )
    return found


def take_numbers(
    tables: list[Tensor], rows: Tensor, slots: list[int], factors: list[float]
) -> Tensor:
    """Return the number of each row that ids chose, times a factor; see ``routing.take_numbers``."""
    found = check_slots(tables, rows, slots)
    if len(factors) != len(found):
        raise ValueError("`factors` should be one a slot. Received others.")
    chosen = _rows_of_slots(tables, rows, found)
    numbers = [
        tables[table][mine] * factor
        for (table, _, _), mine, factor in zip(found, chosen, factors, strict=True)
    ]
    return torch.cat([torch.empty(0, device=rows.device), *numbers])


def put_numbers_(
    tables: list[Tensor], rows: Tensor, slots: list[int], numbers: Tensor | None
) -> None:
    """Write the number of each row that ids chose; see ``routing.put_numbers_``."""
    found = check_slots(tables, rows, slots)
    counts = [count for _, _, count in found]
    check_written("tables", tables)
    check_numbers(numbers, sum(counts))
    chosen = _rows_of_slots(tables, rows, found)
    given = [0.0] * len(found) if numbers is None else numbers.split(counts)
    for (table, _, _), mine, values in zip(found, chosen, given, strict=True):
        tables[table][mine] = values


def check_numbers(numbers: Tensor | None, count: int) -> None:
    """Refuse numbers that are not one an id."""
    if numbers is not None and (numbers.dtype != torch.float32 or numbers.shape != (count,)):
        raise ValueError(
            f"`numbers` should be float32 of shape ({count},), one an id. "
            f"Received {numbers.dtype} of {tuple(numbers.shape)}."
        )
