"""The operators of the original's kernels, against what they say in plain Python; in a namespace of the tests' own."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from torchrec.compat.operators import OPERATORS, define_operators

T = torch.tensor
_library = torch.library.Library("compat_operators", "DEF")
define_operators(_library)
ops = torch.ops.compat_operators


def offsets_of(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return T(list(itertools.accumulate(lengths, initial=0)), dtype=dtype)


def bags_of(values: list, lengths: list[int]) -> list[list]:
    rest = iter(values)
    return [list(itertools.islice(rest, length)) for length in lengths]


def some_lengths(seed: int, most: int = 4) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(0, most) for _ in range(draw.randint(0, 5))]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_sums(dtype):
    numbers = T([3, 0, 2, 4], dtype=dtype)
    for name, right in {
        "complete": [0, 3, 3, 5, 9],
        "inclusive": [3, 3, 5, 9],
        "exclusive": [0, 3, 3, 5],
    }.items():
        sums = getattr(ops, f"asynchronous_{name}_cumsum")(numbers)
        assert (sums.tolist(), sums.dtype) == (right, dtype)
        none = getattr(ops, f"asynchronous_{name}_cumsum")(numbers[:0])
        assert none.tolist() == ([0] if name == "complete" else [])


def test_sums_of_a_matrix():
    numbers = T([[1, 2], [3, 4]])
    assert ops.asynchronous_complete_cumsum(numbers).tolist() == [[0, 1, 3], [0, 3, 7]]
    assert ops.asynchronous_inclusive_cumsum(numbers).tolist() == [[1, 3], [6, 10]]
    assert ops.asynchronous_exclusive_cumsum(numbers).tolist() == [[0, 1], [3, 6]]
    with pytest.raises(ValueError, match=r"`t_in` should have 1 or 2 dimensions\. Received 3"):
        ops.asynchronous_complete_cumsum(numbers[None])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("width", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_padding(seed, width, dtype):
    lengths = some_lengths(seed)
    values = torch.arange(sum(lengths)).to(dtype)
    right = [(bag + [9] * width)[:width] for bag in bags_of(values.tolist(), lengths)]
    padded = ops.jagged_to_padded_dense(values, [offsets_of(lengths)], [width], 9)
    assert (padded.tolist(), padded.dtype) == (right, dtype)
    assert padded.shape == (len(lengths), width)
    assert torch.equal(
        ops.jagged_to_padded_dense_forward(values, [offsets_of(lengths)], [width], 9.0), padded
    )
    assert torch.equal(ops.jagged_1d_to_dense(values, offsets_of(lengths), width, 9), padded)
    vectors = torch.stack([values, -values], 1)
    by_vector = ops.jagged_2d_to_dense(vectors, offsets_of(lengths, torch.int32), width)
    at_zero = ops.jagged_to_padded_dense(values, [offsets_of(lengths)], [width])
    assert torch.equal(by_vector, torch.stack([at_zero, -at_zero], 2))
    assert torch.equal(ops.pack_segments(vectors, T(lengths, dtype=torch.int64), width), by_vector)


def test_padding_of_bags_of_bags():
    values, outer, inner = T([1, 2, 3]), T([0, 2, 3]), T([0, 1, 1, 3])
    padded = ops.jagged_to_padded_dense(values, [outer, inner], [2, 2], 9.0)
    assert padded.tolist() == [[[1, 9], [9, 9]], [[2, 3], [9, 9]]]
    dense = torch.arange(1, 9).view(2, 2, 2, 1)
    taken, offsets = ops.dense_to_jagged(dense, [outer, inner])
    assert taken.tolist() == [[1], [5], [6]]
    assert [o.tolist() for o in offsets] == [[0, 2, 3], [0, 1, 1, 3]]


def test_padding_that_the_values_cannot_hold_is_cut():
    assert ops.jagged_to_padded_dense(T([1]), [T([0, 1])], [2], 1.5).tolist() == [[1, 1]]


def test_values_behind_the_last_bag_are_left_out():
    values = torch.arange(4.0, requires_grad=True)
    padded = ops.jagged_to_padded_dense(values, [T([0, 1, 2])], [2], 9.0)
    assert padded.tolist() == [[0, 9], [1, 9]]
    padded.sum().backward()
    assert values.grad.tolist() == [1, 1, 0, 0]
    added, _ = ops.jagged_dense_elementwise_add_jagged_output(
        torch.ones(4, 1), [T([0, 1, 2])], torch.ones(2, 2, 1)
    )
    assert added.flatten().tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("more", [None, 0, 2])
def test_taking_bags_out_of_a_dense_tensor(seed, width, more):
    lengths = some_lengths(seed)
    dense = torch.arange(len(lengths) * width * 2.0).view(len(lengths), width, 2)
    rows = [(row + [[0, 0]] * 9)[:n] for row, n in zip(dense.tolist(), lengths, strict=True)]
    right = [vector for row in rows for vector in row] + [[0, 0]] * (more or 0)
    total = None if more is None else sum(lengths) + more
    taken, (offsets,) = ops.dense_to_jagged(dense, [offsets_of(lengths)], total)
    assert taken.tolist() == right
    assert torch.equal(offsets, offsets_of(lengths))
    assert torch.equal(ops.dense_to_jagged_forward(dense, [offsets], total), taken)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("width", [1, 3])
def test_arithmetic_with_dense_tensors(seed, width):
    lengths = some_lengths(seed)
    offsets = [offsets_of(lengths)]
    x, y = torch.randn(sum(lengths), 2), torch.randn(len(lengths), width, 2)
    places = [(b, i) for b, length in enumerate(lengths) for i in range(length)]
    there = torch.zeros(len(places), 2)
    for row, (b, i) in enumerate(places):
        if i < width:
            there[row] = y[b, i]
    add, multiply = (
        ops.jagged_dense_elementwise_add_jagged_output(x, offsets, y),
        ops.jagged_dense_elementwise_mul(x, offsets, y),
    )
    assert torch.equal(add[0], x + there)
    assert torch.equal(multiply[0], x * there)
    assert add[1][0] is offsets[0] or torch.equal(add[1][0], offsets[0])
    twice, _ = ops.jagged_dense_dense_elementwise_add_jagged_output(x, offsets, y, 2 * y)
    torch.testing.assert_close(twice, x + 3 * there)
    dense = ops.jagged_dense_elementwise_add(x, offsets, y)
    right = y.clone()
    for row, (b, i) in enumerate(places):
        if i < width:
            right[b, i] += x[row]
    torch.testing.assert_close(dense, right)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_permuting_keys(seed, dtype):
    draw = random.Random(seed)
    keys, stride = draw.randint(1, 4), draw.randint(1, 3)
    lengths = [[draw.randint(0, 3) for _ in range(stride)] for _ in range(keys)]
    flat = [n for row in lengths for n in row]
    values = list(range(sum(flat)))
    order = [draw.randrange(keys) for _ in range(draw.randint(0, 5))]
    bags = bags_of(values, flat)
    right = [v for k in order for bag in bags[k * stride : (k + 1) * stride] for v in bag]
    arguments = T(order, dtype=dtype), T(lengths), T(values, dtype=torch.int64)
    weights = torch.arange(len(values)) / 2
    for total in (None, len(right)):
        for name in ("permute_2D_sparse_data", "permute_sparse_data"):
            taken, ids, of_ids = getattr(ops, name)(*arguments, weights, total)
            assert taken.tolist() == [lengths[k] for k in order]
            assert taken.shape == (len(order), stride)
            assert ids.tolist() == right
            assert of_ids.tolist() == [v / 2 for v in right]
        taken, ids, none = ops.permute_2D_sparse_data_input1D(
            arguments[0], T(flat), arguments[2], stride, None, total
        )
        assert (taken.tolist(), ids.tolist(), none) == (
            [n for k in order for n in lengths[k]],
            right,
            None,
        )
    bag_order = [draw.randrange(len(flat)) for _ in range(4)]
    taken, ids, none = ops.permute_1D_sparse_data(T(bag_order, dtype=dtype), T(flat), arguments[2])
    assert taken.tolist() == [flat[b] for b in bag_order]
    assert ids.tolist() == [v for b in bag_order for v in bags[b]]
    samples = [draw.randrange(stride) for _ in range(3)]
    ids, taken, of_ids = ops.keyed_jagged_index_select_dim1(
        arguments[2], T(flat), offsets_of(flat), T(samples), stride, weights
    )
    right = [v for k in range(keys) for s in samples for v in bags[k * stride + s]]
    assert ids.tolist() == right
    assert of_ids.tolist() == [v / 2 for v in right]
    assert taken.tolist() == [lengths[k][s] for k in range(keys) for s in samples]


def test_positions():
    order, lengths = T([2, 0, 1], dtype=torch.int32), [3, 0, 2]
    assert ops.invert_permute(order).tolist() == [1, 2, 0]
    assert ops.invert_permute(order).dtype == torch.int32
    taken = offsets_of([2, 3, 0], torch.int32)
    expanded = ops.expand_into_jagged_permute(order, offsets_of(lengths, torch.int32), taken, 5)
    assert (expanded.tolist(), expanded.dtype) == ([3, 4, 0, 1, 2], torch.int32)
    positions = [0, 1, 2, 0, 1]
    for dtype in (torch.int32, torch.int64):
        of_dtype = T(lengths, dtype=dtype)
        found = [
            ops.offsets_range(offsets_of(lengths, dtype)[:-1], 5),
            ops.lengths_range(of_dtype),
            ops.lengths_range(of_dtype, [5]),
            ops.repeat_arange(of_dtype),
        ]
        assert [(f.tolist(), f.dtype) for f in found] == [(positions, dtype)] * 4


def test_columns_and_rows():
    a, b = torch.arange(10.0).view(2, 5), torch.arange(4.0).view(2, 2)
    order = T([0, 2, 3, 5]), T([2, 0, 1]), T([0, 2, 4, 5]), T([1, 2, 0])
    for name in ("permute_pooled_embs", "permute_pooled_embs_auto_grad"):
        assert getattr(ops, name)(a, *order)[0].tolist() == [3, 4, 0, 1, 2]
    one, other = ops.regroup_keyed_tensor(
        [a, b], [["a", "b"], ["c"]], [[2, 3], [2]], [["c", "a"], ["b", "c"]]
    )
    assert one.tolist() == [[0, 1, 0, 1], [2, 3, 5, 6]]
    assert other.tolist() == [[2, 3, 4, 0, 1], [7, 8, 9, 2, 3]]
    assert ops.index_select_dim0(b, T([1, 1, 0])).tolist() == [[2, 3], [2, 3], [0, 1]]
    rows = ops.group_index_select_dim0([a, b], [T([1]), T([0, 0])])
    assert [r.tolist() for r in rows] == [[[5, 6, 7, 8, 9]], [[0, 1], [0, 1]]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sums_of_segments(dtype):
    numbers = torch.arange(1, 7.0)
    for batch, starts, right in (
        (2, [0, 2, 3], [10, 11]),
        (1, [0, 2, 2, 6], [3, 0, 18]),
        (1, [1, 2, 3], [2, 3]),
        (3, [0, 0, 0], [0, 0]),
    ):
        assert ops.segment_sum_csr(batch, T(starts, dtype=dtype), numbers).tolist() == right
    assert ops.segment_sum_csr(1, T([0, 2, 6], dtype=dtype), numbers.half()).tolist() == [3, 18]


def test_stacked_keys():
    lengths = T([[1, 2], [0, 1], [2, 0]])
    values, starts, widths = T([10, 20, 21, 40, 50, 51]), [0, 3, 4, 6], [2, 1, 3]
    right = [[[10, 7], [20, 21]], [[7], [40]], [[50, 51, 7], [7, 7, 7]]]
    padded = ops.stacked_jagged_1d_to_dense(values, lengths, starts, widths, 7)
    assert [p.tolist() for p in padded] == right
    vectors = ops.stacked_jagged_2d_to_dense(
        torch.stack([values, values], 1), lengths, starts, widths, 7
    )
    assert [v[..., 1].tolist() for v in vectors] == right
    with pytest.raises(ValueError, match="each of the 2 keys of `offset_per_key`"):
        ops.stacked_jagged_1d_to_dense(values, lengths, [0, 3, 4], widths, 7)


def test_products_and_softmax():
    lengths, most = [2, 0, 4], 3
    offsets = offsets_of(lengths)
    x, y = torch.randn(6, 2), torch.randn(6, 3)
    stretches = [slice(0, 2), slice(2, 2), slice(2, 5)]  # of each bag the first 3
    products = ops.jagged_jagged_bmm(x, y, offsets, most)
    torch.testing.assert_close(products, torch.stack([x[s].T @ y[s] for s in stretches]))
    dense = torch.randn(3, 2, 4)
    by_dense, _ = ops.jagged_dense_bmm(x, offsets, dense, most)
    right = torch.cat([x[s] @ dense[b] for b, s in enumerate(stretches)])
    torch.testing.assert_close(by_dense, torch.cat([right, torch.zeros(1, 4)]))
    soft, _ = ops.jagged_softmax(x, offsets, most)
    right = torch.cat([x[s].softmax(0) for s in stretches])
    torch.testing.assert_close(soft, torch.cat([right, torch.zeros(1, 2)]))
    vectors, wide = torch.randn(6, most), torch.randn(6, 4)  # two heads of two columns
    summed = ops.batched_dense_vec_jagged_2d_mul(vectors, wide, offsets)
    right = [
        vectors[2 * b + head, : s.stop - s.start] @ wide[s, 2 * head : 2 * head + 2]
        for b, s in enumerate(stretches)
        for head in range(2)
    ]
    torch.testing.assert_close(summed, torch.stack(right))


def test_bags_by_position_and_parts_of_bags():
    values, lengths = torch.arange(12).view(6, 2), T([3, 1, 2])
    taken, of_bags = ops.jagged_index_select(values, lengths, T([2, 0]))
    assert (taken[:, 0].tolist(), of_bags.tolist()) == ([8, 10, 0, 2, 4], [2, 3])
    taken, of_bags = ops.jagged_slice(values[:, 0], lengths, T([1, 0, 1]), 2)
    assert (taken.tolist(), of_bags.tolist()) == ([2, 4, 6, 10], [2, 1, 1])


def shared_out(
    lengths: list[int],
    ids: list[int],
    sizes: list[int],
    my_size: int,
    blocks: list[int] | None = None,
    boundaries: list[list[int]] | None = None,
    features: list[int] | None = None,
    keep: list[bool] | None = None,
) -> SimpleNamespace:
    """Share ids out between ranks, one at a time. ``features`` says whose each bag is."""
    of_bag = features or [b * len(sizes) // len(lengths) for b in range(len(lengths))]
    bags: list[list[list[tuple[int, int, int]]]] = [[[] for _ in lengths] for _ in range(my_size)]
    source = 0
    for bag, length in enumerate(lengths):
        f = of_bag[bag]
        total = my_size if blocks is None else blocks[f]
        for position in range(length):
            unsigned = ids[source] % 2**64
            if boundaries is not None:
                starts = boundaries[f]
                if unsigned < starts[my_size]:
                    rank = sum(start <= unsigned for start in starts) - 1
                    new = unsigned - starts[rank]
                else:
                    rank, new = unsigned % my_size, unsigned // my_size
            elif unsigned < sizes[f] * total:
                rank, new = divmod(unsigned, sizes[f] * total // my_size)
            else:
                rank, new = unsigned % total // (total // my_size), unsigned // total
            if keep is not None and keep[f]:
                new = ids[source]
            bags[rank][bag].append((new, source, position))
            source += 1
    entries = [entry for of_rank in bags for bag in of_rank for entry in bag]
    ranks = {s: r for r, of_rank in enumerate(bags) for bag in of_rank for _, s, _ in bag}
    places = {s: place for place, (_, s, _) in enumerate(entries)}
    return SimpleNamespace(
        lengths=[len(bag) for of_rank in bags for bag in of_rank],
        ids=[new for new, _, _ in entries],
        sources=[s for _, s, _ in entries],
        positions=[position for _, _, position in entries],
        places=[places[s] for s in range(len(ids))],
        ranks=[ranks[s] for s in range(len(ids))],
    )


LENGTHS, IDS, SIZES = [2, 1, 0, 2, 1, 3], [1, 5, 3, 7, 12, 0, 25, 4, 9], [4, 4, 10]


@pytest.mark.parametrize("my_size", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"blocks": 2},
        {"boundaries": True},
        {"keep": [True, False, True]},
        {"features": [0, 1, 1, 2, 2, 2]},
    ],
    ids=str,
)
def test_blocks_of_rows(my_size, dtype, how):
    options, plain = {}, dict(how)
    if "blocks" in how:
        plain["blocks"] = [my_size * n for n in (1, 2, 3)]
        options["total_num_blocks"] = T(plain["blocks"], dtype=dtype)
    if "boundaries" in how:
        plain["boundaries"] = [[n * i for i in range(my_size + 1)] for n in (2, 5, 20)]
        options["block_bucketize_pos"] = [T(b, dtype=dtype) for b in plain["boundaries"]]
    if "keep" in how:
        options["keep_orig_idx_per_feature"] = T(how["keep"])
    if "features" in how:
        options |= {"batch_size_per_feature": T([1, 2, 3], dtype=dtype), "max_B": 3}
    right = shared_out(LENGTHS, IDS, SIZES, my_size, **plain)
    ids, weights = T(IDS, dtype=dtype), torch.arange(9) / 2
    sizes = T(SIZES, dtype=dtype)
    lengths, new, of_ids, positions, places = ops.block_bucketize_sparse_features(
        T(LENGTHS), ids, True, True, sizes, my_size, weights, **options
    )
    assert lengths.tolist() == right.lengths
    assert (new.tolist(), new.dtype) == (right.ids, dtype)
    assert of_ids.tolist() == [s / 2 for s in right.sources]
    assert (positions.tolist(), positions.dtype) == (right.positions, dtype)
    assert (places.tolist(), places.dtype) == (right.places, dtype)
    *same, ranks = ops.block_bucketize_sparse_features_inference(
        T(LENGTHS), ids, False, False, sizes, my_size, return_bucket_mapping=True, **options
    )
    assert torch.equal(same[1], new)
    assert same[2:] == [None, None, None]
    assert (ranks.tolist(), ranks.dtype) == (right.ranks, dtype)
    both = torch.stack([weights, -weights], 1)
    _, _, pairs, _, _ = ops.block_bucketize_sparse_features_2d_weights(
        T(LENGTHS), ids, False, True, sizes, my_size, both, 2, **options
    )
    assert torch.equal(pairs, torch.stack([of_ids, -of_ids], 1))


def test_all_ids_may_stay_as_they_are():
    for options in ({"keep_orig_idx": True}, {"keep_orig_idx_per_feature": T([True] * 3)}):
        _, new, *_ = ops.block_bucketize_sparse_features(
            T(LENGTHS), T(IDS), False, False, T(SIZES), 2, **options
        )
        assert new.tolist() == [1, 3, 12, 0, 4, 9, 5, 7, 25]


@pytest.mark.parametrize("my_size", [1, 2, 3, 7])
def test_negative_ids_count_as_unsigned(my_size):
    ids = [-1, -2, -(2**63), 2**63 - 1, 0, 6, -7, 2**62, 9]
    right = shared_out(LENGTHS, ids, SIZES, my_size)
    signed = [i - 2**64 if i >= 2**63 else i for i in right.ids]
    lengths, new, *_ = ops.block_bucketize_sparse_features(
        T(LENGTHS), T(ids), False, False, T(SIZES), my_size
    )
    assert (lengths.tolist(), new.tolist()) == (right.lengths, signed)
    right = shared_out(LENGTHS, ids, [0, 0, 0], my_size)
    lengths, new, *_ = ops.bucketize_sparse_features(T(LENGTHS), T(ids), False, my_size)
    signed = [i - 2**64 if i >= 2**63 else i for i in right.ids]
    assert (lengths.tolist(), new.tolist()) == (right.lengths, signed)
    narrow, _ = ops.bucketize_sparse_features(T([1]), T([-9], dtype=torch.int32), False, 2)[1:3]
    assert (narrow.tolist(), narrow.dtype) == ([(2**32 - 9) // 2], torch.int32)


def test_ids_by_their_remainder():
    right = shared_out(LENGTHS, IDS, [0, 0, 0], 2)
    lengths, new, weights, positions = ops.bucketize_sparse_features(
        T(LENGTHS, dtype=torch.int32), T(IDS), True, 2, torch.arange(9) / 2
    )
    assert (lengths.tolist(), lengths.dtype) == (right.lengths, torch.int32)
    assert (new.tolist(), positions.tolist()) == (right.ids, right.positions)
    assert weights.tolist() == [s / 2 for s in right.sources]


def test_no_ids():
    nothing = torch.zeros(0, dtype=torch.int64)
    lengths, *rest = ops.block_bucketize_sparse_features(
        T([0, 0]), nothing, True, True, T([4]), 3, torch.zeros(0)
    )
    assert lengths.tolist() == [0] * 6
    assert [r.tolist() for r in rest] == [[]] * 4


DIFFERENTIABLE = {
    "jagged_to_padded_dense": (lambda x, y: (x, [T([0, 1, 3])], [2], 9.0), 1),
    "dense_to_jagged": (lambda x, y: (y, [T([0, 1, 5])]), 1),
    "jagged_dense_elementwise_add": (lambda x, y: (x, [T([0, 0, 3])], y), 2),
    "jagged_dense_elementwise_add_jagged_output": (lambda x, y: (x, [T([0, 0, 3])], y), 2),
    "jagged_dense_elementwise_mul": (lambda x, y: (x, [T([0, 0, 3])], y), 2),
    "jagged_2d_to_dense": (lambda x, y: (x, T([0, 1, 3]), 1), 1),
    "permute_2D_sparse_data": (lambda x, y: (T([1, 0, 0]), T([[1], [2]]), x, x * 2), 1),
    "permute_1D_sparse_data": (lambda x, y: (T([1, 0, 0]), T([1, 2]), x[:, 0], x[:, 1]), 1),
    "segment_sum_csr": (lambda x, y: (1, T([0, 2, 3]), x[:, 0]), 1),
    "jagged_softmax": (lambda x, y: (x, T([0, 0, 3]), 2), 1),
    "jagged_dense_bmm": (lambda x, y: (x, T([0, 1, 3]), y, 2), 2),
    "jagged_index_select": (lambda x, y: (x, T([1, 2]), T([1, 1])), 1),
    "permute_pooled_embs": (lambda x, y: (x, T([0, 1, 2]), T([1, 0]), T([0, 1, 2]), T([1, 0])), 1),
    "regroup_keyed_tensor": (lambda x, y: ([x], [["a", "b"]], [[1, 1]], [["b"], ["b", "a"]]), 1),
    "bucketize_sparse_features": (lambda x, y: (T([1, 2]), T([4, 1, 2]), False, 2, x[:, 0]), 1),
    "block_bucketize_sparse_features": (
        lambda x, y: (T([1, 2]), T([4, 1, 2]), False, True, T([2]), 2, x[:, 0]),
        1,
    ),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name):
    arguments, count = DIFFERENTIABLE[name]
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)

    def of(x: Tensor, y: Tensor) -> list[Tensor]:
        outputs = getattr(ops, name)(*arguments(x, y))
        flat = [outputs] if isinstance(outputs, Tensor) else outputs
        return [o for o in flat if isinstance(o, Tensor) and o.requires_grad]

    used = [x, y] if count == 2 else [y] if name == "dense_to_jagged" else [x]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(sum(o.sum() for o in of(x, y)), used))
    assert torch.autograd.gradcheck(lambda x, y: tuple(of(x, y)), (x, y), raise_exception=True)


TRACED = {
    **{name: arguments for name, (arguments, _) in DIFFERENTIABLE.items()},
    "dense_to_jagged": lambda x, y: (y, [T([0, 1, 3])], 3),
    "jagged_index_select": lambda x, y: (x, T([1, 2]), T([1, 1]), 4),
    "permute_2D_sparse_data": lambda x, y: (T([1, 0, 0]), T([[1], [2]]), x, x * 2, 4),
    "permute_1D_sparse_data": lambda x, y: (T([1, 0, 0]), T([1, 2]), x, None, 4),
    "asynchronous_complete_cumsum": lambda x, y: (x.long()[:, 0],),
    "expand_into_jagged_permute": lambda x, y: (T([1, 0]), T([0, 1, 3]), T([0, 2, 3]), 3),
    "offsets_range": lambda x, y: (T([0, 1]), 3),
}


class Calls(torch.nn.Module):
    """Calls one operator."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        outputs = getattr(ops, self.name)(*TRACED[self.name](x, y))
        flat = [outputs] if isinstance(outputs, Tensor) else outputs
        return [o for o in flat if isinstance(o, Tensor)]


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("how", ["compile", "export"])
def test_tracing(name, how):
    x, y = torch.randn(3, 2), torch.randn(2, 2, 2)
    if how == "compile":
        torch.compiler.reset()
        traced = torch.compile(Calls(name), backend="aot_eager", fullgraph=True)
    else:
        traced = torch.export.export(Calls(name), (x, y)).module()
    x, y = torch.randn(3, 2), torch.randn(2, 2, 2)
    for found, right in zip(traced(x, y), Calls(name)(x, y), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ops.jagged_to_padded_dense(T([1]), [T([0, 1])], [1, 2]),
            ValueError,
            r"`max_lengths` should have a number for each of the `offsets`.* Received 2 and 1",
        ),
        (lambda: ops.jagged_to_padded_dense(T([1]), [], []), ValueError, "Received 0 and 0"),
        (
            lambda: ops.jagged_to_padded_dense(T([1]), [T([0, 2])], [1]),
            ValueError,
            r"`offsets` should end within the 1 values\. Received 2",
        ),
        (
            lambda: ops.dense_to_jagged(torch.ones(2, 2), [T([0, 1, 3])]),
            ValueError,
            "two dimensions more than there are `x_offsets`.* Received 2 dimensions and 1",
        ),
        (
            lambda: ops.dense_to_jagged(torch.ones(2, 2, 1), [T([0, 1])]),
            ValueError,
            r"should be \[B, L, ...\] with B = 1, one less than the offsets",
        ),
        (
            lambda: ops.dense_to_jagged(torch.ones(2, 2, 1), [T([0, 1, 3])], 2),
            ValueError,
            r"not be less than where `x_offsets` end \(3\)\. Received 2",
        ),
        (
            lambda: ops.jagged_1d_to_dense(torch.ones(2, 2), T([0, 2]), 1, 0),
            ValueError,
            "`values` should have one dimension. Received 2",
        ),
        (
            lambda: ops.permute_2D_sparse_data(T([0]), T([1, 1]), T([1, 2])),
            ValueError,
            "`lengths` should have 2 dimensions. Received 1",
        ),
        (
            lambda: ops.permute_2D_sparse_data(T([2]), T([[1], [1]]), T([1, 2])),
            IndexError,
            r"`permute` should be in \[0, 2\)\. Received 2",
        ),
        (
            lambda: ops.permute_1D_sparse_data(T([0, -1]), T([1, 1]), T([1, 2])),
            IndexError,
            r"`permute` should be in \[0, 2\)\. Received -1",
        ),
        (
            lambda: ops.permute_2D_sparse_data(T([0]), T([[1], [1]]), T([1, 2]), None, 2),
            ValueError,
            r"`total` should be the number of values taken \(1\)\. Received 2",
        ),
        (
            lambda: ops.permute_1D_sparse_data(T([0.0]), T([1]), T([1])),
            TypeError,
            "`permute` should be a one-dimensional int32 or int64 tensor",
        ),
        (
            lambda: ops.invert_permute(T([0, 0])),
            ValueError,
            r"`permute` should hold each position in \[0, 2\) once\. Received \[0, 0\]",
        ),
        (
            lambda: ops.keyed_jagged_index_select_dim1(
                T([1, 2]), T([1, 1]), T([0, 1, 2]), T([1]), 1
            ),
            IndexError,
            r"`indices` should be in \[0, 1\)\. Received 1",
        ),
        (
            lambda: ops.jagged_slice(T([1, 2]), T([1, 1]), T([0, -1]), 1),
            ValueError,
            "`start` should not be negative. Received -1",
        ),
        (
            lambda: ops.batched_dense_vec_jagged_2d_mul(
                torch.ones(3, 1), torch.ones(2, 2), T([0, 1, 2])
            ),
            ValueError,
            "`v` should have as many rows for each of the 2 bags. Received 3",
        ),
        (
            lambda: ops.block_bucketize_sparse_features(T([1]), T([1]), False, False, T([1]), 0),
            ValueError,
            "`my_size` should be at least 1. Received 0",
        ),
        (
            lambda: ops.block_bucketize_sparse_features(
                T([1, 0, 0]), T([1]), False, False, T([1, 1]), 1
            ),
            ValueError,
            "as many bags for each of the 2 features of `block_sizes`. Received 3",
        ),
        (
            lambda: ops.block_bucketize_sparse_features(
                T([1]), T([1]), False, False, T([1]), 2, total_num_blocks=T([3])
            ),
            ValueError,
            "`total_num_blocks` should be multiples of `my_size` .2.. Received 3",
        ),
        (
            lambda: ops.block_bucketize_sparse_features(
                T([1]), T([1]), False, False, T([1]), 2, block_bucketize_pos=[T([0, 3])]
            ),
            ValueError,
            r"`block_bucketize_pos` should have my_size \+ 1 \(3\) boundaries a feature. Received 2",
        ),
        (
            lambda: ops.block_bucketize_sparse_features(T([2]), T([1]), False, False, T([1]), 2),
            ValueError,
            "`lengths` should .*sum to the number of ids .1.. Received",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_every_operator_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    stems = [
        name.replace("_complete", "").replace("_inclusive", "").replace("_exclusive", "")
        for name in OPERATORS
    ]
    assert [
        name for name in stems if name not in tested and not name.startswith("asynchronous")
    ] == []


class Batches(torch.nn.Module):
    """Calls operators on what varies by batch."""

    def forward(self, values: Tensor, lengths: Tensor, dense: Tensor) -> tuple[Tensor, ...]:
        offsets = ops.asynchronous_complete_cumsum(lengths)
        padded = ops.jagged_to_padded_dense(values, [offsets], [3], 0.0)
        added, _ = ops.jagged_dense_elementwise_add_jagged_output(values, [offsets], dense)
        shared = ops.block_bucketize_sparse_features(
            lengths, values[:, 0].long().abs(), False, True, T([2]), 2
        )
        return padded, added, shared[0], shared[1], shared[4]


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_exported_for_any_batch():
    def batch(lengths: list[int]) -> tuple[Tensor, ...]:
        return torch.randn(sum(lengths), 2), T(lengths), torch.randn(len(lengths), 4, 2)

    bags, rows = torch.export.Dim("bags"), torch.export.Dim("rows")
    exported = torch.export.export(
        Batches(), batch([2, 0, 4]), dynamic_shapes=({0: rows}, {0: bags}, {0: bags})
    ).module()
    for lengths in ([2, 0, 4], [1, 5], [3, 1, 0, 2, 2]):
        inputs = batch(lengths)
        for found, right in zip(exported(*inputs), Batches()(*inputs), strict=True):
            torch.testing.assert_close(found, right)
