"""Rows of few bits: exact layouts, kernels against the reference, and look-ups against those in plain tables."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from torchrec.errors import IdOutOfRangeError
from torchrec.ops import _library
from torchrec.ops.embedding import (
    Bags,
    Ids,
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    lookup_bags,
    lookup_sequences,
)
from torchrec.ops.quant import (
    RowFormat,
    dequantize_rows,
    lookup_quantized_bags,
    lookup_quantized_sequences,
    quantize_rows,
    reference,
    search_bounds,
)

FORMATS = list(RowFormat)
CODES = [f for f in FORMATS if f.has_codes]
DIMS = (1, 2, 3, 5, 16, 17, 64, 130, 263)


def table(rows: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return rows of every kind: random, constant, zeros, one outlier, tiny, next to a large bias."""
    generator = torch.Generator().manual_seed(seed + 1000 * dim + rows)
    weight = torch.randn(rows, dim, generator=generator)
    weight[1::7] = 0.1
    weight[2::7] = 0.0
    weight[3::7, -1] = 90.0
    weight[4::7] *= 1e-7
    weight[5::7] += 300.0
    weight[6::7] *= -0.0
    return weight.to(dtype)


@pytest.mark.once
@pytest.mark.parametrize(
    ("format", "numbers", "expected"),
    [  # scale 0x3800 = 0.5, bias 0xbc00 = -1; codes low bits first
        (RowFormat.INT8, [-1.0, 126.5, 0.0, 1.5], [0, 56, 0, 188, 0, 255, 2, 5]),
        (RowFormat.INT4, [-1.0, 6.5, 0.0, 1.5, 0.5], [0, 56, 0, 188, 0xF0, 0x52, 3]),
        (RowFormat.INT2, [-1.0, 0.5, 0.0, -0.5, 0.5], [0, 56, 0, 188, 0b01101100, 3]),
        (RowFormat.FP16, [1.0, -2.0, 0.5], [0, 60, 0, 192, 0, 56]),
        (RowFormat.BF16, [1.0, -2.0, 0.5], [0x80, 0x3F, 0, 0xC0, 0, 0x3F]),
        (RowFormat.FP32, [1.0, -2.0], [0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0]),
    ],
)
def test_rows_lie_as_stated(format: RowFormat, numbers: list[float], expected: list[int]) -> None:
    weight = torch.tensor([numbers, numbers])
    for alignment, size in ((1, len(expected)), (16, 16)):
        rows = quantize_rows(weight, format, alignment)
        assert rows.tolist() == [expected + [0] * (size - len(expected))] * 2
        assert dequantize_rows(rows, format, len(numbers)).tolist() == [numbers] * 2


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_kernels_give_the_bytes_of_the_reference(format: RowFormat, dtype: torch.dtype) -> None:
    for dim in DIMS:
        weight = table(23, dim, dtype)
        size = format.row_bytes(dim, 16)
        rows = quantize_rows(weight, format)
        assert torch.equal(rows, reference.quantize_rows(weight, None, format, size, ""))
        assert torch.equal(
            dequantize_rows(rows, format, dim), reference.dequantize_rows(rows, format, dim)
        )
        bounds = torch.stack([weight.float().mean(1) - 0.5, weight.float().mean(1) + 0.5], 1)
        within = quantize_rows(weight, format, 1, bounds)
        size = format.row_bytes(dim)
        assert torch.equal(within, reference.quantize_rows(weight, bounds, format, size, ""))


@pytest.mark.once
@pytest.mark.parametrize("format", CODES, ids=lambda f: f.name)
def test_codes_are_within_half_a_step_of_the_row(format: RowFormat) -> None:
    weight = table(60, 33)
    found = dequantize_rows(quantize_rows(weight, format), format, 33)
    span = weight.amax(1) - weight.amin(1)
    step = span / (2**format.bits - 1)
    rounding = weight.abs().amax(1) * 2**-11 + span * 2**-11 + 2.0**-24 * 2**format.bits
    assert ((found - weight).abs().amax(1) <= step * 0.51 + rounding).all()


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(format: RowFormat, bad: float) -> None:
    weight = torch.zeros(5, 3)
    weight[3, 1] = bad
    with pytest.raises(
        ValueError, match=r"Weights of table 'user' should be finite.* others in row 3\."
    ):
        quantize_rows(weight, format, name="user")


