"""Valid arguments of operators, drawn at random: small, and of every kind that an operator tells apart.

An operator that has nothing here is called with the samples that ``opcheck`` has of it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

import torchrec.ops.hashing
import torchrec.ops.interaction
import torchrec.ops.jagged
import torchrec.ops.metrics
import torchrec.ops.permute
import torchrec.ops.routing  # noqa: F401
from torchrec.ops import collision, hash_collision
from torchrec.ops.embedding import (
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    new_hyper,
    write_hyper,
)
from torchrec.ops.embedding.updates import RULES
from torchrec.ops.quant import RowFormat, quantize_rows

Arguments = list[Any]
Draw = Callable[[Random], Arguments]

FLOATS = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
ANY = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)


def numbers(random: Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return eighths, which every type of a table holds exactly."""
    count = torch.Size(shape).numel()
    drawn = torch.tensor([random.randint(-16, 16) / 8 for _ in range(count)], dtype=torch.float32)
    return (
        (drawn * 8 if not (dtype.is_floating_point or dtype.is_complex) else drawn)
        .view(shape)
        .to(dtype)
    )


def integers(random: Random, drawn: list[int]) -> Tensor:
    """Return integers of one width or the other."""
    return torch.tensor(drawn, dtype=random.choice((torch.int64, torch.int32)))


def lengths_of(random: Random, count: int, most: int = 3) -> list[int]:
    return [random.randint(0, most) for _ in range(count)]


def offsets_of(lengths: list[int]) -> list[int]:
    return [sum(lengths[:i]) for i in range(len(lengths) + 1)]


# ---- look-ups


def table(random: Random, number: int) -> tuple[TableSpec, Tensor, list[Tensor], Any]:
    """Return a table, the shard of it that its weight is, its states and hyper-parameters."""
    rows, dim = random.randint(1, 9), random.choice((1, 2, 3, 4, 7, 16, 17, 40))
    policy = random.choice(list(PolicyCode))
    known = rows if policy != PolicyCode.OVERFLOW else random.randint(1, rows)
    first = random.randint(0, rows) if random.random() < 0.2 else 0
    held = random.randint(0, rows - first) if random.random() < 0.2 else rows - first
    weight = numbers(random, held, dim, dtype=random.choice(FLOATS))
    kind = random.choice([None, *RULES])
    states: list[Tensor] = []
    settings = None
    if kind is not None:
        rule = RULES[kind]
        settings = rule.hyper({"lr": 0.125})
        names = rule.state_names(settings)
        states = [rule.new_state(name, weight, settings).float() for name in names]
    spec = TableSpec(f"t{number}", dim, rows, known, policy, kind, len(states), first, held)
    return spec, weight, states, settings


def ids_for(random: Random, spec: TableSpec, count: int) -> list[int]:
    if spec.policy == PolicyCode.ERROR:
        return [random.randrange(spec.num_embeddings) for _ in range(count)]
    if spec.policy == PolicyCode.ROWS:
        return [random.randrange(-1, spec.rows) for _ in range(count)]
    others = (-1, -(2**31), 2**31 - 1, spec.num_embeddings)
    return [
        random.choice(others) if random.random() < 0.2 else random.randrange(spec.num_embeddings)
        for _ in range(count)
    ]


