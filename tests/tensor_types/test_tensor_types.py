"""Packed tensors against a plain Python unpacking of their bytes."""

import copy
import io

import pytest
import torch

from torchrec.tensor_types import (
    UInt2Tensor,
    UInt4Tensor,
    UIntXTensor,
    down_size,
    fill_defaults,
    find_arg_of_type,
    up_size,
)

KINDS = [pytest.param(UInt4Tensor, 2, id="uint4"), pytest.param(UInt2Tensor, 4, id="uint2")]


def packed_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def unpacked(rows: list[list[int]], n: int) -> list[list[int]]:
    bits = 8 // n
    return [[byte >> bits * i & (2**bits - 1) for byte in row for i in range(n)] for row in rows]


@pytest.mark.parametrize(("kind", "n"), KINDS)
@pytest.mark.parametrize("shape", [(3, 8), (1, 1), (0, 4), (3, 0)], ids=str)
def test_values_are_the_bits_of_the_bytes_lowest_first(kind, n, shape):
    elem = packed_bytes(*shape)
    x = kind(elem)
    assert x.shape == (shape[0], shape[1] * n)
    assert x.dtype == torch.uint8
    assert x.tolist() == unpacked(elem.tolist(), n)
    assert torch.equal(x.unpack(), torch.tensor(x.tolist(), dtype=torch.uint8).reshape(x.shape))


