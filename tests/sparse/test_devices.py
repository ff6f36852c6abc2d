"""The sparse types on the meta device, which has shapes but no numbers, and beside another default device."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.utils import _pytree as pytree

from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    flatten_kjt_list,
    kjt_is_equal,
)
from torchrec.sparse.jagged_tensor_validator import validate_keyed_jagged_tensor
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


def variable() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        ["a", "b"],
        torch.tensor([5, 6, 7], device="cpu"),
        lengths=torch.tensor([1, 1, 1], device="cpu"),
        stride_per_key_per_rank=[[2], [1]],
        inverse_indices=(["a", "b"], torch.tensor([[0, 1, 0], [0, 0, 0]], device="cpu")),
    )


VALUES, LENGTHS = torch.tensor([1, 2, 3]), torch.tensor([1, 0, 0, 2])
WEIGHTS, OFFSETS = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0, 1, 1, 1, 3])
PADDED, COUNTS = torch.tensor([[5, 0], [7, 1]]), torch.tensor([1, 2])
NESTED = torch.nested.nested_tensor([VALUES[:2], VALUES[2:]], layout=torch.jagged)


def build() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(["a", "b"], VALUES, WEIGHTS, LENGTHS)


# What is made of CPU tensors, lists and tables alone, as something that can be compared.
OF_THE_HOST = {
    "lengths": lambda: (build().offsets(), build().length_per_key(), str(build())),
    "offsets": lambda: KeyedJaggedTensor(["a", "b"], VALUES, offsets=OFFSETS).lengths(),
    "synced": lambda: KeyedJaggedTensor.from_lengths_sync(["a"], VALUES, LENGTHS).to_lists(),
    "by_key": lambda: (build()["b"].values(), build().to_dict()["a"].to_dense()),
    "split": lambda: [part.to_lists() for part in build().split([1, 1])],
    "permute": lambda: build().permute([1, 0, 1]).to_lists(),
    "concat": lambda: KeyedJaggedTensor.concat(
        [build(), KeyedJaggedTensor(["c"], VALUES, WEIGHTS, COUNTS)]
    ).to_lists(),
    "from_lists": lambda: KeyedJaggedTensor.from_lists(
        {"a": [[1], [2, 3]], "b": [4, None]}, {"a": [[1], [2, 3]], "b": [4, None]}
    ).weights(),
    "no_lists": lambda: KeyedJaggedTensor.from_lists({}).values(),
    "variable": lambda: (variable().expand_inverse().to_lists(), variable().permute([1]).stride()),
    "flat": lambda: flatten_kjt_list([variable()])[0],
    "pytree": lambda: pytree.tree_leaves(variable()),
    "sent": lambda: (variable().dist_tensors(), build().dist_splits([1, 1])),
    "received": lambda: KeyedJaggedTensor.dist_init(
        ["a", "b"], [LENGTHS, VALUES], False, 2, None, [1, 1]
    ).to_lists(),
    "dense": lambda: JaggedTensor.from_dense([VALUES, VALUES]).offsets(),
    "dense_lengths": lambda: JaggedTensor.from_dense_lengths(PADDED, COUNTS).values(),
    "padded": lambda: JaggedTensor(VALUES, lengths=COUNTS).to_padded_dense(3, 7.0),
    "regrouped": lambda: KeyedTensor.regroup(
        [KeyedTensor(["a", "b"], [1, 2], WEIGHTS[None])], [["b", "a"]]
    ),
    "tensor_dict": lambda: maybe_td_to_kjt({"a": NESTED, "b": COUNTS, "c": PADDED}).to_lists(),
    "valid": lambda: validate_keyed_jagged_tensor(build()),
    "equal": lambda: kjt_is_equal(build(), build()),
}


def plain(found: Any) -> Any:
    if isinstance(found, torch.Tensor):
        return str(found.device), str(found.dtype), found.tolist()
    return [plain(item) for item in found] if isinstance(found, list | tuple) else found


@pytest.mark.parametrize("operation", OF_THE_HOST.values(), ids=OF_THE_HOST)
def test_another_default_device_changes_nothing_of_the_host(operation):
    expected = plain(operation())
    with META:
        found = operation()
    assert plain(found) == expected


def test_tables_are_read_to_the_host():
    table = pa.table({"p": [[1, 2, 1], [5]], "u": pa.array([7, None], pa.int32()), "n": [None] * 2})
    with META:
        kjt = KeyedJaggedTensor.from_arrow(table, ["p", "u"], {"p": "p", "u": "u"})
        empty = KeyedJaggedTensor.from_arrow(table, ["n"])
        framed = KeyedJaggedTensor.from_pandas(table.select(["p"]).to_pandas())
    assert kjt.to_lists() == {"p": [[1, 2, 1], [5]], "u": [[7], []]}
    assert kjt.weights().tolist() == [1, 2, 1, 5, 7]
    assert empty.to_lists() == {"n": [[], []]}
    assert framed.to_lists() == {"p": [[1, 2, 1], [5]]}


def test_what_does_not_fit_is_refused_beside_another_default_device():
    with META, pytest.raises(ValueError, match="Received a sum of 4: 1 for key 'a', 3 for key 'b'"):
        KeyedJaggedTensor(["a", "b"], VALUES, lengths=torch.tensor([1, 0, 0, 3], device="cpu"))


def test_empty_ones_are_on_the_default_device():
    with META:
        assert KeyedJaggedTensor.empty(True).weights().is_meta
        assert JaggedTensor.empty().values().is_meta
        assert KeyedJaggedTensor.empty_like(build()).values().is_cpu
