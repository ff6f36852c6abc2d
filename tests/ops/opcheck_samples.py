"""Arguments of every operator, for ``test_opcheck.py``: small, and of every kind that an operator tells apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import torchrec.ops.hash_collision
import torchrec.ops.hashing
import torchrec.ops.interaction
import torchrec.ops.jagged
import torchrec.ops.metrics
import torchrec.ops.permute
import torchrec.ops.routing  # noqa: F401
from torchrec.ops import collision
from torchrec.ops.embedding import (
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    new_hyper,
    write_hyper,
)
from torchrec.ops.embedding.hyper import SAMPLES
from torchrec.ops.embedding.updates import RULES
from torchrec.ops.quant import RowFormat, quantize_rows
from torchrec.types import OptimizerType

T = torch.tensor
Sample = tuple[str, tuple[Any, ...]]
MOST = 2**63 - 1


def embedding() -> list[Sample]:
    """Two tables, the second a shard; two keys of three bags."""
    rule = RULES[OptimizerType.ADAM]
    settings = rule.hyper({})
    names = rule.state_names(settings)
    tables = [
        TableSpec("a", 3, 5, 4, PolicyCode.OVERFLOW, OptimizerType.ADAM, len(names)),
        TableSpec("b", 2, 6, 6, PolicyCode.IGNORE, OptimizerType.ADAM, len(names), 2, 3),
    ]
    slots = [SlotSpec("f", 0, 0, PoolingCode.SUM, 0), SlotSpec("g", 1, 1, PoolingCode.MEAN, 3)]
    spec = LookupSpec(tables, slots, 2, 5)
    weights = [torch.randn(5, 3), torch.randn(3, 2)]
    values, offsets = T([0, 9, 3, 4, 2, 3, 7]), T([0, 2, 2, 3, 5, 5, 7])
    sample_weights, divisors = torch.randn(7), T([2, 1, 1, 5, 0, 3])
    bags = spec.tensor, values, offsets, sample_weights, divisors, 2
    plain = spec.tensor, values, offsets, None, None, 2
    ids = spec.tensor, values, [0, 3], [3, 4]
    grad, grads = torch.randn(3, 5), [torch.randn(3, 3), torch.randn(4, 2)]
    states = [rule.new_state(name, weight, settings) for weight in weights for name in names]
    hyper = new_hyper(2)
    for row in hyper:
        write_hyper(row, settings)
    write_hyper(hyper[0], rule.hyper({"lazy": False, "batch_l2": 0.5}))
    hyper[0, SAMPLES] = 3
    fused = weights, states, hyper
    return [
        ("choose_rows", (spec.tensor, values, offsets, [0, 3], [3, 4], 2, 2, spec.names)),
        ("choose_rows", (spec.tensor, values.int(), None, [0, 3], [0, 4], 2, 2, spec.names)),
        ("embedding_bag", (weights, *bags, 5, torch.float32, spec.names)),
        ("embedding_bag", (weights, *plain, 5, torch.float16, spec.names)),
        ("embedding_bag_dense_grad", (grad, weights, *bags)),
        ("embedding_bag_sparse_grad", (grad, weights, *bags)),
        ("embedding_bag_weights_grad", (grad, weights, *bags)),
        ("embedding_bag_update_", (grad, *fused, *bags)),
        ("embedding_sequence", (weights, *ids, spec.dims, torch.float32, spec.names)),
        ("embedding_sequence_dense_grad", (grads, weights, *ids)),
        ("embedding_sequence_sparse_grad", ([grads[0], None], weights, *ids)),
        ("embedding_sequence_update_", (grads, *fused, *ids)),
    ]


def quant() -> list[Sample]:
    """A table of codes and one of floats, the second a shard; two keys of three bags."""
    tables = [
        TableSpec("a", 3, 5, 4, PolicyCode.OVERFLOW),
        TableSpec("b", 2, 6, 6, PolicyCode.IGNORE, None, 0, 2, 3),
    ]
    slots = [SlotSpec("f", 0, 0, PoolingCode.SUM, 0), SlotSpec("g", 1, 1, PoolingCode.MEAN, 3)]
    spec = LookupSpec(tables, slots, 2, 5)
    formats = [RowFormat.INT4, RowFormat.FP16]
    plain = [torch.randn(5, 3), torch.randn(3, 2)]
    rows = [quantize_rows(weight, format) for weight, format in zip(plain, formats, strict=True)]
    values, offsets = T([0, 9, 3, 4, 2, 3, 7]), T([0, 2, 2, 3, 5, 5, 7])
    bags = values, offsets, torch.randn(7), 2, 5, torch.float32, spec.names
    ids = values, [0, 3], [3, 4], spec.dims, torch.bfloat16, spec.names
    numbers = [int(format) for format in formats]
    return [
        ("quantize_rows", (plain[0], None, int(RowFormat.INT2), 16, "a")),
        ("quantize_rows", (plain[0], torch.randn(5, 2), int(RowFormat.INT8), 7, "")),
        ("quantize_rows", (plain[1].half(), None, int(RowFormat.BF16), 4, "")),
        ("dequantize_rows", (rows[0], numbers[0], 3)),
        ("dequantize_rows", (rows[1], numbers[1], 2)),
        ("quantized_bag", (rows, numbers, spec.tensor, *bags)),
        ("quantized_sequence", (rows, numbers, spec.tensor, *ids)),
    ]


def id_map(ids: list[int], rows: list[int]) -> collision.IdMap:
    made = collision.new_id_map(4)
    collision.insert_ids(made, T(ids, dtype=torch.int64), T(rows, dtype=torch.int64))
    return made


def id_maps() -> list[Sample]:
    none, new = T([], dtype=torch.int64), T([7, -1, 9])
    found: list[Sample] = [
        ("id_map_find", (*id_map([5, MOST], [2, 0])[::2], T([5, 7, -1]), -1)),
        ("id_map_find", (*id_map([], [])[::2], none, 9)),
        ("id_map_insert_", (*id_map([5], [2]), T([7, -1]), T([0, 3]))),
        ("id_map_erase_", (*id_map([5, 7], [2, 0]), T([2]))),
        ("id_map_rebuild_", (T([5, 7, 9]), T([2, 0]), torch.ones(16, dtype=torch.int32))),
    ]
    for counts in (torch.zeros(4, dtype=torch.int64), None):
        made, history = id_map([5, MOST], [2, 0]), collision.new_history(8)
        totals, last = torch.zeros(3, dtype=torch.int64), None if counts is None else counts.clone()
        rest = (counts, last, *history, totals, T([5, 7, -1, 7, 5]), 3, -1)
        found.append(("id_map_count_", (made.ids, made.entries, *rest)))
    for dtype in (torch.int64, torch.float64):
        scores = T([3, 0, 1, 0]).to(dtype), new, T([1, 2, 0]).to(dtype)
        found.append(("id_map_replace_", (*id_map([5, MOST], [2, 0]), *scores)))
    return found


def slot_maps() -> list[Sample]:
    """Two of three buckets, the second with an id."""
    rest = 1, 3, 0, False, 1, 2, True
    found: list[Sample] = []
    for ids in (T([4, 5, -1, 7, 4]), T([], dtype=torch.int64)):
        identities, totals = T([-1, -1, -1, 5, -1, -1]), torch.zeros(5, dtype=torch.int64)
        hours, scores = torch.zeros(6, dtype=torch.int32), torch.ones(ids.numel()).int()
        found += [
            ("hash_slots_find_", (identities, T([0, 3, 6]), totals, ids, *rest)),
            (
                "hash_slots_assign_",
                (identities, None, T([0, 3, 6]), totals, ids, None, None, *rest, 0, False),
            ),
            (
                "hash_slots_assign_",
                (identities, hours, T([0, 3, 6]), totals, ids, scores, scores > 0, *rest, 1, False),
            ),
        ]
    return found


def asked(*shape: int) -> Tensor:
    """A tensor that asks for its gradient."""
    return torch.randn(shape, requires_grad=True)


def jagged() -> list[Sample]:
    return [
        ("lengths_to_offsets", (T([1, 0, 2]),)),
        ("lengths_to_offsets", (T([], dtype=torch.int32),)),
        ("jagged_index_select", (asked(3, 2), T([1, 0, 2]), T([2, 0, 2]), 5)),
        ("jagged_index_select", (T([5, 6]), T([1, 1], dtype=torch.int32), T([1]), 1)),
        ("jagged_to_padded", (asked(3, 2), T([0, 1, 1, 3]), 2, 0.5)),
        ("padded_to_jagged", (asked(3, 2, 4), T([0, 1, 1, 3]), 3)),
        ("permute_jagged", (T([1, 0, 2, 1]), asked(4, 2), asked(4), [2, 2], [1, 0, 1], 7)),
        ("permute_jagged", (T([1, 0, 2]), T([5, 6, 7]), None, [1, 2], [1], 2)),
        ("regroup", ([asked(2, 3), asked(2, 2)], [0, 1, 2, 1, 0, 1, 0, 1, 1], [2, 1])),
    ]


def others() -> list[Sample]:
    return [
        ("route_rows", (T([7, 2, 9, 0]), T([[3, 1]]), [4], [0, 0, 5, 0, 0, 5, 10, 0])),
        ("route_rows", (T([-1, 4]), T([[1], [1]]).int(), [1, 1], [1, 2, 9, 3])),
        ("copy_blocks_", ([torch.randn(6)], [torch.randn(3, 4)], [0, 1, 4, 0, 0, 2, 3, 2, 1], 2)),
        ("copy_blocks_", ([T([0, 7])], [T([1, 2]), T([3])], [0, 0, 1, 0, 1, 1, 1, 1, 0], 1)),
        ("hash_strings", (torch.arange(50, dtype=torch.uint8), T([0, 3, 3, 50]), 0)),
        ("hash_strings", (torch.arange(9, dtype=torch.uint8), T([2, 9]).int(), -5)),
        ("dot_interaction", (asked(4, 3), asked(4, 2, 3))),
        ("dot_interaction", (torch.randn(4, 3).half(), torch.randn(4, 2, 3).half())),
        ("dot_interaction_grad", (torch.randn(4, 6), torch.randn(4, 3), torch.randn(4, 2, 3))),
    ]


def metrics() -> list[Sample]:
    """Two tasks of nine samples, whose last is by itself; of float32, which kernels take, and of others."""
    plain = torch.rand(2, 9), torch.rand(2, 9).round(), torch.rand(2, 9)
    wide = torch.rand(2, 9).double(), torch.ones(2, 9, dtype=torch.int64), None
    empty = torch.empty(1, 0), torch.empty(1, 0), None
    given = (plain, wide, empty)
    return [
        *(("weighted_sums", x) for x in given),
        *(("cross_entropy_sums", (*x, 1e-12)) for x in given),
        *(("threshold_sums", (*x, 0.5)) for x in given),
        *(("roc_areas", x) for x in given),
    ]


OPCHECK_SAMPLES = [
    *embedding(),
    *quant(),
    *id_maps(),
    *slot_maps(),
    *jagged(),
    *others(),
    *metrics(),
]
