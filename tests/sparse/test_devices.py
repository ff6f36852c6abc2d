"""The sparse types on the meta device, which has shapes but no numbers, and beside another default device."""

from __future__ import annotations

import pytest
import torch

from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    flatten_kjt_list,
)
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

META = torch.device("meta")


def ids(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.int64, device=META)


def on_meta(weighted: bool = False) -> KeyedJaggedTensor:
    weights = torch.empty(5, device=META) if weighted else None
    return KeyedJaggedTensor(["a", "b"], ids(5), weights, lengths=ids(4))


def test_shapes_are_known_on_meta():
    kjt = on_meta(weighted=True)
    assert kjt.offsets().shape == (5,)
    assert kjt.stride() == 2
    assert KeyedJaggedTensor(["a", "b"], ids(5), offsets=ids(5)).lengths().shape == (4,)
    assert KeyedJaggedTensor.from_lengths_sync(["a"], ids(5), ids(4)).stride() == 4
    for tensor in (kjt.values(), kjt.weights(), kjt.lengths(), kjt.offsets()):
        assert tensor.is_meta


SAME_DEVICE = {
    "to": lambda kjt: kjt.to(META),
    "permute": lambda kjt: kjt.permute([1, 0]),
    "concat": lambda kjt: KeyedJaggedTensor.concat(
        [kjt, KeyedJaggedTensor(["c"], ids(7), torch.empty(7, device=META), ids(2))]
    ),
    "from_jt_dict": lambda kjt: KeyedJaggedTensor.from_jt_dict(
        {"a": JaggedTensor(kjt.values(), kjt.weights(), kjt.lengths())}
    ),
    "with_values": lambda kjt: kjt.with_values(ids(5)),
    "copy_": lambda kjt: kjt.copy_(on_meta(weighted=True)),
    "empty_like": KeyedJaggedTensor.empty_like,
    "empty": lambda _: KeyedJaggedTensor.empty(True, device=META),
    "known_sizes": lambda kjt: KeyedJaggedTensor(
        ["a", "b"], kjt.values(), kjt.weights(), kjt.lengths(), length_per_key=[2, 3]
    ).split([1, 1])[1],
    "tensor_dict": lambda _: maybe_td_to_kjt({"a": ids(6).view(3, 2)}),
}


@pytest.mark.parametrize("operation", SAME_DEVICE.values(), ids=SAME_DEVICE)
def test_what_comes_of_meta_is_on_meta(operation):
    found = operation(on_meta(weighted=True))
    tensors, _ = flatten_kjt_list([found])
    assert all(tensor.is_meta for tensor in tensors if tensor is not None)


NEEDS_NUMBERS = {
    "length_per_key": lambda kjt: kjt.length_per_key(),
    "split": lambda kjt: kjt.split([1, 1]),
    "permute_some": lambda kjt: kjt.permute([1]),
    "permute_twice": lambda kjt: kjt.permute([1, 1]),
    "to_dict": lambda kjt: kjt.to_dict(),
    "getitem": lambda kjt: kjt["b"],
    "dist_splits": lambda kjt: kjt.dist_splits([1, 1]),
}


@pytest.mark.parametrize("operation", NEEDS_NUMBERS.values(), ids=NEEDS_NUMBERS)
def test_what_needs_numbers_is_refused_on_meta(operation):
    message = (
        r"`length_per_key` should be given .* meta device.* Received none for keys \['a', 'b'\]"
    )
    with pytest.raises(ValueError, match=message):
        operation(on_meta())


def test_printed_on_meta():
    assert str(on_meta()) == (
        "KeyedJaggedTensor(['a', 'b'], values of shape [5] on the meta device)"
    )
    jt = JaggedTensor(torch.empty(5, 2, device=META), lengths=ids(3))
    assert str(jt) == "JaggedTensor(values of shape [5, 2] on the meta device)"
    kt = KeyedTensor(["a", "b"], [1, 2], torch.empty(4, 3, device=META))
    assert str(kt) == "KeyedTensor(['a', 'b'], values of shape [4, 3] on the meta device)"


def test_jagged_and_keyed_on_meta():
    jt = JaggedTensor(torch.empty(5, 2, device=META), lengths=ids(3))
    assert jt.offsets().shape == (4,)
    assert jt.to_padded_dense(4).shape == (3, 4, 2)
    assert JaggedTensor.from_dense([torch.empty(2, device=META)]).lengths().is_meta
    kt = KeyedTensor(["a", "b"], [1, 2], torch.empty(4, 3, device=META))
    first, second = KeyedTensor.regroup([kt], [["b"], ["a", "a"]])
    assert (first.shape, second.shape) == ((4, 2), (4, 2))
    assert first.is_meta
    assert kt["b"].is_meta