def look_up(random: Random) -> dict[str, Any]:
    """Return what all operators of look-ups take, by the names of their arguments."""
    drawn = [table(random, t) for t in range(random.randint(1, 3))]
    specs, weights = [spec for spec, _, _, _ in drawn], [weight for _, weight, _, _ in drawn]
    hyper = new_hyper(len(drawn))
    for row, (_, _, _, settings) in zip(hyper, drawn, strict=True):
        if settings is not None:
            write_hyper(row, settings)
    batch = random.randint(0, 4)
    slots: list[SlotSpec] = []
    lengths: list[int] = []
    values: list[int] = []
    column = 0
    for s in range(random.randint(1, 4)):
        number = random.randrange(len(specs))
        pooling = random.choice(list(PoolingCode))
        mine = [1] * batch if pooling == PoolingCode.NONE else lengths_of(random, batch)
        slots.append(SlotSpec(f"f{s}", number, s, pooling, column))
        values += ids_for(random, specs[number], sum(mine))
        lengths += mine
        column += specs[number].dim
    spec = LookupSpec(specs, slots, len(slots), column)
    offsets = offsets_of(lengths)
    weighted = random.random() < 0.5
    dtype = random.choice(FLOATS)
    counts = [offsets[(s + 1) * batch] - offsets[s * batch] for s in range(len(slots))]
    grads: list[Tensor | None] = [
        None
        if random.random() < 0.2
        else numbers(random, count, specs[slot.table].dim, dtype=dtype)
        for slot, count in zip(slots, counts, strict=True)
    ]
    return {
        "grad": numbers(random, batch, column, dtype=dtype),
        "grads": grads,
        "weights": weights,
        "states": [state for _, _, states, _ in drawn for state in states],
        "hyper": hyper,
        "spec": spec.tensor,
        "values": integers(random, values),
        "offsets": integers(random, offsets),
        "starts": [offsets[s * batch] for s in range(len(slots))],
        "counts": counts,
        "dims": spec.dims,
        "sample_weights": numbers(random, len(values)) if weighted else None,
        "divisors": integers(random, lengths_of(random, len(lengths)))
        if random.random() < 0.3
        else None,
        "num_keys": len(slots),
        "num_tables": len(specs),
        "width": column,
        "dtype": dtype,
        "names": spec.names,
    }


def of_look_up(name: str) -> Draw:
    """Return what draws the arguments of an operator of look-ups."""

    def draw(random: Random) -> Arguments:
        drawn = look_up(random)
        if name == "embedding_bag_weights_grad" and drawn["sample_weights"] is None:
            drawn["sample_weights"] = numbers(random, drawn["values"].numel())
        schema = getattr(torch.ops.rowwise, name).default._schema
        return [drawn[argument.name] for argument in schema.arguments]

    return draw


# ---- rows of few bits


def matrix(random: Random, dtype: torch.dtype) -> Tensor:
    return numbers(
        random, random.randint(0, 5), random.choice((1, 2, 3, 7, 16, 17, 40)), dtype=dtype
    )


def quantize(random: Random) -> Arguments:
    weight, format = matrix(random, random.choice(FLOATS)), random.choice(list(RowFormat))
    bounds = numbers(random, len(weight), 2) if random.random() < 0.3 else None
    size = format.row_bytes(weight.shape[1], random.choice((4, 16)))
    return [weight, bounds, int(format), size, "t"]


def dequantize(random: Random) -> Arguments:
    weight, format = matrix(random, torch.float32), random.choice(list(RowFormat))
    return [quantize_rows(weight, format), int(format), weight.shape[1]]


def of_quantised(name: str) -> Draw:
    """Return what draws the arguments of a look-up in quantised tables."""

    def draw(random: Random) -> Arguments:
        drawn = look_up(random)
        formats = [random.choice(list(RowFormat)) for _ in drawn["weights"]]
        drawn["weights"] = [
            quantize_rows(weight, format, random.choice((4, 16)))
            for weight, format in zip(drawn["weights"], formats, strict=True)
        ]
        drawn["formats"] = [int(format) for format in formats]
        schema = getattr(torch.ops.rowwise, name).default._schema
        return [drawn[argument.name] for argument in schema.arguments]

    return draw


# ---- id maps


def id_map(random: Random) -> tuple[collision.IdMap, list[int], list[int]]:
    """Return a map, the rows that are held, and the ids that hold them."""
    size = random.randint(1, 40)
    made = collision.new_id_map(size)
    held = random.sample(range(size), random.randint(0, size))
    ids = random.sample(range(-50, 200), len(held))
    collision.insert_ids(
        made, torch.tensor(ids, dtype=torch.int64), torch.tensor(held, dtype=torch.int64)
    )
    return made, held, ids


