"""Sparse types inside what is traced: made there, asked, changed, and handed to modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import torchrec.fx
from tests.fx.sparse_samples import FUSED, KEYS, LONGEST, ROWS, D, bags, ids, one_feature
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_modules import process_pooled_embeddings, reorder_inverse_indices
from torchrec.modules.feature_processor import offsets_to_range_traceble
from torchrec.sparse.jagged_tensor import permute_multi_embedding, regroup_kts

pytestmark = pytest.mark.once

each_tracer = pytest.mark.parametrize(
    "trace", [torch.fx.symbolic_trace, torchrec.fx.symbolic_trace], ids=["torch", "torchrec"]
)


def parts(batch: int) -> tuple[Tensor, Tensor]:
    kjt = ids(batch)
    return kjt.values(), kjt.lengths()


def offsets_of(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def weighted(values: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=KEYS, values=values, weights=values * 0.5, lengths=lengths)


# What is made or done of values and lengths.
OF_PARTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "KeyedJaggedTensor": lambda v, n: KeyedJaggedTensor(KEYS, v, lengths=n),
    "KeyedJaggedTensor, positional": lambda v, n: KeyedJaggedTensor(KEYS, v, None, n),
    "KeyedJaggedTensor, offsets": lambda v, n: KeyedJaggedTensor(KEYS, v, offsets=offsets_of(n)),
    "KeyedJaggedTensor, batches by key": lambda v, n: KeyedJaggedTensor(
        KEYS, v, lengths=n, stride_per_key=[3, 9, 6]
    ).lengths_offset_per_key(),
    "KeyedJaggedTensor, weighted": lambda v, n: weighted(v, n).weights(),
    "from_lengths_sync": lambda v, n: KeyedJaggedTensor.from_lengths_sync(KEYS, v, n),
    "from_offsets_sync": lambda v, n: KeyedJaggedTensor.from_offsets_sync(KEYS, v, offsets_of(n)),
    "JaggedTensor": lambda v, n: JaggedTensor(v, lengths=n),
    "JaggedTensor, offsets": lambda v, n: JaggedTensor(v, offsets=offsets_of(n)).lengths(),
    "JaggedTensor, to padded": lambda v, n: JaggedTensor(v, lengths=n).to_padded_dense(LONGEST),
    "JaggedTensor.from_dense": lambda v, n: JaggedTensor.from_dense([v, n]),
    "JaggedTensor.from_dense_lengths": lambda v, n: JaggedTensor.from_dense_lengths(
        n.view(-1, 1), (n > 1).int()
    ),
    "JaggedTensor.empty_like": lambda v, n: JaggedTensor.empty_like(JaggedTensor(v, lengths=n)),
    "empty_like": lambda v, n: KeyedJaggedTensor.empty_like(KeyedJaggedTensor(KEYS, v, lengths=n)),
    "from_jt_dict": lambda v, n: KeyedJaggedTensor.from_jt_dict({"a": JaggedTensor(v, lengths=n)}),
    "concat": lambda v, n: KeyedJaggedTensor.concat(
        [KeyedJaggedTensor(KEYS, v, lengths=n), KeyedJaggedTensor(["x", "y", "z"], v, lengths=n)]
    ),
    "KeyedTensor": lambda v, n: KeyedTensor(["a", "b"], [1, 2], n.view(-1, 3)),
    "KeyedTensor, by key": lambda v, n: KeyedTensor(["a", "b"], [1, 2], n.view(-1, 3))["b"],
    "from_tensor_list": lambda v, n: KeyedTensor.from_tensor_list(
        ["a", "b"], [n.view(-1, 3), n.view(-1, 3) * 2]
    ),
    "regroup": lambda v, n: KeyedTensor.regroup(
        [KeyedTensor(["a", "b"], [1, 2], n.view(-1, 3))], [["b"], ["b", "a"]]
    ),
    "regroup_as_dict": lambda v, n: KeyedTensor.regroup_as_dict(
        [KeyedTensor(["a", "b"], [1, 2], n.view(-1, 3))], [["b"], ["b", "a"]], ["x", "y"]
    ),
}

BY_KEY = "KeyedJaggedTensor, batches by key"  # of 3 + 9 + 6 samples

# What is asked of a KeyedJaggedTensor.
OF_KJT: dict[str, Callable[[KeyedJaggedTensor], Any]] = {
    "keys": lambda kjt: kjt.keys(),
    "by key": lambda kjt: kjt["f2"].values(),
    "to_dict": lambda kjt: kjt.to_dict()["f3"].lengths(),
    "split": lambda kjt: kjt.split([1, 2])[1].keys(),
    "permute": lambda kjt: kjt.permute([2, 0]),
    "stride": lambda kjt: kjt.stride() + 1,
    "length_per_key": lambda kjt: kjt.length_per_key(),
    "new weights": lambda kjt: kjt.with_weights(kjt.values().float()).weights(),
    "moved": lambda kjt: kjt.to("cpu").values(),
}


def assert_equal(received: Any, expected: Any) -> None:
    received, spec = pytree.tree_flatten(received)
    expected, other = pytree.tree_flatten(expected)
    assert type(spec) is type(other)
    assert len(received) == len(expected)
    for mine, theirs in zip(received, expected, strict=True):
        if isinstance(theirs, Tensor):
            torch.testing.assert_close(mine, theirs)
        else:
            assert mine == theirs


@pytest.mark.parametrize("function", OF_PARTS.values(), ids=OF_PARTS)
@each_tracer
def test_made_of_what_is_traced(function, trace) -> None:
    traced = trace(function)
    traced.graph.lint()
    for batch in (6,) if function is OF_PARTS[BY_KEY] else (6, 9):
        values, lengths = parts(batch)
        assert_equal(traced(values, lengths), function(values, lengths))


@pytest.mark.parametrize("function", OF_KJT.values(), ids=OF_KJT)
@each_tracer
def test_asked_while_traced(function, trace) -> None:
    traced = trace(function)
    for batch in (1, 9):
        kjt = ids(batch)
        assert_equal(traced(kjt), function(kjt))


def test_the_graph_holds_the_call_of_the_class() -> None:
    graph = torch.fx.symbolic_trace(OF_PARTS["KeyedJaggedTensor"]).graph
    (call,) = graph.find_nodes(op="call_function", target=KeyedJaggedTensor)
    assert set(call.kwargs) == {"keys", "values", "lengths"}


def test_what_is_traced_may_be_any_argument() -> None:
    values = torch.arange(3)
    traced = torch.fx.symbolic_trace(lambda n: JaggedTensor(values, lengths=n).offsets())
    assert traced(torch.tensor([1, 2])).tolist() == [0, 1, 3]
    traced = torch.fx.symbolic_trace(
        lambda o: KeyedJaggedTensor(["a"], values, offsets=o).lengths()
    )
    assert traced(torch.tensor([0, 2, 3])).tolist() == [2, 1]


def assert_made(function: Callable[..., Any], *inputs: Any) -> None:
    assert_equal(torch.fx.symbolic_trace(function)(*inputs), function(*inputs))


def test_numbers_and_names_may_be_traced() -> None:
    one, lengths, matrix = torch.tensor([5]), torch.tensor([1, 0]), torch.ones(1, 3)
    assert_made(lambda k: KeyedJaggedTensor(k, one, lengths=lengths), ["a", "b"])
    assert_made(lambda s: KeyedJaggedTensor(["a", "b"], one, lengths=lengths, stride=s), 1)
    assert_made(
        lambda n: KeyedJaggedTensor(["a", "b"], one, lengths=lengths, length_per_key=[n, 0]), 1
    )
    assert_made(
        lambda s: KeyedJaggedTensor(
            ["a", "b"], one, lengths=torch.tensor([1, 0, 0]), stride_per_key=[s, 1]
        ).stride_per_key(),
        2,
    )
    assert_made(lambda k: KeyedTensor(k, [1, 2], matrix), ["a", "b"])
    assert_made(lambda n: KeyedTensor(["a", "b"], [1, n], matrix), 2)


def test_functions_of_the_api() -> None:
    matrix, inverse = torch.ones(2, 3), torch.tensor([[0, 1, 1], [0, 0, 0]])
    assert_made(lambda i: reorder_inverse_indices(i, ["b", "a"]), (["a", "b"], inverse))
    assert_made(lambda x, i: process_pooled_embeddings([x, x * 2], i), matrix, inverse)
    assert_made(lambda o, v: offsets_to_range_traceble(o, v), torch.tensor([0, 2, 3]), matrix.T)
    kt = KeyedTensor(["a", "b"], [1, 2], matrix)
    assert_made(lambda x: regroup_kts([x], [["b"], ["a"]]), kt)
    assert_made(lambda x: permute_multi_embedding([x], [["b"], ["a"]]), kt)


def test_inverse_indices_may_be_traced() -> None:
    def expanded(values: Tensor, lengths: Tensor, inverse: Tensor) -> KeyedJaggedTensor:
        kjt = KeyedJaggedTensor(
            ["a", "b"],
            values,
            lengths=lengths,
            stride_per_key_per_rank=[[2], [1]],
            inverse_indices=(["a", "b"], inverse),
        )
        return kjt.expand_inverse()

    inverse = torch.tensor([[0, 1, 0], [0, 0, 0]])
    values, lengths = torch.tensor([5, 6, 7]), torch.tensor([1, 1, 1])
    assert_made(expanded, values, lengths, inverse)
    assert_made(lambda i: expanded(values, lengths, i), inverse)


def test_checks_are_made_when_the_graph_runs_and_as_ever_where_nothing_is_traced() -> None:
    traced = torch.fx.symbolic_trace(OF_PARTS["KeyedJaggedTensor"])
    for make in (traced, OF_PARTS["KeyedJaggedTensor"]):
        with pytest.raises(ValueError, match="`lengths` should sum to the number of values"):
            make(torch.arange(2), torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="`values` should be a"):
        KeyedTensor(["a"], [1], 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`values` should be a"):
        JaggedTensor(None, lengths=torch.ones(1))  # type: ignore[arg-type]


class Served(nn.Module):
    """Takes tensors, and makes sparse types of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        return self.model(dense, KeyedJaggedTensor(KEYS, values, lengths=lengths))


