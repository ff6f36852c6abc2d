"""choose_rows against a dictionary's worth of plain Python, and against the look-up that chooses by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrec.errors import IdOutOfRangeError
from torchrec.ops import _library
from torchrec.ops.embedding import (
    NO_ROW,
    Ids,
    LookupSpec,
    PolicyCode,
    SlotSpec,
    TableSpec,
    choose_rows,
    hash_ids,
    native,
    reference,
)

needs_native = pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")
BACKENDS = [
    pytest.param(native, marks=needs_native, id="native"),
    pytest.param(reference, id="reference"),
]

# Several tables, of each policy, of different sizes; the first feature is looked up in two of them.
TABLES = [
    TableSpec("hash", 2, 7, 7, PolicyCode.HASH),
    TableSpec("hash_size", 3, 12, 9, PolicyCode.OVERFLOW),
    TableSpec("unknown", 1, 5, 4, PolicyCode.OVERFLOW),
    TableSpec("clamp", 4, 6, 6, PolicyCode.CLAMP),
    TableSpec("ignore", 4, 8, 8, PolicyCode.IGNORE),
    TableSpec("rows", 4, 8, 3, PolicyCode.ROWS),
]
SLOTS = [
    SlotSpec(f"f{key}", table, key)
    for table, key in [(0, 2), (1, 2), (2, 0), (3, 1), (4, 3), (5, 4)]
]
SPEC = LookupSpec(TABLES, SLOTS, 5, 0)
EXTREMES = [torch.iinfo(torch.int64).min, -1, torch.iinfo(torch.int64).max, 1 << 31, -(1 << 31)]


def plain_row(table: TableSpec, id: int) -> int:
    """The policies, one id at a time."""
    end = table.num_embeddings
    if table.policy == PolicyCode.ROWS or 0 <= id < end:
        return id
    hashed = lambda span: int(hash_ids(torch.tensor([id]), span))  # noqa: E731
    return {
        PolicyCode.HASH: lambda: hashed(end),
        PolicyCode.OVERFLOW: lambda: end + hashed(table.rows - end),
        PolicyCode.CLAMP: lambda: 0 if id < 0 else end - 1,
        PolicyCode.IGNORE: lambda: NO_ROW,
    }[table.policy]()


def draw(count: int, dtype: torch.dtype = torch.int64) -> tuple[Tensor, list[int], list[int]]:
    """Ids of five keys: `count` each, and of the last, rows."""
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(-5, 20, (5 * count + 3,), generator=generator)
    if dtype == torch.int64 and count >= len(EXTREMES):
        for key in range(4):
            values[3 + key * count :][: len(EXTREMES)] = torch.tensor(EXTREMES)
    values[3 + 4 * count :] = torch.randint(-1, 8, (count,), generator=generator)
    return values.to(dtype), [3 + slot.key * count for slot in SLOTS], [count] * len(SLOTS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=["int64", "int32"])
@pytest.mark.parametrize("count", [0, 1, 6, 50])
def test_rows_are_those_of_the_policies(backend, dtype, count) -> None:
    values, starts, counts = draw(count, dtype)
    rows, out_of_range = backend.choose_rows(
        SPEC.tensor, values, None, starts, counts, 5, len(TABLES), SPEC.names
    )
    expected, strays = [], [0] * len(TABLES)
    for slot, start in zip(SLOTS, starts, strict=True):
        table = TABLES[slot.table]
        for id in values[start : start + count].tolist():
            expected.append(plain_row(table, id))
            known = table.policy == PolicyCode.ROWS or 0 <= id < table.num_embeddings
            strays[slot.table] += not known
    assert rows.tolist() == expected
    assert rows.dtype == out_of_range.dtype == torch.int64
    assert out_of_range.tolist() == strays


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_equal_reference_in_many_tasks(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values, starts, counts = draw(60_000)
        arguments = (SPEC.tensor, values, None, starts, counts, 5, len(TABLES), SPEC.names)
        for ours, theirs in zip(
            native.choose_rows(*arguments), reference.choose_rows(*arguments), strict=True
        ):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("policy", "bad"),
    [(PolicyCode.ERROR, -1), (PolicyCode.ERROR, 9), (PolicyCode.ROWS, -2), (PolicyCode.ROWS, 12)],
    ids=["error_negative", "error_large", "rows_negative", "rows_large"],
)
def test_an_error_names_table_feature_sample_and_id(backend, policy, bad) -> None:
    tables = [TableSpec("fine", 1, 99, 99), TableSpec("bad", 1, 12, 9, policy)]
    spec = LookupSpec(tables, [SlotSpec("a", 0, 0), SlotSpec("b", 1, 1)], 2, 0)
    offsets = torch.tensor([0, 2, 2, 5, 5, 7, 8])  # B = 3
    values = torch.tensor([50, 51, 52, 53, 54, 8, bad, bad])
    end = 9 if policy == PolicyCode.ERROR else 12
    with pytest.raises(IdOutOfRangeError) as caught:
        backend.choose_rows(spec.tensor, values, offsets, [0, 5], [5, 3], 2, 2, spec.names)
    error = caught.value
    assert (error.table, error.feature, error.sample, error.id, error.rows) == (
        "bad",
        "b",
        1,
        bad,
        end,
    )
    with pytest.raises(IdOutOfRangeError) as caught:  # without offsets: the position in the slot
        backend.choose_rows(spec.tensor, values[:7], None, [0, 5], [5, 2], 2, 2, spec.names)
    assert caught.value.sample == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"starts": [0, -1]}, ValueError, "Slot number 1 should lie within the values"),
        ({"counts": [3, 9]}, ValueError, "Slot number 1 should lie within the values"),
        ({"num_tables": 1}, ValueError, "`num_tables` should be the tables of the spec"),
        ({"offsets": torch.zeros(5)}, TypeError, "`offsets` should be .* int32 or int64 tensor"),
    ],
    ids=["start", "count", "num_tables", "offsets"],
)
def test_what_is_refused(backend, change, error, message) -> None:
    spec = LookupSpec(
        [TableSpec("t", 1, 9, 9)] * 2, [SlotSpec("a", 0, 0), SlotSpec("b", 1, 1)], 2, 0
    )
    arguments = {
        "spec": spec.tensor, "values": torch.zeros(8, dtype=torch.int64), "offsets": None,
        "starts": [0, 3], "counts": [3, 5], "num_keys": 2, "num_tables": 2, "names": spec.names,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        backend.choose_rows(**{**arguments, **change})


def test_ids_that_are_no_integers_are_refused() -> None:
    spec = LookupSpec([TableSpec("t", 1, 9, 9)], [SlotSpec("a", 0, 0)], 1, 0)
    with pytest.raises(
        TypeError, match=r"`values` should be int32 or int64. Received torch.float32"
    ):
        choose_rows(spec, Ids(torch.zeros(3), [0], [3]))