@pytest.mark.parametrize(("kind", "n"), KINDS)
def test_bytes_are_shared_with_the_tensor(kind, n):
    elem = packed_bytes(2, 4)
    x = kind(elem)
    assert x.view(torch.uint8).data_ptr() == elem.data_ptr()
    x.view(torch.uint8)[0, 0] = 255
    assert x[0].tolist()[:n] == [2 ** (8 // n) - 1] * n


@pytest.mark.parametrize(("kind", "n"), KINDS)
def test_slices_select_values(kind, n):
    x = kind(packed_bytes(4, 6))
    values = x.unpack()
    for index in [0, -1, slice(1, 3), slice(None, None, 2), (slice(1, 3), slice(n, 3 * n))]:
        assert torch.equal(x[index].unpack(), values[index])
    for index in [slice(-2 * n, None), slice(None, 100 * n), slice(3 * n, n), slice(0, -n)]:
        assert torch.equal(x[:, index].unpack(), values[:, index])
    assert [row.tolist() for row in x] == values.tolist()
    x[1:3, n : 3 * n].view(torch.uint8).zero_()
    assert x.unpack()[1:3, n : 3 * n].sum() == 0


@pytest.mark.parametrize(("kind", "n"), KINDS)
def test_shapes_change_by_whole_bytes(kind, n):
    x = kind(packed_bytes(4, 6))
    for shape in [(-1,), (2, -1), (-1, 2 * n), (24 * n,), (2, 2, 6 * n)]:
        assert torch.equal(x.view(shape).unpack(), x.unpack().view(shape))
    corner = x[:, n : 3 * n]
    assert torch.equal(corner.reshape(-1).unpack(), corner.unpack().reshape(-1))
    with pytest.raises(ValueError, match=f"multiple of {n}, the values in a byte. Received"):
        x.view(8 * n + 1, 3)


@pytest.mark.parametrize(("kind", "n"), KINDS)
def test_copies_hold_the_same_values_in_other_memory(kind, n, tmp_path):
    x = kind(packed_bytes(3, 4))
    buffer = io.BytesIO()
    torch.save({"table": x}, buffer)
    buffer.seek(0)
    target = torch.empty_like(x)
    for other in [
        x.clone(),
        copy.deepcopy([x, x])[1],
        torch.load(buffer, weights_only=True)["table"],
        target.copy_(x),
        x.to("cpu", copy=True),
        torch.nn.Parameter(x, requires_grad=False).clone(),
    ]:
        assert type(other) is kind
        assert torch.equal(other, x)
        assert other.view(torch.uint8).data_ptr() != x.view(torch.uint8).data_ptr()
    assert torch.equal(target, x)
    first, second = copy.deepcopy([x, x])
    assert first is second


def test_a_kind_is_kept_from_operation_to_operation():
    x = UIntXTensor(4, packed_bytes(2, 2))
    assert type(x[0]) is type(x.clone()) is type(copy.deepcopy(x)) is UIntXTensor
    assert x[0].N == 4
    assert x.tolist() == UInt2Tensor(x.elem).tolist()


def test_devices():
    x = UInt4Tensor(packed_bytes(2, 2))
    assert x.to("cpu") is x
    assert not x.is_pinned()
    there = x.to("meta")
    assert type(there) is UInt4Tensor
    assert there.device.type == there.elem.device.type == "meta"
    assert there.shape == x.shape
    assert torch.empty_like(x, device="meta").shape == x.shape


def test_printed_form():
    x = UInt4Tensor(torch.tensor([[1, 2]], dtype=torch.uint8))
    form = "UInt4Tensor(shape=torch.Size([1, 4]), elem=tensor([[1, 2]], dtype=torch.uint8))"
    assert repr(x) == str(x) == f"{x}" == form
    assert repr(UIntXTensor(4, x.elem)).startswith("UInt2Tensor(shape=torch.Size([1, 8]), elem=")


BYTES = torch.zeros(2, 4, dtype=torch.uint8)
X4, X2 = UInt4Tensor(BYTES), UInt2Tensor(BYTES)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: UInt4Tensor(BYTES.int()), TypeError, "torch.uint8. Received torch.int32"),
        (lambda: UInt2Tensor([1, 2]), TypeError, "torch.uint8. Received list"),
        (lambda: UInt4Tensor(X4), TypeError, "plain bytes. Received UInt4Tensor"),
        (lambda: UInt4Tensor(BYTES[0, 0]), ValueError, r"last dimension. Received \(\)"),
        (lambda: UInt4Tensor(BYTES.t()), ValueError, r"side by side. Received strides \(1, 4\)"),
        (lambda: UIntXTensor(3, BYTES), ValueError, "should be 2 or 4. Received 3"),
        (lambda: X4[:, 1:3], ValueError, "multiple of 2 with step 1. Received 1:3:1"),
        (lambda: X2[:, 0:2], ValueError, "multiple of 4 with step 1. Received 0:2:1"),
        (lambda: X4[:, ::2], ValueError, "step 1. Received 0:8:2"),
        (lambda: X4[0, 1], ValueError, "read by x.unpack"),
        (lambda: list(X4[0]), ValueError, "read by x.unpack"),
        (lambda: X4 + 1, NotImplementedError, r"aten.add.Tensor .* x.unpack"),
        (lambda: X4.sum(), NotImplementedError, r"aten.sum.default .* Received UInt4Tensor"),
        (lambda: X4.float(), TypeError, "change its dtype. Received torch.float32"),
        (lambda: X4.view(torch.int32), TypeError, "change its dtype. Received torch.int32"),
        (lambda: X4.copy_(BYTES), TypeError, r"UInt4Tensor.copy_\(Tensor\)"),
        (lambda: BYTES.copy_(X4), TypeError, r"Tensor.copy_\(UInt4Tensor\)"),
        (lambda: X4.copy_(X2), TypeError, r"UInt4Tensor.copy_\(UInt2Tensor\)"),
        (lambda: torch.equal(X4, X2), TypeError, "Received UInt4Tensor and UInt2Tensor"),
        (lambda: down_size(4, (2, 7)), ValueError, r"multiple of 4.*Received \(2, 7\)"),
        (lambda: down_size(4, ()), ValueError, r"Received \(\)"),
        (lambda: fill_defaults((1,), 4, (8, 9)), ValueError, "at least 2 of 4 .* Received 1"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_sizes_and_arguments():
    assert up_size(2, torch.Size([3, 8])) == (3, 16)
    assert down_size(2, up_size(2, (3, 8))) == (3, 8)
    assert fill_defaults((1, 2), 4, [8, 9]) == [1, 2, 8, 9]
    assert fill_defaults((1, 2, 3), 4, [8, 9]) == [1, 2, 3, 9]
    assert fill_defaults((1, 2, 3, 4), 3, [8, 9]) == [1, 2, 3, 4]
    assert find_arg_of_type([1, "a", "b"], str) == "a"
    assert find_arg_of_type([1], str) is None