@each_tracer
def test_a_model_that_makes_its_sparse_features(trace) -> None:
    module = Served(DLRM(bags(**FUSED), 7, [6, D], [5, 1]))
    traced, twin = trace(module), copy.deepcopy(module)
    for batch in (3, 8):
        inputs = (torch.randn(batch, 7), *parts(batch))
        received, expected = traced(*inputs), twin(*inputs)
        torch.testing.assert_close(received, expected)
        received.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(module.state_dict(), twin.state_dict())


def test_what_was_traced_can_be_pickled() -> None:
    module = DLRM(bags(**FUSED), 7, [6, D], [5, 1])
    inputs = torch.randn(3, 7), ids(3)
    again = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(module)))
    torch.testing.assert_close(again(*inputs), module(*inputs))


class Doubled(KeyedJaggedTensor):
    """A sparse type of a program, with a constructor of its own."""

    def __init__(self, key: str, values: Tensor, lengths: Tensor, *, source: str = "") -> None:
        super().__init__([key], values * 2, lengths=lengths)
        self.source = source


class Named(JaggedTensor):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Pair(KeyedTensor):
    def __init__(self, values: Tensor) -> None:
        super().__init__(["a", "b"], [1, 1], values + 1)


def make_derived(values, lengths):
    doubled = Doubled("a", values, lengths, source="log")
    return doubled, doubled.source, Named(values, lengths=lengths), Pair(values.view(2, 2))


