"""What the operators of this package compute, as modules of PyTorch's own operations on tensors of any size.

The reference implementations decide by what they find: where a bag ends, which rows are here. A graph that holds for
every batch cannot. So each id goes the same way here: ids of keys that are not looked up, and ids that no row stands
for, go along and add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchrec.ops.embedding.spec import NO_ROW, PolicyCode, PoolingCode, SlotSpec, TableSpec
from torchrec.ops.hashing.reference import hash_ids
from torchrec.ops.quant.formats import HEAD, RowFormat


def bag_of_each(offsets: Tensor, total: int) -> Tensor:
    """Return the number of the bag that holds each of the values.

    Example:
        >>> bag_of_each(torch.tensor([0, 2, 2, 3]), 3).tolist()
        [0, 0, 2]
    """
    ends = offsets[1:].long()  # also the last, which is beyond all values and is cut off
    passed = torch.zeros(total + 1, dtype=torch.int64).index_add(0, ends, torch.ones_like(ends))
    return passed.cumsum(0)[:total]


class RowChoice(nn.Module):
    """Which row of tables that stand one behind the other each id chooses: see ``torchrec.ops.embedding.row_choice``.

    Args:
        tables: of each key, the table that it is looked up in; None: in none.
        first_rows: where the rows of each begin.
        total: rows of all.
    """

    def __init__(
        self, tables: Sequence[TableSpec | None], first_rows: Sequence[int], total: int
    ) -> None:
        super().__init__()
        self.total = total
        self.policies = {table.policy for table in tables if table is not None}
        ends = [table.num_embeddings if table else 1 for table in tables]
        rows = [table.rows if table else 1 for table in tables]
        policies = [table.policy if table else PolicyCode.IGNORE for table in tables]
        self.ends: Tensor
        self.rows: Tensor
        self.kinds: Tensor
        self.first_rows: Tensor
        for name, numbers in (
            ("ends", ends),
            ("rows", rows),
            ("kinds", [int(policy) for policy in policies]),
            ("first_rows", list(first_rows)),
        ):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64))

    def forward(self, ids: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row of each id, and whether there is one; an id that is refused has a row behind the last."""
        ids = ids.long()
        end, rows = self.ends.index_select(0, keys), self.rows.index_select(0, keys)
        kind = self.kinds.index_select(0, keys)
        has_row = (ids >= 0) & (ids < torch.where(kind == PolicyCode.ROWS, rows, end))
        row = ids
        if PolicyCode.HASH in self.policies:
            hashed = kind == PolicyCode.HASH
            row = torch.where(hashed & ~has_row, hash_ids(ids, end.clamp(min=1)), row)
            has_row = has_row | (hashed & (end > 0))
        if PolicyCode.OVERFLOW in self.policies:
            over = (kind == PolicyCode.OVERFLOW) & (rows > end)
            other = end + hash_ids(ids, (rows - end).clamp(min=1))
            row = torch.where(over & ~has_row, other, row)
            has_row = has_row | over
        if PolicyCode.CLAMP in self.policies:
            clamped = (kind == PolicyCode.CLAMP) & (end > 0)
            nearest = torch.minimum(ids.clamp(min=0), (end - 1).clamp(min=0))
            row = torch.where(clamped & ~has_row, nearest, row)
            has_row = has_row | clamped
        refused = ~has_row & (
            (kind == PolicyCode.ERROR) | ((kind == PolicyCode.ROWS) & (ids != NO_ROW))
        )
        row = torch.where(has_row, row + self.first_rows.index_select(0, keys), 0)
        return torch.where(refused, self.total, row), has_row


class StoredTable(NamedTuple):
    """How the numbers of a table are stored in a graph.

    Attributes:
        numbers: floats, ``(E, D)``; or packed codes, uint8 ``(E, bytes)``.
        bits: of a code; of floats 0.
        head: scale and bias of each row of codes, float16 ``(E, 2)``; of floats None.
    """

    numbers: Tensor
    bits: int = 0
    head: Tensor | None = None

    @property
    def kind(self) -> tuple[torch.dtype, int]:
        """What tables that stand one behind the other have in common."""
        return self.numbers.dtype, self.bits


