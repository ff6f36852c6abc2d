"""Inputs made ready for tracing: the same bags, and one graph for all batches."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.pt2.utils import kjt_for_pt2_tracing
from torchrec.sparse.jagged_tensor import kjt_is_equal

BATCHES = [
    {"user": [[2, 3], [4]], "ad": [[1], []]},
    {"user": [[2], []], "ad": [[], []]},
    {"user": [[], []], "ad": [[], []]},
    {"user": [[2, 3], [4, 5, 6]], "ad": [[1], [9]]},
]


# PyTorch itself makes an object of the function while it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("convert_to_vb", [False, True])
def test_one_graph_for_batches_of_any_number_of_values(convert_to_vb):
    ebc = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(10, 4, "t", feature_names=["user", "ad"])]
    )
    counter = CompileCounter()
    compiled = torch.compile(lambda kjt: ebc(kjt).values(), backend=counter, fullgraph=True)
    for bags in BATCHES:
        kjt = KeyedJaggedTensor.from_lists(bags)
        output = compiled(kjt_for_pt2_tracing(kjt, convert_to_vb))
        assert torch.equal(output, ebc(kjt).values())
    assert counter.frame_count == 1


def test_the_same_bags_on_tensors_of_its_own():
    kjt = KeyedJaggedTensor.from_lists(
        BATCHES[0], weights={"user": [[0.5, 1.0], [2.0]], "ad": [[3.0], []]}
    )
    ready = kjt_for_pt2_tracing(kjt)
    assert kjt_is_equal(ready, kjt)
    assert ready.values() is not kjt.values()
    assert ready.values().data_ptr() == kjt.values().data_ptr()
    assert ready.weights() is not kjt.weights()


def test_keys_whose_batches_may_differ():
    ready = kjt_for_pt2_tracing(KeyedJaggedTensor.from_lists(BATCHES[0]), convert_to_vb=True)
    assert ready.variable_stride_per_key()
    assert ready.stride_per_key_per_rank() == [[2], [2]]
    keys, inverse = ready.inverse_indices()
    assert (keys, inverse.tolist()) == (["user", "ad"], [[0, 1], [0, 1]])
    again = kjt_for_pt2_tracing(ready)
    assert again.stride_per_key_per_rank() == [[2], [2]]
    assert again.inverse_indices()[1].tolist() == [[0, 1], [0, 1]]