def some(random: Random, choices: list[int], count: int) -> Tensor:
    return torch.tensor([random.choice(choices) for _ in range(count)], dtype=torch.int64)


def find(random: Random) -> Arguments:
    made, _, ids = id_map(random)
    return [made.ids, made.entries, some(random, [*ids, 999, -999], random.randint(0, 9)), -1]


def count(random: Random) -> Arguments:
    made, _, ids = id_map(random)
    size = made.ids.numel()
    counts = torch.zeros(size, dtype=torch.int64) if random.random() < 0.7 else None
    last = torch.zeros(size, dtype=torch.int64) if random.random() < 0.7 else None
    history = collision.new_history(random.randint(1, 6))
    batch = some(random, [*ids, *range(900, 910)], random.randint(0, 20))
    totals = torch.zeros(3, dtype=torch.int64)
    return [made.ids, made.entries, counts, last, *history, totals, batch, 7, -1]


def replace(random: Random) -> Arguments:
    made, _, _ = id_map(random)
    size, given = made.ids.numel(), random.randint(0, 12)
    dtype = random.choice((torch.int64, torch.float64))
    candidates = torch.tensor(random.sample(range(500, 600), given), dtype=torch.int64)
    scores = some(random, list(range(5)), size).to(dtype)
    return [*made, scores, candidates, some(random, list(range(5)), given).to(dtype)]


def insert(random: Random) -> Arguments:
    made, held, _ = id_map(random)
    free = [row for row in range(made.ids.numel()) if row not in held]
    rows = random.sample(free, random.randint(0, len(free)))
    ids = random.sample(range(500, 600), len(rows))
    return [*made, torch.tensor(ids, dtype=torch.int64), torch.tensor(rows, dtype=torch.int64)]


def erase(random: Random) -> Arguments:
    made, held, _ = id_map(random)
    rows = random.sample(held, random.randint(0, len(held)))
    return [*made, torch.tensor(rows, dtype=torch.int64)]


def rebuild(random: Random) -> Arguments:
    made, held, _ = id_map(random)
    made.entries.fill_(random.choice((0, 1, -1)))
    return [made.ids, torch.tensor(sorted(held), dtype=torch.int64), made.entries]


# ---- slot maps


def slot_map(random: Random) -> tuple[Tensor, Tensor, list[Any]]:
    """Return the identities of a map, where its buckets start, and the numbers of its operators."""
    reserved = random.choice((0, 0, 1, 3))
    sizes = [random.randint(reserved + 1, reserved + 12) for _ in range(random.randint(1, 4))]
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    first = random.randint(0, 2)
    buckets = first + len(sizes) + random.randint(0, 1)
    probes = random.choice((1, 2, 128))
    flags = random.random() < 0.3, random.random() < 0.7
    numbers = [first, buckets, random.choice((0, 7)), flags[0], reserved, probes, flags[1]]
    identities = torch.full((sum(sizes),), -1)
    ids = integers_between(random, -40, 60, 30)
    totals = torch.zeros(5, dtype=torch.int64)
    hash_collision.schema.hash_slots_assign_(
        identities, None, bounds, totals, ids, None, None, *numbers, 0, False
    )
    return identities, bounds, numbers


def integers_between(random: Random, least: int, most: int, count: int) -> Tensor:
    return torch.tensor([random.randint(least, most) for _ in range(count)], dtype=torch.int64)


def find_slots(random: Random) -> Arguments:
    identities, bounds, numbers = slot_map(random)
    ids = integers_between(random, -40, 60, random.randint(0, 40))
    return [identities, bounds, torch.zeros(5, dtype=torch.int64), ids, *numbers]