def stored_rows(rows: Tensor, format: int, dim: int) -> StoredTable:
    """Return rows of bytes (see `RowFormat`) as a graph stores them: without padding, scales and biases apart.

    Standard operators do not read two bytes as a float16, so these are tensors of their own.

    Example:
        >>> rows = torch.tensor([[0, 60, 0, 64, 0x21, 0, 0, 0]], dtype=torch.uint8)
        >>> stored_rows(rows, RowFormat.INT4, 2)
        StoredTable(numbers=tensor([[33]], dtype=torch.uint8), bits=4, head=tensor([[1., 2.]], dtype=torch.float16))
    """
    kind = RowFormat(format)
    size = kind.row_bytes(dim)
    if not kind.has_codes:
        return StoredTable(rows[:, :size].contiguous().view(kind.dtype))
    head = rows[:, :HEAD].clone(memory_format=torch.contiguous_format).view(torch.float16)
    return StoredTable(rows[:, HEAD:size].contiguous(), kind.bits, head)


class _Rows(nn.Module):
    """The rows of tables that stand one behind the other, read as float32.

    Args:
        tables: of one dim and kind.
        dim: D.
    """

    def __init__(self, tables: Sequence[StoredTable], dim: int) -> None:
        super().__init__()
        self.bits, self.dim = tables[0].bits, dim
        numbers = torch.cat([table.numbers.detach() for table in tables])
        self.numbers = nn.Parameter(numbers, requires_grad=False)
        heads = [table.head for table in tables if table.head is not None]
        self.head = nn.Parameter(torch.cat(heads), requires_grad=False) if heads else None
        self.codes: Tensor
        if 0 < self.bits < 8:
            # The codes of each byte: runtimes of ONNX shift and mask some types of integers only.
            shifts, greatest = range(0, 8, self.bits), 2**self.bits - 1
            codes = [[byte >> shift & greatest for shift in shifts] for byte in range(256)]
            self.register_buffer("codes", torch.tensor(codes, dtype=torch.float32))

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows by their numbers, ``(N, D)``."""
        numbers = self.numbers.index_select(0, rows)
        if self.head is None:
            return numbers.float()
        codes = numbers.float()
        if self.bits < 8:
            codes = self.codes.index_select(0, numbers.flatten().int())
            width = numbers.shape[1] * self.codes.shape[1]
            codes = codes.view(-1, width).narrow(1, 0, self.dim)
        head = self.head.index_select(0, rows).float()
        return codes * head.narrow(1, 0, 1) + head.narrow(1, 1, 1)


class _Layer(nn.Module):
    """Slots of one dim, of different keys, looked up together: their tables are one weight.

    Args:
        slots: the slots.
        tables: all tables.
        stored: all tables' numbers.
        num_keys: keys of the input.
    """

    def __init__(
        self,
        slots: Sequence[SlotSpec],
        tables: Sequence[TableSpec],
        stored: Sequence[StoredTable],
        num_keys: int,
    ) -> None:
        super().__init__()
        used = sorted({slot.table for slot in slots})
        first, at = {}, 0
        for table in used:
            first[table] = at
            at += tables[table].rows
        of_key: list[TableSpec | None] = [None] * num_keys
        first_rows, places, pooled = [0] * num_keys, [len(slots)] * num_keys, [False] * num_keys
        for place, slot in enumerate(slots):
            of_key[slot.key], first_rows[slot.key] = tables[slot.table], first[slot.table]
            places[slot.key] = place
            pooled[slot.key] = slot.pooling == PoolingCode.MEAN
        self.count, self.dim = len(slots), tables[used[0]].dim
        self.read = _Rows([stored[t] for t in used], self.dim)
        self.choose = RowChoice(of_key, first_rows, at)
        self.has_mean = any(pooled)
        self.places: Tensor
        self.is_mean: Tensor
        self.keys: Tensor
        self.register_buffer("places", torch.tensor(places))
        self.register_buffer(
            "is_mean", torch.tensor([slot.pooling == PoolingCode.MEAN for slot in slots])
        )
        self.register_buffer("keys", torch.tensor([slot.key for slot in slots]))

    def forward(
        self,
        values: Tensor,
        bags: Tensor,
        keys: Tensor,
        size: int,
        sample_weights: Tensor | None,
        divisors: Tensor | None,
    ) -> Tensor:
        """Return the pooled vectors, ``(slots, B, D)``."""
        rows, has_row = self.choose(values, keys)
        vectors = self.read(rows)
        if sample_weights is not None:
            vectors = vectors * sample_weights.unsqueeze(1)
        vectors = torch.where(has_row.unsqueeze(1), vectors, 0.0)
        # Ids of other keys go into one more bag, behind all.
        place = self.places.index_select(0, keys)
        into = torch.where(place < self.count, place * size + bags - keys * size, self.count * size)
        sums = torch.zeros(self.count * size + 1, self.dim).index_add(0, into, vectors)
        output = sums[:-1].view(self.count, size, self.dim)
        if not self.has_mean:
            return output
        if divisors is None:
            counts = torch.zeros(self.count * size + 1).index_add(0, into, has_row.float())
            counts = counts[:-1].view(self.count, size)
        else:
            counts = divisors.view(-1, size).index_select(0, self.keys).float()
        means = output / counts.clamp(min=1.0).unsqueeze(2)
        return torch.where(self.is_mean.view(-1, 1, 1), means, output)


class PooledLookup(nn.Module):
    """The operators ``embedding_bag`` and ``quantized_bag`` of given tables.

    Args:
        tables: the tables.
        slots: the slots.
        stored: the numbers of each table; they are copied.
        num_keys: keys of the input.
        width: columns of the output.
        dtype: of the output.
    """

    def __init__(
        self,
        tables: Sequence[TableSpec],
        slots: Sequence[SlotSpec],
        stored: Sequence[StoredTable],
        num_keys: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.num_keys, self.num_tables = num_keys, len(tables)
        self.width, self.dtype = width, dtype
        layers: list[list[SlotSpec]] = []
        for slot in slots:
            kind = tables[slot.table].dim, stored[slot.table].kind
            for layer in layers:
                of_layer = tables[layer[0].table].dim, stored[layer[0].table].kind
                if kind == of_layer and all(slot.key != other.key for other in layer):
                    layer.append(slot)
                    break
            else:
                layers.append([slot])
        self.columns = [[slot.column for slot in layer] for layer in layers]
        self.layers = nn.ModuleList(_Layer(layer, tables, stored, num_keys) for layer in layers)

    def forward(
        self,
        values: Tensor,
        offsets: Tensor,
        sample_weights: Tensor | None,
        divisors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the pooled vectors, ``(B, width)``, and zeros for the counts of ids out of range."""
        size = (offsets.shape[0] - 1) // self.num_keys
        bags = bag_of_each(offsets, values.shape[0])
        # No division: that of large integers is one of floating point in some runtimes.
        of_keys = torch.arange(self.num_keys + 1) * size
        keys = bag_of_each(offsets.index_select(0, of_keys), values.shape[0])
        parts: list[tuple[int, Tensor]] = []
        for columns, layer in zip(self.columns, self.layers, strict=True):
            pooled = layer(values, bags, keys, size, sample_weights, divisors).to(self.dtype)
            parts += zip(columns, pooled.unbind(0), strict=True)
        joined, at = [], 0
        for column, part in sorted(parts, key=lambda pair: pair[0]):
            if column > at:
                joined.append(torch.zeros(size, column - at, dtype=self.dtype))
            joined.append(part)
            at = column + part.shape[1]
        if self.width > at:
            joined.append(torch.zeros(size, self.width - at, dtype=self.dtype))
        return torch.cat(joined, 1), torch.zeros(self.num_tables, dtype=torch.int64)


