"""TensorDicts, and plain dicts of tensors, as KeyedJaggedTensors."""

import subprocess
import sys
import warnings

import pytest
import torch
from tensordict import TensorDict

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

BAGS = [[1, 2], [], [3]]


def nested(bags, layout=torch.jagged, dtype=torch.int64):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
        rows = [torch.tensor(bag, dtype=dtype) for bag in bags]
        return torch.nested.nested_tensor(rows, layout=layout)


def lists(kjt):
    return {key: [bag.tolist() for bag in jt.to_dense()] for key, jt in kjt.to_dict().items()}


def test_a_keyed_jagged_tensor_is_returned_itself():
    kjt = KeyedJaggedTensor(["a"], torch.tensor([1]), lengths=torch.tensor([1]))
    assert maybe_td_to_kjt(kjt) is kjt
    assert maybe_td_to_kjt(kjt, ["a"]) is kjt


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize(
    "wrap", [dict, lambda d: TensorDict(d, batch_size=[3])], ids=["dict", "td"]
)
def test_tensors_of_every_form(wrap, dtype):
    features = wrap(
        {
            "jagged": nested(BAGS, dtype=dtype),
            "scalars": torch.tensor([7, 8, 9], dtype=dtype),
            "rows": torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=dtype),
        }
    )
    kjt = maybe_td_to_kjt(features)
    assert lists(kjt) == {
        "jagged": BAGS,
        "scalars": [[7], [8], [9]],
        "rows": [[1, 2], [3, 4], [5, 6]],
    }
    assert kjt.values().dtype == dtype
    assert kjt.weights_or_none() is None
    chosen = maybe_td_to_kjt(features, ["scalars", "jagged"])
    assert lists(chosen) == {"scalars": [[7], [8], [9]], "jagged": BAGS}


def test_nested_tensors_whose_rows_lie_apart():
    strided = maybe_td_to_kjt({"a": nested(BAGS, layout=torch.strided)})
    assert lists(strided) == {"a": BAGS}
    starts, lengths = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    cut = torch.nested.narrow(torch.arange(12).view(3, 4), 1, starts, lengths, layout=torch.jagged)
    assert lists(maybe_td_to_kjt({"a": cut})) == {"a": [[0, 1], [], [10]]}


def test_batches_of_nothing():
    assert maybe_td_to_kjt({}).keys() == []
    no_samples = maybe_td_to_kjt({"a": torch.empty(0, 2, dtype=torch.int64), "b": torch.empty(0)})
    assert lists(no_samples) == {"a": [], "b": []}
    no_values = maybe_td_to_kjt({"a": torch.empty(2, 0, dtype=torch.int64)})
    assert lists(no_values) == {"a": [[], []]}


ONE, TWO = torch.tensor([1]), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("features", "keys", "error", "message"),
    [
        ([ONE], None, TypeError, "KeyedJaggedTensor or a TensorDict. Received list"),
        ({"a": [1]}, None, TypeError, "Key 'a' should hold a tensor. Received list"),
        ({"a": {"b": ONE}}, None, TypeError, "Key 'a' should hold a tensor. Received dict"),
        ({"a": ONE}, ["b"], ValueError, r"TensorDict, \['a'\]. Received 'b'"),
        ({"a": ONE, "b": TWO}, None, ValueError, r"key 'a' \(1\). Received 2 for key 'b'"),
        ({"a": ONE[0]}, None, ValueError, r"\[B\] or \[B, L\]. Received \(\)"),
        ({"a": ONE.view(1, 1, 1)}, None, ValueError, r"Received \(1, 1, 1\)"),
        ({"a": nested([[[1.0]]])}, None, ValueError, "one dimension a sample. Received 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(features, keys, error, message):
    with pytest.raises(error, match=message):
        maybe_td_to_kjt(features, keys)


@pytest.mark.slow
def test_tensordict_is_not_imported():
    code = "import sys; import torchrec.sparse.tensor_dict; print('tensordict' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