def assign_slots(random: Random) -> Arguments:
    identities, bounds, numbers = slot_map(random)
    count = random.randint(0, 60)
    hours = integers_between(random, 0, 5, identities.numel()).int()
    scores = integers_between(random, 0, 8, count).int()
    admitted = integers_between(random, 0, 3, count) > 0 if random.random() < 0.5 else None
    timed = (hours, scores) if random.random() < 0.7 else (None, None)
    ids = integers_between(random, -40, 90, count)
    totals = torch.zeros(5, dtype=torch.int64)
    oldest = random.random() < 0.5
    rest = [ids, timed[1], admitted, *numbers, random.randint(0, 6), oldest]
    return [identities, timed[0], bounds, totals, *rest]


# ---- jagged tensors


def rows_of(random: Random, count: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return values: some rows of any dtype and number of dimensions."""
    rest = random.choice(((), (), (1,), (3,), (2, 2), (0,)))
    return numbers(random, count, *rest, dtype=dtype or random.choice(ANY))


def select(random: Random) -> Arguments:
    lengths = lengths_of(random, random.randint(1, 6))
    bags = [random.randrange(len(lengths)) for _ in range(random.randint(0, 6))]
    total = sum(lengths[bag] for bag in bags)
    return [rows_of(random, sum(lengths)), integers(random, lengths), integers(random, bags), total]


def to_padded(random: Random) -> Arguments:
    lengths = lengths_of(random, random.randint(0, 6))
    values = rows_of(random, sum(lengths))
    padding = 0.0 if values.dtype in (torch.bool, torch.uint8) else random.choice((0.0, 2.0))
    return [values, integers(random, offsets_of(lengths)), random.randint(0, 5), padding]


def from_padded(random: Random) -> Arguments:
    lengths, width = lengths_of(random, random.randint(0, 6)), random.randint(0, 4)
    rest = random.choice(((), (2,), (0,)))
    padded = numbers(random, len(lengths), width, *rest, dtype=random.choice(ANY))
    return [padded, integers(random, offsets_of(lengths)), sum(lengths)]


def permute(random: Random) -> Arguments:
    strides = [random.randint(0, 4) for _ in range(random.randint(0, 4))]
    lengths = [lengths_of(random, stride) for stride in strides]
    flat = [length for mine in lengths for length in mine]
    order = [random.randrange(len(strides)) for _ in range(random.randint(0, 6))] if strides else []
    total = sum(sum(lengths[key]) for key in order)
    weights = rows_of(random, sum(flat)) if random.random() < 0.5 else None
    return [integers(random, flat), rows_of(random, sum(flat)), weights, strides, order, total]


def regroup(random: Random) -> Arguments:
    rows, dtype = random.randint(0, 5), random.choice(ANY)
    inputs = [
        numbers(random, rows, random.randint(0, 5), dtype=dtype)
        for _ in range(random.randint(1, 3))
    ]
    pieces: list[int] = []
    counts = lengths_of(random, random.randint(0, 4))
    for _ in range(sum(counts)):
        source = random.randrange(-1, len(inputs))
        columns = 4 if source < 0 else inputs[source].size(1)
        start = random.randint(0, columns)
        pieces += [source, start, random.randint(0, columns - start)]
    return [inputs, pieces, counts]


def route(random: Random) -> Arguments:
    slots, size = random.randint(0, 3), random.randint(0, 4)
    lengths = [lengths_of(random, size) for _ in range(slots)]
    bands: list[int] = []
    for slot in range(slots):
        end = 0
        for _ in range(random.randint(0, 3)):
            first = end + random.randint(0, 2)
            end = first + random.randint(0, 4)
            bands += [slot, first, end, random.randint(0, 3)]
    counts = [sum(mine) for mine in lengths]
    rows = torch.tensor([random.randint(-1, 12) for _ in range(sum(counts))], dtype=torch.int64)
    flat = integers(random, [length for mine in lengths for length in mine])
    return [rows, flat.view(slots, size), counts, bands]


def blocks(random: Random) -> Arguments:
    """Columns of some matrices, written once or added to one another."""
    rows, outputs = random.randint(0, 3), random.randint(1, 2)
    widths = [random.randint(1, 4) for _ in range(random.randint(1, 3))]
    inputs = [numbers(random, rows, width) for width in widths]
    column = random.randint(1, min(widths))
    flat: list[int] = []
    for output in range(outputs):
        for i in range(random.randint(1, 3)):
            source = random.randrange(len(inputs))
            first = random.randint(0, widths[source] - column)
            kind = random.randint(0, 1) + (2 if i else 0)
            flat += [source, first if rows else 0, widths[source], output, 0, column]
            flat += [rows, column, kind]
    written = [numbers(random, rows * column) for _ in range(outputs)]
    return [written, inputs, flat, random.randint(1, 3)]


# ---- others


def strings(random: Random) -> Arguments:
    lengths = lengths_of(random, random.randint(0, 5), 70)
    data = torch.tensor([random.randrange(256) for _ in range(sum(lengths))], dtype=torch.uint8)
    return [data, integers(random, offsets_of(lengths)), random.randint(-9, 9)]


def vectors(random: Random) -> Arguments:
    samples, features, dim = (
        random.randint(0, 4),
        random.randint(0, 4),
        random.choice((0, 1, 3, 16, 17)),
    )
    dtype = random.choice(FLOATS)
    return [
        numbers(random, samples, dim, dtype=dtype),
        numbers(random, samples, features, dim, dtype=dtype),
    ]


def vectors_grad(random: Random) -> Arguments:
    dense, sparse = vectors(random)
    features = sparse.size(1)
    width = dense.size(1) + features * (features + 1) // 2
    return [numbers(random, dense.size(0), width, dtype=dense.dtype), dense, sparse]


def of_tasks(*options: float) -> Draw:
    def draw(random: Random) -> Arguments:
        shape = (random.randint(0, 3), random.choice((0, 1, 7, 8, 17)))
        dtype = random.choice(FLOATS)
        weights = numbers(random, *shape, dtype=dtype) if random.random() < 0.7 else None
        return [*(numbers(random, *shape, dtype=dtype) for _ in range(2)), weights, *options]

    return draw


DRAWS: dict[str, Draw] = {
    "id_map_find": find,
    "id_map_count_": count,
    "id_map_replace_": replace,
    "id_map_insert_": insert,
    "id_map_erase_": erase,
    "id_map_rebuild_": rebuild,
    "hash_slots_find_": find_slots,
    "hash_slots_assign_": assign_slots,
    "quantize_rows": quantize,
    "dequantize_rows": dequantize,
    "quantized_bag": of_quantised("quantized_bag"),
    "quantized_sequence": of_quantised("quantized_sequence"),
    "lengths_to_offsets": lambda random: [
        integers(random, lengths_of(random, random.randint(0, 9)))
    ],
    "jagged_index_select": select,
    "jagged_to_padded": to_padded,
    "padded_to_jagged": from_padded,
    "permute_jagged": permute,
    "regroup": regroup,
    "route_rows": route,
    "copy_blocks_": blocks,
    "hash_strings": strings,
    "dot_interaction": vectors,
    "dot_interaction_grad": vectors_grad,
    "weighted_sums": of_tasks(),
    "cross_entropy_sums": of_tasks(1e-12),
    "threshold_sums": of_tasks(0.5),
    "roc_areas": of_tasks(),
    **{
        name: of_look_up(name)
        for name in (
            "choose_rows",
            "embedding_bag",
            "embedding_bag_dense_grad",
            "embedding_bag_sparse_grad",
            "embedding_bag_weights_grad",
            "embedding_bag_update_",
            "embedding_sequence",
            "embedding_sequence_dense_grad",
            "embedding_sequence_sparse_grad",
            "embedding_sequence_update_",
        )
    },
}
