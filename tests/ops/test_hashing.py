"""XXH64 over string buffers: native and reference against the `xxhash` library; and hashes of ids."""

from __future__ import annotations

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from torchrec.ops._library import native as library
from torchrec.ops.hashing import hash_ids, hash_strings, native, reference

T = torch.tensor
needs_native = pytest.mark.skipif(library is None, reason="the native library is not in use")


def pack(strings: list[bytes], dtype: torch.dtype, before: int = 0) -> tuple[torch.Tensor, ...]:
    data = T([7] * before + list(b"".join(strings)), dtype=torch.uint8)
    lengths = T([before, *map(len, strings)], dtype=dtype)
    return data, lengths.cumsum(0, dtype=dtype)


def expected(strings: list[bytes], seed: int = 0) -> list[int]:
    hashes = [xxhash.xxh64_intdigest(text, seed % (1 << 64)) for text in strings]
    return [number - (1 << 64) if number >= 1 << 63 else number for number in hashes]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("seed", [0, 1, -1, (1 << 63) - 1, -(1 << 63)])
def test_every_length(dtype, seed):
    strings = [bytes((7 * i + n) % 256 for i in range(n)) for n in [*range(140), 1000, 4099]]
    data, offsets = pack(strings, dtype, before=5)
    assert hash_strings(data, offsets, seed).tolist() == expected(strings, seed)
    assert reference.hash_strings(data, offsets, seed).tolist() == expected(strings, seed)


@given(st.lists(st.binary(max_size=80), max_size=20), st.integers(-(1 << 63), (1 << 63) - 1))
def test_any_strings(strings, seed):
    data, offsets = pack(strings, torch.int64)
    found = hash_strings(data, offsets, seed)
    assert found.dtype == torch.int64
    assert found.tolist() == expected(strings, seed)
    assert torch.equal(reference.hash_strings(data, offsets, seed), found)


def test_no_strings():
    nothing = torch.empty(0, dtype=torch.uint8)
    assert hash_strings(nothing, T([0])).shape == (0,)
    assert hash_strings(nothing, T([0, 0])).tolist() == expected([b""])


def test_strided_inputs_are_read_right():
    data, offsets = pack([b"ab", b"cde"], torch.int64)
    twice = torch.stack([data, data], 1)[:, 0], torch.stack([offsets, offsets], 1)[:, 0]
    assert hash_strings(*twice).tolist() == expected([b"ab", b"cde"])


@pytest.mark.parametrize("run", [hash_strings, reference.hash_strings], ids=["native", "reference"])
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 5], "Received 0, 5 for string 0"),
        ([0, 2, 1], "Received 2, 1 for string 1"),
        ([-1, 2], "Received -1, 2 for string 0"),
    ],
    ids=str,
)
def test_offsets_are_checked(run, offsets, message):
    with pytest.raises(ValueError, match=r"`offsets` should rise .* `data` \(4\). " + message):
        run(torch.zeros(4, dtype=torch.uint8), T(offsets), 0)


def test_kinds_are_checked():
    data, offsets = pack([b"ab"], torch.int64)
    with pytest.raises(TypeError, match="`data` should be a one-dimensional uint8 tensor"):
        hash_strings(data.int(), offsets)
    with pytest.raises(TypeError, match="`offsets` should be a one-dimensional int32 or int64"):
        hash_strings(data, offsets.float())
    with pytest.raises(ValueError, match=r"one more than the strings. Received none"):
        hash_strings(data, offsets[:0])
    with pytest.raises(ValueError, match="`seed` should be an int64"):
        hash_strings(data, offsets, 1 << 63)


@needs_native
def test_operator_runs_the_kernel():
    data, offsets = pack([b"ab", b"c" * 100], torch.int32)
    assert torch.equal(
        torch.ops.rowwise.hash_strings(data, offsets, 3), native.hash_strings(data, offsets, 3)
    )


@pytest.mark.parametrize("span", [1, 97, 1 << 62, (1 << 63) - 1])
def test_ids_of_any_size_dtype_and_layout(span):
    ids = T([0, 1, -1, 1 << 40, (1 << 63) - 1, -(1 << 63)])
    found = hash_ids(ids, span)
    assert torch.equal(reference.hash_ids(ids, span), found)
    assert ((found >= 0) & (found < span)).all()
    square = torch.stack([ids, ids + 1], 1).t()
    assert torch.equal(hash_ids(square, span), reference.hash_ids(square, span))
    assert torch.equal(hash_ids(ids[:3].int(), span), found[:3])
    assert hash_ids(ids[:0], span).shape == (0,)


@pytest.mark.parametrize("span", [0, -3])
def test_no_span_to_hash_into(span):
    with pytest.raises(ValueError, match=rf"`span` should be at least 1\. Received {span}"):
        hash_ids(T([1]), span)


@pytest.mark.skipif(library is None, reason="kernels refuse what Python's integers may be")
def test_seeds_beyond_64_bits_are_refused_by_the_kernel_too():
    data, offsets = torch.zeros(1, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="`seed` should be a signed integer of 64 bits"):
        native.hash_strings(data, offsets, 2**63)
