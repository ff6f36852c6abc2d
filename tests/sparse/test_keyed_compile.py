"""The sparse types in graphs: torch.compile without breaks or needless recompiles, torch.export, pytrees."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor, kjt_is_equal

T = torch.tensor
KEYS = ["a", "b", "c"]
# Tracing warns of things that are PyTorch's own.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]


def batch(size: int, synced: bool = True) -> KeyedJaggedTensor:
    """Return ``size`` samples in which every key has a number of values of its own."""
    lengths = torch.cat([torch.full((size,), 2), torch.full((size,), 3), torch.full((size,), 4)])
    values = torch.arange(int(lengths.sum()))
    kjt = KeyedJaggedTensor(KEYS, values, values / 2, lengths)
    return kjt.sync() if synced else kjt


def twin(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(["x", "y", "z"], kjt.values(), kjt.weights(), kjt.lengths())


OPERATIONS: dict[str, Callable[[KeyedJaggedTensor], Any]] = {
    "read": lambda kjt: (kjt.values() * kjt.stride(), kjt.offsets(), kjt.lengths()),
    "build": lambda kjt: twin(kjt).offsets() + 1,
    "to": lambda kjt: kjt.to(torch.device("cpu")),
    "permute": lambda kjt: kjt.permute([2, 0, 1]),
    "permute_some": lambda kjt: kjt.permute([2, 2]),
    "concat": lambda kjt: KeyedJaggedTensor.concat([kjt, twin(kjt)]),
    "getitem": lambda kjt: kjt["b"],
    "to_dict": lambda kjt: kjt.to_dict(),
    "split": lambda kjt: kjt.split([1, 2]),
    "from_jt_dict": lambda kjt: KeyedJaggedTensor.from_jt_dict(kjt.to_dict()),
    "padded": lambda kjt: kjt["b"].to_padded_dense(4),
}


def same(a: Any, b: Any) -> bool:
    found, found_spec = pytree.tree_flatten(a)
    expected, expected_spec = pytree.tree_flatten(b)
    return found_spec == expected_spec and all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("dynamic", "compiles"), [(None, 2), (True, 1)], ids=["default", "dynamic"]
)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_compiles_once_for_all_batches(operation, dynamic, compiles):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(operation, backend=counter, fullgraph=True, dynamic=dynamic)
    for size in (4, 7, 5, 9):
        assert same(compiled(batch(size)), operation(batch(size)))
    assert counter.frame_count <= compiles


def test_regroup_compiles_with_its_gradient():
    def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        left, right = KeyedTensor(["a", "b"], [2, 3], a), KeyedTensor(["c"], [2], b)
        first, second = KeyedTensor.regroup([left, right], [["a", "c"], ["b", "a"]])
        return first.sum() + 2 * second.sum()

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for rows in (4, 7):
        a = torch.rand(rows, 5, requires_grad=True)
        compiled(a, torch.rand(rows, 2)).backward()
        assert a.grad.tolist() == [[3, 3, 2, 2, 2]] * rows


class Program(torch.nn.Module):
    def __init__(self, operation: Callable[[KeyedJaggedTensor], Any]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, kjt: KeyedJaggedTensor) -> Any:
        return self.operation(kjt)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_exports_with_any_batch(operation):
    from torch.export import Dim, export, load, save

    sizes = [{0: Dim("N", max=10**6)}, {0: 3 * Dim("B", max=10**5)}, {0: Dim("N", max=10**6)}]
    program = export(
        Program(operation), (batch(4, synced=False),), dynamic_shapes=(sizes,), strict=False
    )
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    loaded = load(file).module()
    for size in (2, 7):
        kjt = batch(size, synced=False)
        found, expected = loaded(kjt), operation(kjt)
        assert type(found) is type(expected)
        assert same(found, expected)


def pair(values: torch.Tensor, lengths: torch.Tensor, **parts: Any) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(["a", "b"], values, lengths=lengths, **parts)


def by_offsets(values: torch.Tensor, lengths: torch.Tensor) -> KeyedJaggedTensor:
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return KeyedJaggedTensor(["a", "b"], values, offsets=offsets)


FROM_TENSORS = {
    "values": lambda v, n: JaggedTensor(v, lengths=n).to_padded_dense(),
    "weights": lambda v, n: JaggedTensor(v, v * 2, n).to_padded_dense_weights(padding_value=-1.0),
    "of_a_key": lambda v, n: pair(v, n)["b"].to_padded_dense(),
    "weights_of_a_key": lambda v, n: pair(v, n, weights=v * 2)["a"].to_padded_dense_weights(),
    "of_a_key_by_offsets": lambda v, n: by_offsets(v, n)["b"].to_padded_dense(),
    "of_all_keys": lambda v, n: [jt.to_padded_dense() for jt in pair(v, n).to_dict().values()],
    "of_a_part": lambda v, n: pair(v, n).permute([1])["b"].to_padded_dense(),
    "of_a_run": lambda v, n: pair(v, n).split([1, 1])[1]["b"].to_padded_dense(),
    "expanded": lambda v, n: pair(
        v, n, inverse_indices=(["b", "a"], T([[0, 1, 1], [1, 0, 0]]))
    ).expand_inverse()["a"],
    "from_rows": lambda v, n: JaggedTensor.from_dense_lengths(
        JaggedTensor(v, lengths=n).to_padded_dense(2), n.clamp(max=2)
    ),
    "a_key": lambda v, n: pair(v, n)["b"],
    "all": lambda v, n: pair(v, n, weights=v * 2),
    "all_by_offsets": by_offsets,
}


@pytest.mark.parametrize(
    "strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["traced", "strict"]
)
@pytest.mark.parametrize("operation", FROM_TENSORS.values(), ids=FROM_TENSORS)
def test_exports_what_is_built_of_tensors(operation, strict):
    class Padded(torch.nn.Module):
        def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> Any:
            return operation(values, lengths)

    sample = torch.rand(5), T([1, 2, 1, 1])
    sizes = {0: torch.export.Dim("N", max=10**6)}
    bags = {0: 2 * torch.export.Dim("B", max=10**5)}
    program = torch.export.export(Padded(), sample, dynamic_shapes=(sizes, bags), strict=strict)
    for lengths in ([3, 0, 2, 2], [0, 0, 0, 4], [0] * 4, [1, 2, 0, 3, 4, 0], [0] * 6):
        values = torch.rand(sum(lengths))
        found = program.module()(values, T(lengths))
        expected = operation(values, T(lengths))
        assert type(found) is type(expected)
        pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("form", ["lengths", "offsets"])
def test_an_exported_program_takes_lengths_and_offsets(form, strict):
    by_lengths = KeyedJaggedTensor(["a", "b"], T([5, 7, 1]), lengths=T([1, 0, 2, 0]))
    by_offsets = KeyedJaggedTensor(["a", "b"], T([5, 7, 1]), offsets=T([0, 1, 1, 3, 3]))
    traced = by_lengths if form == "lengths" else by_offsets
    operation = Program(lambda kjt: kjt["b"].to_padded_dense(3))
    program = torch.export.export(operation, (traced,), strict=strict).module()
    for given in (by_lengths, by_offsets):
        held = given.lengths_or_none(), given.offsets_or_none()
        assert program(given).tolist() == [[7, 1, 0], [0, 0, 0]]
        assert (given.lengths_or_none(), given.offsets_or_none()) == held


NODES = {
    "jagged": JaggedTensor(T([5, 7]), T([0.5, 1.0]), offsets=T([0, 2])),
    "keyed_jagged": batch(2),
    "no_keys": KeyedJaggedTensor.empty_like(batch(2)),
    "variable": KeyedJaggedTensor(
        ["a", "b"],
        T([1, 2, 3, 4]),
        lengths=T([1, 1, 2]),
        stride_per_key_per_rank=[[2], [1]],
        inverse_indices=(["b", "a"], T([[0, 0, 0], [1, 0, 1]])),
    ),
    "keyed": KeyedTensor(["a", "b"], [1, 2], torch.rand(2, 3)),
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_pytrees_go_there_and_back(node):
    leaves, spec = pytree.tree_flatten(node)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(spec)))
    assert str(again) == str(node)
    if isinstance(node, KeyedJaggedTensor):
        assert kjt_is_equal(again, node)
        assert again.stride() == node.stride()
    names = [path[0].name for path, _ in pytree.tree_flatten_with_path(node)[0]]
    assert names[0] == "values"
    doubled = pytree.tree_map(lambda tensor: tensor * 1, node)
    assert str(doubled) == str(node)


def test_structure_does_not_depend_on_what_was_computed():
    kjt = batch(2, synced=False)
    before = pytree.tree_structure(kjt)
    kjt.sync().offsets()
    assert pytree.tree_structure(kjt) == before
    assert pytree.tree_structure(batch(3)) == before


ORDERED = {
    "keyed": KeyedTensor(["a", "b", "c"], [1, 2, 1], T([[1.0, 2.0, 3.0, 4.0]])),
    "keyed_along_rows": KeyedTensor(["a", "b"], [1, 2], torch.arange(6.0).view(3, 2), key_dim=0),
    "keyed_jagged": batch(2),
    "variable": KeyedJaggedTensor(
        ["a", "b"], T([1, 2, 3, 4]), lengths=T([1, 1, 2]), stride_per_key_per_rank=[[2], [1]]
    ),
}


def in_reverse(node):
    if isinstance(node, KeyedJaggedTensor):
        return node.permute(list(reversed(range(len(node.keys())))))
    keys = node.keys()[::-1]
    return KeyedTensor.from_tensor_list(
        keys, [node[key] for key in keys], node.key_dim(), node.key_dim()
    )


@pytest.mark.parametrize("node", ORDERED.values(), ids=ORDERED)
def test_a_traced_program_takes_its_keys_in_its_own_order(node):
    from torch.fx._pytree import tree_flatten_spec

    leaves, spec = pytree.tree_flatten(node)
    for given in (node, in_reverse(node)):
        found = tree_flatten_spec(given, spec)
        assert [leaf.tolist() for leaf in found] == [leaf.tolist() for leaf in leaves]
    with pytest.raises(ValueError, match="Node context mismatch"):
        pytree.tree_map(torch.add, node, in_reverse(node))


KT = KeyedTensor(["a", "b"], [1, 2], torch.rand(1, 3))
MISFITS = {
    "other_keys": (KT, KeyedTensor(["a", "c"], [1, 2], torch.rand(1, 3)), "keys and their lengths"),
    "other_lengths": (KT, KeyedTensor(["a", "b"], [2, 1], torch.rand(1, 3)), "keys and their len"),
    "other_dim": (KT, KeyedTensor(["a", "b"], [1, 2], torch.rand(3, 3), 0), "`key_dim` of the inp"),
    "fewer_keys": (batch(2), batch(2).permute([0, 1]), "keys of the input"),
    "no_weights": (batch(2), KeyedJaggedTensor(KEYS, T([5]), lengths=T([1, 0, 0])), "The tensors"),
    "jagged": (batch(2)["a"], JaggedTensor(T([5]), lengths=T([1])), "The tensors of the input"),
    "other_inverse": (
        NODES["variable"],
        KeyedJaggedTensor.concat([NODES["variable"].permute([1]), NODES["variable"].permute([0])]),
        None,
    ),
}


@pytest.mark.parametrize(("traced", "given", "message"), MISFITS.values(), ids=MISFITS)
def test_a_traced_program_refuses_what_does_not_fit(traced, given, message):
    from torch.fx._pytree import tree_flatten_spec

    leaves, spec = pytree.tree_flatten(traced)
    if message is None:  # the same in another order, inverse indices too
        assert all(map(torch.equal, tree_flatten_spec(given, spec), leaves))
        return
    with pytest.raises(ValueError, match=f"{message}.*traced with.*Received"):
        tree_flatten_spec(given, spec)
    with pytest.raises(TypeError, match=f"`input` should be a {type(traced).__name__}. Received"):
        tree_flatten_spec(T([1]), spec)


def test_fake_tensors_are_not_looked_into():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        kjt = KeyedJaggedTensor(KEYS, torch.empty(5), lengths=torch.empty(6, dtype=torch.int64))
        assert kjt.offsets().shape == (7,)
        assert kjt.stride() == 2


def test_traced_operators_are_recorded():
    from torch.fx.experimental.proxy_tensor import make_fx

    def run(lengths: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        kjt = KeyedJaggedTensor(["a", "b"], values, lengths=lengths, length_per_key=None)
        return kjt.offsets()

    graph = make_fx(run)(T([1, 2]), T([5, 6, 7]))
    assert graph(T([2, 3]), T([1, 2, 3, 4, 5])).tolist() == [0, 2, 5]