@each_tracer
def test_classes_derived_from_sparse_types(trace) -> None:
    values, lengths = torch.tensor([1, 2, 3, 4]), torch.tensor([3, 1])
    graph = trace(make_derived)
    for _ in range(2):
        doubled, source, named, pair = graph(values, lengths)
        assert (type(doubled), type(named), type(pair)) == (Doubled, Named, Pair)
        assert doubled.to_lists() == {"a": [[2, 4, 6], [8]]}
        assert source == "log"
        assert [part.tolist() for part in named.to_dense()] == [[1, 2, 3], [4]]
        assert pair["b"].tolist() == [[3], [5]]
        graph = pickle.loads(pickle.dumps(graph))
    for make in (lambda: Doubled("a", values, lengths[:1]), lambda: Named(values, lengths=values)):
        with pytest.raises(ValueError, match=r"sum to the number of values \(4\)"):
            make()
    with pytest.raises(ValueError, match=r"sum to values.size\(1\) \(4\)"):
        Pair(values.view(1, 4))
    again = pickle.loads(pickle.dumps(copy.deepcopy(Doubled("a", values, lengths))))
    assert (type(again), again.to_lists()) == (Doubled, {"a": [[2, 4, 6], [8]]})


def test_sparse_types_made_before_are_constants() -> None:
    constant = one_feature(4)
    traced = torchrec.fx.symbolic_trace(_Looked(constant), leaf_modules=["_Second"])
    assert traced(torch.ones(2)) is constant


class _Second(nn.Module):
    def forward(self, x: Tensor, jt: JaggedTensor) -> JaggedTensor:
        return jt


class _Looked(nn.Module):
    def __init__(self, constant: JaggedTensor) -> None:
        super().__init__()
        self.second, self.constant = _Second(), constant

    def forward(self, x: Tensor) -> JaggedTensor:
        return self.second(x, self.constant)


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables, self.ids = bags(), ids(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tables(self.ids).values()


def test_a_look_up_of_constants_is_recorded_by_our_tracer() -> None:
    module = _Constant()
    traced = torchrec.fx.symbolic_trace(module)
    traced(torch.ones(3, 1)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert (traced(torch.ones(3, 1)) == 1).all()


def test_ids_in_range_of_the_tables() -> None:
    assert int(ids(50).values().max()) < ROWS