@pytest.mark.parametrize("format", [RowFormat.INT8, RowFormat.INT2, RowFormat.FP16, RowFormat.BF16])
def test_what_is_beyond_the_format_is_refused(format: RowFormat) -> None:
    weight = torch.zeros(3, 3)
    weight[2] = 3.4e38
    with pytest.raises(ValueError, match=r"within (float16|FP16|BF16).* in row 2"):
        quantize_rows(weight, format)


@pytest.mark.once
def test_arguments_that_cannot_be_are_refused() -> None:
    weight = torch.zeros(3, 4)
    with pytest.raises(TypeError, match="`weight` should be a matrix of floats"):
        quantize_rows(torch.zeros(3, 4).int(), RowFormat.INT8)
    with pytest.raises(ValueError, match=r"`bounds` should be float32 of shape \[3, 2\]"):
        quantize_rows(weight, RowFormat.INT8, bounds=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="should have 8 bytes or more"):
        dequantize_rows(torch.zeros(3, 7, dtype=torch.uint8), RowFormat.INT8, 4)
    with pytest.raises(ValueError, match="should be one of codes"):
        search_bounds(weight, RowFormat.FP16)
    with pytest.raises(ValueError, match="`steps` should be 1 or more"):
        search_bounds(weight, RowFormat.INT8, 0)


@pytest.mark.once
@pytest.mark.parametrize("format", CODES, ids=lambda f: f.name)
def test_searched_bounds_lose_no_more_in_any_row(format: RowFormat) -> None:
    weight = table(40, 32)
    bounds = search_bounds(weight, format)
    plain = dequantize_rows(quantize_rows(weight, format), format, 32)
    clipped = dequantize_rows(quantize_rows(weight, format, bounds=bounds), format, 32)
    lost = [(x - weight).square().sum(1) for x in (plain, clipped)]
    assert (lost[1] <= lost[0]).all()
    if format != RowFormat.INT8:
        assert lost[1].sum() < 0.9 * lost[0].sum()


POLICIES = [
    PolicyCode.HASH,
    PolicyCode.OVERFLOW,
    PolicyCode.CLAMP,
    PolicyCode.IGNORE,
    PolicyCode.ROWS,
]


def case(dims: tuple[int, ...], formats: list[RowFormat]) -> tuple[LookupSpec, list[Tensor]]:
    """Return tables of uneven sizes, one a policy, the second of which is a shard, and their weights."""
    poolings = itertools.cycle([PoolingCode.SUM, PoolingCode.MEAN])
    tables, slots, weights, column = [], [], [], 0
    for t, (dim, policy) in enumerate(zip(dims, itertools.cycle(POLICIES))):
        first, held = (3, 5 + t) if t == 1 else (0, 11 + t)
        tables.append(TableSpec(f"t{t}", dim, 11 + t, 9, policy, first_row=first, shard_rows=held))
        slots.append(SlotSpec(f"f{t}", t, t, next(poolings), column))
        weights.append(quantize_rows(table(held, dim, seed=t), formats[t], 16 if t % 2 else 4))
        column += dim
    return LookupSpec(tables, slots, len(dims), column), weights


