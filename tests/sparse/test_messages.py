"""Every argument of the sparse types: given something odd, the message names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchrec.sparse.jagged_tensor import (
    ComputeJTDictToKJT,
    ComputeKJTToJTDict,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    flatten_kjt_list,
    permute_multi_embedding,
    regroup_kts,
    unflatten_kjt_list,
)

T = torch.tensor
CPU = torch.device("cpu")
ODD: dict[str, Any] = {
    "none": None,
    "number": 5,
    "negative": -1,
    "fraction": 1.5,
    "text": "x",
    "list_of_none": [None],
    "list_of_none_and_0": [None, 0],
    "list_of_text": ["x"],
    "list_of_negative": [-1],
    "list_of_fractions": [0.5, 0.5],
    "lists": [[1], [2, 3]],
    "object": object(),
    "dict": {"x": None},
    "tensor": T([1, 2, 3]),
    "fractions": T([0.5]),
    "scalar": T(1),
    "function": len,
}


def jt() -> JaggedTensor:
    return JaggedTensor(T([5, 7, 1]), T([0.5, 0.5, 1.0]), lengths=T([1, 2]))


def kjt() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(["a", "b"], T([5, 7, 1]), T([0.5, 0.5, 1.0]), T([1, 2, 0, 0]))


def variable() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(["a", "b"], T([5, 7]), lengths=T([1, 0, 1]), stride_per_key=[2, 1])


def kt() -> KeyedTensor:
    return KeyedTensor(["a", "b"], [1, 2], torch.ones(2, 3))


DTYPES = {"values_dtype": torch.int64, "weights_dtype": torch.float32, "lengths_dtype": torch.int32}
BOUNDS = {"lengths": T([1, 2, 0, 0]), "offsets": T([0, 1, 3, 3, 3])}
ENTRIES = {"values": T([5, 7, 1]), "weights": T([0.5, 0.5, 1.0])}
FROM_RANKS = [T([1, 1, 0, 2]), T([5, 6, 7, 8])]
RANKS = {"variable_stride_per_key": False, "num_workers": 2, "recat": T([0, 2, 1, 3])}
ROWS = {"values": T([[1, 2], [3, 4]]), "lengths": T([1, 2]), "weights": torch.ones(2, 2)}
METADATA: dict[str, Any] = {
    "length_per_key": [3, 0],
    "lengths_offset_per_key": [0, 2, 4],
    "offset_per_key": [0, 3, 3],
    "index_per_key": {"a": 0, "b": 1},
}
STRIDES: dict[str, Any] = {
    "stride_per_key_per_rank": [[2], [1]],
    "stride_per_key": [2, 1],
    "inverse_indices": (["a", "b"], T([[0, 1], [0, 0]])),
}
# A call, and arguments that are right.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "jt": (JaggedTensor, {**ENTRIES, "lengths": T([1, 2]), "offsets": T([0, 1, 3])}),
    "jt.empty": (JaggedTensor.empty, {"device": CPU, **DTYPES}),
    "jt.empty_like": (JaggedTensor.empty_like, {"jt": jt(), "device": CPU}),
    "jt.from_dense": (JaggedTensor.from_dense, {"values": [T([1.0])], "weights": [T([1.0])]}),
    "jt.from_dense_lengths": (JaggedTensor.from_dense_lengths, ROWS),
    "jt.to_padded_dense": (jt().to_padded_dense, {"desired_length": 2, "padding_value": 0.0}),
    "jt.to": (jt().to, {"device": CPU}),
    "jt.copy_": (jt().copy_, {"jt": jt()}),
    "kjt": (KeyedJaggedTensor, {"keys": ["a", "b"], **ENTRIES, **BOUNDS, "stride": 2, **METADATA}),
    "kjt_variable": (
        KeyedJaggedTensor,
        {"keys": ["a", "b"], **ENTRIES, "lengths": T([1, 1, 1]), **STRIDES},
    ),
    "kjt.from_jt_dict": (KeyedJaggedTensor.from_jt_dict, {"jt_dict": {"a": jt()}}),
    "kjt.empty": (KeyedJaggedTensor.empty, {"device": CPU, **DTYPES}),
    "kjt.empty_like": (KeyedJaggedTensor.empty_like, {"kjt": kjt(), "device": CPU}),
    "kjt.concat": (KeyedJaggedTensor.concat, {"kjt_list": [kjt()]}),
    "kjt.split": (kjt().split, {"segments": [1, 1]}),
    "kjt.permute": (kjt().permute, {"indices": [1, 0]}),
    "variable.split": (variable().split, {"segments": [1, 1]}),
    "variable.permute": (variable().permute, {"indices": [1, 0]}),
    "kjt.to": (kjt().to, {"device": CPU, "dtype": torch.float64}),
    "kjt.copy_": (kjt().copy_, {"kjt": kjt()}),
    "kjt.dist_splits": (kjt().dist_splits, {"key_splits": [1, 1]}),
    "kjt.dist_init": (
        KeyedJaggedTensor.dist_init,
        {"keys": ["a", "b"], "tensors": FROM_RANKS, **RANKS, "stride_per_rank": [1, 1]},
    ),
    "kt": (
        KeyedTensor,
        {
            "keys": ["a", "b"],
            "length_per_key": [1, 2],
            "values": torch.ones(2, 3),
            "key_dim": 1,
            "offset_per_key": [0, 1, 3],
        },
    ),
    "kt.from_tensor_list": (
        KeyedTensor.from_tensor_list,
        {"keys": ["a"], "tensors": [torch.ones(2, 1)], "key_dim": 1, "cat_dim": 1},
    ),
    "kt.to": (kt().to, {"device": CPU}),
    "kt.regroup": (KeyedTensor.regroup, {"keyed_tensors": [kt()], "groups": [["a"]]}),
    "kt.regroup_as_dict": (
        KeyedTensor.regroup_as_dict,
        {"keyed_tensors": [kt()], "groups": [["a"]], "keys": ["x"]},
    ),
    "regroup_kts": (regroup_kts, {"keyed_tensors": [kt()], "groups": [["a"]]}),
    "permute": (permute_multi_embedding, {"keyed_tensors": [kt()], "groups": [["a"]]}),
    "flatten": (flatten_kjt_list, {"kjt_arr": [kjt()]}),
    "unflatten": (
        unflatten_kjt_list,
        {"values": flatten_kjt_list([kjt()])[0], "contexts": [["a", "b"]]},
    ),
    "to_jt_dict": (ComputeKJTToJTDict(), {"keyed_jagged_tensor": kjt()}),
    "to_kjt": (ComputeJTDictToKJT(), {"jt_dict": {"a": jt()}}),
}


@pytest.mark.parametrize(
    ("call", "argument"),
    [(call, argument) for call, (_, arguments) in CALLS.items() for argument in arguments],
)
def test_the_message_names_what_is_odd(call, argument):
    function, arguments = CALLS[call]
    function(**arguments)
    complaints = [complaint(function, {**arguments, argument: odd}) for odd in ODD.values()]
    refused = [message for message in complaints if message is not None]
    assert [message for message in refused if "`" not in message and "'a'" not in message] == []
    assert len(refused) >= len(ODD) // 3


def complaint(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """The message of a refusal; None if there is none."""
    try:
        function(**arguments)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kjt().permute([None, 0]),
            "`indices` should be a list of int. Received None as",
        ),
        (lambda: kjt().permute([0, 2]), "`indices` should be in .0, 2., those of keys. Received 2"),
        (
            lambda: variable().permute([-1]),
            "`indices` should be in .0, 2., those of keys. Received",
        ),
        (lambda: kjt().split([None, 2]), "`segments` should be a list of int. Received None"),
        (lambda: kjt().split([0.5, 1.5]), "`segments` should be a list of int. Received float as"),
        (lambda: KeyedTensor.from_tensor_list(None, []), "`keys` should be a list of strings"),
        (lambda: KeyedTensor(["a"], [None], torch.ones(1, 1)), "`length_per_key` should be a list"),
        (
            lambda: KeyedTensor(["a"], [1.0], torch.ones(1, 1)),
            "`length_per_key` should be a list of",
        ),
        (lambda: KeyedTensor(["a"], [1], torch.ones(1, 1), None), "`key_dim` should be an integer"),
        (
            lambda: KeyedTensor.regroup([kt()], [[["a"]]]),
            "`groups`, number 0, should be a list of st",
        ),
        (lambda: jt().to("gpu"), "`device` should be a torch.device or its name.*Received 'gpu'"),
        (lambda: kjt().to(CPU, dtype=3), "`dtype` should be a dtype. Received int"),
        (
            lambda: jt().to_padded_dense(2, None),
            "`padding_value` should be a number. Received None",
        ),
        (
            lambda: KeyedJaggedTensor([], T([]), stride="x"),
            "`stride` should be an integer. Received",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()
