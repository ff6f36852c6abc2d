"""The full check: what is right passes, and each way to be wrong is named."""

from types import SimpleNamespace

import pytest
import torch

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.sparse.jagged_tensor_validator import (
    _validate_feature_range,
    validate_keyed_jagged_tensor,
)


def table(name="t", rows=10, features=("a",), **more):
    return SimpleNamespace(name=name, num_embeddings=rows, feature_names=list(features), **more)


def raw(keys, values, lengths=None, offsets=None, weights=None, strides=None, inverse=None):
    """What a KeyedJaggedTensor says of itself, without the checks of its constructor."""
    values, lengths, offsets, weights = (
        torch.tensor(x) if isinstance(x, list) else x for x in (values, lengths, offsets, weights)
    )
    bags = (
        lengths.numel()
        if lengths is not None
        else offsets.numel() - 1
        if offsets is not None
        else 0
    )
    strides = strides or [bags // max(len(keys), 1)] * len(keys)
    return SimpleNamespace(
        keys=lambda: keys,
        values=lambda: values,
        lengths_or_none=lambda: lengths,
        offsets_or_none=lambda: offsets,
        weights_or_none=lambda: weights,
        stride_per_key=lambda: strides,
        inverse_indices_or_none=lambda: inverse,
    )


BACK = (["b", "a"], torch.tensor([[0, 0], [1, 0]]))
WIDER = (["b", "a"], torch.tensor([[7, 9], [1, 0]]))
KJT = KeyedJaggedTensor(["a", "b"], torch.tensor([1, 2, 3]), lengths=torch.tensor([1, 0, 1, 1]))


@pytest.mark.parametrize(
    "kjt",
    [
        KJT,
        KeyedJaggedTensor.empty(),
        KeyedJaggedTensor(["a"], torch.tensor([1, 2]), offsets=torch.tensor([0, 0, 2])),
        KeyedJaggedTensor(["a"], torch.tensor([1, 2]), torch.tensor([0.5, 1]), torch.tensor([2])),
        KeyedJaggedTensor(["a"], torch.empty(0), lengths=torch.empty(0, dtype=torch.int32)),
        raw(["a"], [1, 2], lengths=[2, 0], offsets=[0, 2, 2]),
        raw(["a", "b"], [1, 2, 3], [1, 0, 2], strides=[2, 1]),
        raw(["a", "b"], [1, 2], [1, 0, 1], strides=[2, 1], inverse=BACK),
        raw(["a"], [1], [1, 0], inverse=WIDER),
    ],
    ids=[
        "lengths",
        "empty",
        "offsets",
        "weights",
        "no bags",
        "both",
        "variable",
        "inverse",
        "wider",
    ],
)
def test_what_is_right(kjt):
    assert validate_keyed_jagged_tensor(kjt) is True


def test_tables_that_have_the_rows():
    tables = [table(rows=4, features=["a", "b"]), table(rows=3), table(rows=1, hash_size=5)]
    assert validate_keyed_jagged_tensor(KJT, tables)
    assert validate_keyed_jagged_tensor(KJT, [])
    empty = KeyedJaggedTensor(["a"], torch.empty(0, dtype=torch.int64), lengths=torch.tensor([0]))
    assert validate_keyed_jagged_tensor(empty, [table(rows=1)])


ROWS, META = torch.tensor([[0, 0], [1, 0]]), torch.ones(1, device="meta")
UNEVEN = raw(["a", "b"], [1], [1, 0, 0], strides=[2, 1], inverse=(["a", "b"], ROWS))


@pytest.mark.parametrize(
    ("kjt", "message"),
    [
        (raw(["a", "b", "a"], [1], [1, 0, 0]), "unique. Received 'a' 2 times"),
        (raw([3], [1], [1]), "Keys should be str. Received 3"),
        (raw(["a"], [1]), "`lengths` or `offsets` should be given"),
        (raw(["a", "b"], [1], [1, 0, 0], strides=[1, 1]), r"shape \(2,\).* Received \(3,\)"),
        (raw(["a"], [1], torch.tensor([[1]]), strides=[1]), r"shape \(1,\).* Received \(1, 1\)"),
        (raw(["a"], [1], offsets=[1, 1], strides=[1]), "start with 0. Received 1"),
        (raw(["a"], [1], offsets=[0, 1], strides=[2]), r"`offsets` .*shape \(3,\)"),
        (
            raw(["a", "b"], [1], [1, 0, 2, -2]),
            "'b' should not be negative. Received -2 in sample 1",
        ),
        (
            raw(["a"], [1, 2], offsets=[0, 3, 2]),
            "'a' should not be negative. Received -1 in sample 1",
        ),
        (
            raw(["a"], [1, 2], [1, 1], [0, 2, 2]),
            r"running sums .*\[0, 1, 2\]. Received \[0, 2, 2\]",
        ),
        (raw(["a"], [1, 2], [1, 2]), r"`lengths` sum to \(3\). Received shape \(2,\)"),
        (raw(["a"], torch.tensor(1), [1]), r"Received shape \(\)"),
        (raw(["a"], [1, 2], [1, 1], weights=[0.5]), r"as `values` \(2\). Received shape \(1,\)"),
        (raw(["a"], [1], [1], weights=META), "`weights` should be on the device"),
        (
            raw(["a", "b"], [1], [1, 0, 0], strides=[2, 1], inverse=(["a"], ROWS)),
            "one row for each",
        ),
        (UNEVEN, r"key 'b' should be in \[0, 1\). Received 1 for sample 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong(kjt, message):
    with pytest.raises(ValueError, match=message):
        validate_keyed_jagged_tensor(kjt)


@pytest.mark.parametrize(
    ("kjt", "message"),
    [
        (raw(["a"], [1], [1.0]), r"`lengths` should be int32 or int64. Received torch.float32"),
        (raw(["a"], [1], offsets=torch.tensor([0, 1], dtype=torch.int16)), r"Received torch.int16"),
        (raw(["a"], [1], [1], inverse=(["a"], torch.zeros(1, 1))), r"Received torch.float32"),
    ],
    ids=["lengths", "offsets", "inverse"],
)
def test_wrong_dtypes(kjt, message):
    with pytest.raises(TypeError, match=message):
        validate_keyed_jagged_tensor(kjt)


def test_what_tables_do_not_fit():
    with pytest.raises(ValueError, match=r"table 't' should be among .*'b'\]. Received 'c'"):
        validate_keyed_jagged_tensor(KJT, [table(features=["a", "c"])])
    message = r"feature 'b' should be in \[0, 3\), the rows of table 'u'. Received 3 in sample 1"
    with pytest.raises(ValueError, match=message):
        validate_keyed_jagged_tensor(KJT, [table(), table("u", 3, ["b"])])
    negative = KeyedJaggedTensor(["a"], torch.tensor([1, -2]), lengths=torch.tensor([0, 0, 2]))
    with pytest.raises(ValueError, match="Received -2 in sample 2"):
        validate_keyed_jagged_tensor(negative, [table()])
    floats = KeyedJaggedTensor(["a"], torch.tensor([1.0]), lengths=torch.tensor([1]))
    with pytest.raises(TypeError, match=r"ids of feature 'a' .* Received torch.float32"):
        validate_keyed_jagged_tensor(floats, [table()])


def test_the_check_sees_what_changed_after_construction():
    lengths = torch.tensor([1, 2])
    kjt = KeyedJaggedTensor(["a"], torch.tensor([1, 2, 3]), lengths=lengths)
    lengths[1] = 1
    with pytest.raises(ValueError, match=r"sum to \(2\)"):
        validate_keyed_jagged_tensor(kjt)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([1, 9, 2], True),
        ([10, 1, 1], False),
        ([-1, 1, 1], False),
        ([1, 1, 3], False),
    ],
)
def test_whether_ids_have_rows_as_a_question(values, fits):
    tables = [table("t", 10, ["f"]), table("u", 3, ["g"])]
    kjt = KeyedJaggedTensor(["f", "g"], torch.tensor(values), lengths=torch.tensor([2, 1]))
    assert _validate_feature_range(kjt, tables) is fits
    tables = [table("t", 10, ["f", "h"]), table("u", 30, ["z"])]
    assert _validate_feature_range(kjt, tables) is all(0 <= id < 10 for id in values[:2])