class SequenceLookup(nn.Module):
    """The operators ``embedding_sequence`` and ``quantized_sequence`` of given tables.

    Args:
        tables: the tables.
        slots: the slots.
        stored: the numbers of each table; they are copied.
        dtype: of the output.
    """

    def __init__(
        self,
        tables: Sequence[TableSpec],
        slots: Sequence[SlotSpec],
        stored: Sequence[StoredTable],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.numbers, self.dtype = [slot.table for slot in slots], dtype
        self.readers = nn.ModuleList(
            _Rows([numbers], table.dim) for numbers, table in zip(stored, tables, strict=True)
        )
        self.choices = nn.ModuleList(RowChoice([table], [0], table.rows) for table in tables)

    def forward(self, values: Tensor, starts: Sequence[int], counts: Sequence[int]) -> list[Tensor]:
        """Return the row of each id of each slot, and zeros for the counts of ids out of range."""
        outputs = []
        for number, start, count in zip(self.numbers, starts, counts, strict=True):
            ids = values.narrow(0, start, count)
            rows, has_row = self.choices[number](ids, torch.zeros_like(ids, dtype=torch.int64))
            vectors = self.readers[number](rows).to(self.dtype)
            outputs.append(torch.where(has_row.unsqueeze(1), vectors, 0.0))
        return [*outputs, torch.zeros(len(self.readers), dtype=torch.int64)]


class ChosenRows(nn.Module):
    """The operator ``choose_rows`` of given tables.

    Args:
        tables: the tables.
        slots: the slots.
    """

    def __init__(self, tables: Sequence[TableSpec], slots: Sequence[SlotSpec]) -> None:
        super().__init__()
        self.numbers = [slot.table for slot in slots]
        self.choices = nn.ModuleList(RowChoice([table], [0], table.rows) for table in tables)

    def forward(
        self, values: Tensor, starts: Sequence[int], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the row of each id of each slot, and zeros for the counts of ids out of range.

        An id that is refused has a row behind the last, which is refused where it is looked up.
        """
        found = []
        for number, start, count in zip(self.numbers, starts, counts, strict=True):
            ids = values.narrow(0, start, count)
            rows, has_row = self.choices[number](ids, torch.zeros_like(ids, dtype=torch.int64))
            is_there = has_row | (rows >= self.choices[number].total)
            found.append(torch.where(is_there, rows, NO_ROW))
        return torch.cat(found), torch.zeros(len(self.choices), dtype=torch.int64)


class PermutedKeys(nn.Module):
    """The operator ``permute_jagged`` in a given order, for keys that have as many bags each.

    Args:
        order: positions of keys; one may be left out or taken several times.
        num_keys: keys of the input.
    """

    def __init__(self, order: Sequence[int], num_keys: int) -> None:
        super().__init__()
        self.num_keys = num_keys
        self.order: Tensor
        self.register_buffer("order", torch.tensor(order, dtype=torch.int64))

    def forward(
        self, lengths: Tensor, values: Tensor, weights: Tensor | None, total: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, weights (an empty tensor if there are none) and lengths of the keys in order."""
        ends = lengths.cumsum(0)
        taken, starts = (
            numbers.view(self.num_keys, -1).index_select(0, self.order).flatten()
            for numbers in (lengths, ends - lengths)
        )
        offsets = torch.cat([taken.new_zeros(1), taken.cumsum(0)])
        bags = bag_of_each(offsets, total)
        index = torch.arange(total) + (starts - offsets[:-1]).index_select(0, bags)
        out = torch.zeros(0) if weights is None else weights.index_select(0, index)
        return values.index_select(0, index), out, taken
