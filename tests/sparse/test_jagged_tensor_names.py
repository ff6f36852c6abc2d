"""Functions that programs of the API ask for, though their names begin with an underscore."""

from __future__ import annotations

import pytest
import torch

from torchrec import KeyedTensor
from torchrec.sparse.jagged_tensor import _all_keys_used_once


@pytest.mark.parametrize(
    ("groups", "used_once"),
    [
        ([["a", "c"], ["b"]], True),
        ([["a", "b", "c"], []], True),
        ([["a"], ["b"]], False),
        ([["a", "a"], ["b", "c"]], False),
        ([["a", "b", "c", "x"]], False),
        ([["a", "b", "x"]], False),
        ([], False),
    ],
)
def test_whether_groups_take_every_key_once(groups, used_once):
    one = KeyedTensor(["a", "b"], [1, 2], torch.rand(2, 3))
    other = KeyedTensor(["c"], [3], torch.rand(2, 3))
    assert _all_keys_used_once([one, other], groups) is used_once


def test_a_key_in_two_tensors_is_not_used_once():
    one = KeyedTensor(["a", "b"], [1, 2], torch.rand(2, 3))
    assert _all_keys_used_once([one, one], [["a", "b"]]) is False
    assert _all_keys_used_once([one, one], [["a", "b", "a", "b"]]) is False