def ids_of(spec: LookupSpec, batch: int, wide: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.randint(0, 5, (spec.num_keys * batch,), generator=generator)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    values = []
    for table, slot_lengths in zip(spec.tables, lengths.view(spec.num_keys, batch), strict=True):
        low, high = (-1, table.rows) if table.policy == PolicyCode.ROWS else (-4, table.rows + 6)
        values.append(torch.randint(low, high, (int(slot_lengths.sum()),), generator=generator))
    dtype = torch.int64 if wide else torch.int32
    return torch.cat(values).to(dtype), offsets.to(dtype)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("weighted", [False, True])
def test_bags_are_those_of_the_plain_table_to_the_last_bit(
    format: RowFormat, weighted: bool
) -> None:
    spec, weights = case(DIMS, [format] * len(DIMS))
    plain = [dequantize_rows(w, format, t.dim) for w, t in zip(weights, spec.tables, strict=True)]
    for batch, wide, dtype in ((0, True, torch.float32), (9, True, torch.float32),
                               (70, False, torch.float32), (9, True, torch.bfloat16)):  # fmt: skip
        values, offsets = ids_of(spec, batch, wide)
        sample_weights = torch.randn(len(values)) if weighted else None
        bags = Bags(values, offsets, sample_weights)
        found, counts = lookup_quantized_bags(weights, [format] * len(weights), spec, bags, dtype)
        expected, expected_counts = lookup_bags(plain, spec, bags, dtype, [])
        assert torch.equal(found, expected)
        assert torch.equal(counts, expected_counts)


def test_tables_of_all_formats_are_looked_up_together() -> None:
    dims = (5, 16, 33, 64, 2, 40)
    spec, weights = case(dims, FORMATS)
    plain = [dequantize_rows(w, f, d) for w, f, d in zip(weights, FORMATS, dims, strict=True)]
    values, offsets = ids_of(spec, 12, True)
    bags = Bags(values, offsets)
    found, _ = lookup_quantized_bags(weights, FORMATS, spec, bags, torch.float32)
    assert torch.equal(found, lookup_bags(plain, spec, bags, torch.float32, [])[0])

    ends = offsets[::12].tolist()
    counts = [end - start for start, end in itertools.pairwise(ends)]
    ids = Ids(values, ends[:-1], counts)
    rows, _ = lookup_quantized_sequences(weights, FORMATS, spec, ids, torch.float16)
    expected, _ = lookup_sequences(plain, spec, ids, torch.float16, [])
    assert all(torch.equal(a, b) for a, b in zip(rows, expected, strict=True))


@pytest.mark.parametrize("bad", [4, -1, 2**40])
def test_an_id_out_of_range_is_an_error_and_never_row_0(bad: int) -> None:
    spec = LookupSpec([TableSpec("t", 3, 4, 4)], [SlotSpec("f", 0, 0)], 1, 3)
    rows = quantize_rows(torch.ones(4, 3), RowFormat.INT8)
    bags = Bags(torch.tensor([0, 3, bad]), torch.tensor([0, 2, 3]))
    with pytest.raises(IdOutOfRangeError, match=f"(?s)'f'.*{bad}"):
        lookup_quantized_bags([rows], [RowFormat.INT8], spec, bags, torch.float32)
    ids = Ids(bags.values, [0], [3])
    with pytest.raises(IdOutOfRangeError, match=f"(?s)'f'.*{bad}"):
        lookup_quantized_sequences([rows], [RowFormat.INT8], spec, ids, torch.float32)


def test_weights_that_are_not_those_of_the_tables_are_refused() -> None:
    spec = LookupSpec([TableSpec("t", 9, 4, 4)], [SlotSpec("f", 0, 0)], 1, 9)
    bags = Bags(torch.tensor([0]), torch.tensor([0, 1]))
    for rows, message in (
        (torch.zeros(4, 12, dtype=torch.uint8), "13 bytes or more"),
        (torch.zeros(3, 16, dtype=torch.uint8), "4 rows, as configured"),
    ):
        with pytest.raises(ValueError, match=message):
            lookup_quantized_bags([rows], [RowFormat.INT8], spec, bags, torch.float32)
    with pytest.raises(ValueError, match="should be one a table"):
        lookup_quantized_bags([], [], spec, bags, torch.float32)
    bags = bags._replace(divisors=torch.tensor([1]))
    with pytest.raises(ValueError, match="no divisors"):
        lookup_quantized_bags([], [], spec, bags, torch.float32)


@pytest.mark.skipif(_library.native is None, reason="needs the kernels")
@pytest.mark.parametrize("format", CODES, ids=lambda f: f.name)
def test_the_result_does_not_depend_on_the_number_of_threads(format: RowFormat) -> None:
    weight = table(3000, 64)
    rows = quantize_rows(weight, format)
    spec = LookupSpec([TableSpec("t", 64, 3000, 3000)], [SlotSpec("f", 0, 0)], 1, 64)
    bags = Bags(torch.randint(0, 3000, (20_000,)), torch.arange(0, 20_001, 10))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            again = quantize_rows(weight, format)
            assert torch.equal(again, rows)
            found.append(lookup_quantized_bags([rows], [format], spec, bags, torch.float32)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
