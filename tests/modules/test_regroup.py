"""Regrouping against torch.cat of the tensors of the keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from torchrec import DataType, KeyedTensor
from torchrec.modules.regroup import KTRegroupAsDict, PermuteMultiEmbedding, module_init
from torchrec.types import CacheMixin

GROUPS, NAMES = [["c", "b"], ["a", "c"], ["a"]], ["x", "y", "z"]


def inputs(
    batch: int, dims: tuple[int, int, int] = (1, 2, 3), dtype: torch.dtype = torch.float32
) -> list[KeyedTensor]:
    def random(columns: int) -> Tensor:
        return torch.randn(batch, columns, dtype=dtype).requires_grad_()

    a, b, c = dims
    return [KeyedTensor(["a", "b"], [a, b], random(a + b)), KeyedTensor(["c"], [c], random(c))]


def by_cat(kts: list[KeyedTensor]) -> dict[str, Tensor]:
    parts = {key: kt[key] for kt in kts for key in kt.keys()}  # noqa: SIM118, no dict
    return {
        name: torch.cat([parts[k] for k in group], 1)
        for name, group in zip(NAMES, GROUPS, strict=True)
    }


@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradients(batch, dtype) -> None:
    kts = inputs(batch, dtype=dtype)
    actual, expected = KTRegroupAsDict(GROUPS, NAMES)(kts), by_cat(kts)
    assert list(actual) == NAMES
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    values = [kt.values() for kt in kts]
    upstream = [torch.randn_like(e) for e in expected.values()]
    got = torch.autograd.grad(list(actual.values()), values, upstream)
    want = torch.autograd.grad(list(expected.values()), values, upstream)
    torch.testing.assert_close(got, want)


def test_keys_and_lengths_may_change_between_calls() -> None:
    module = KTRegroupAsDict(GROUPS, NAMES)
    for kts in (
        inputs(3),
        inputs(3, (2, 1, 3)),
        inputs(2, (5, 4, 1))[::-1],
        [KeyedTensor(["c", "a", "b"], [2, 1, 3], torch.randn(4, 6))],
    ):
        torch.testing.assert_close(module(kts), by_cat(kts), rtol=0, atol=0)
        assert isinstance(module, CacheMixin)
        module.clear_cache()


@pytest.mark.parametrize("data_type", [DataType.FP16, DataType.BF16, DataType.FP32], ids=str)
def test_cast(data_type) -> None:
    module = KTRegroupAsDict(GROUPS, NAMES, emb_dtype=data_type)
    dtype = getattr(
        torch, {"FP16": "float16", "BF16": "bfloat16", "FP32": "float32"}[str(data_type)]
    )
    kts = inputs(3)
    for name, expected in by_cat(kts).items():
        torch.testing.assert_close(module(kts)[name], expected.to(dtype), rtol=0, atol=0)
    assert module.embedding_cast([torch.ones(1)])[0].dtype == dtype
    assert not module.state_dict()


def test_mixed_dtypes_take_the_wider_one() -> None:
    kts = [inputs(3)[0], inputs(3, dtype=torch.bfloat16)[1]]
    actual = KTRegroupAsDict(GROUPS, NAMES)(kts)
    torch.testing.assert_close(actual["x"], by_cat(kts)["x"], rtol=0, atol=0)
    assert KTRegroupAsDict(GROUPS, NAMES, DataType.BF16)(kts)["x"].dtype == torch.bfloat16


def test_what_does_not_fit() -> None:
    for names in (["x"], ["x", "y", "x"]):
        with pytest.raises(ValueError, match=r"`keys` should be distinct names, one a group \(3\)"):
            KTRegroupAsDict(GROUPS, names)
    module = KTRegroupAsDict(GROUPS, NAMES)
    module_init(module, inputs(2))
    with pytest.raises(KeyError, match="Received 'c'"):
        module_init(module, inputs(2)[:1])
    with pytest.raises(ValueError, match="Key 'c' should be in one of the keyed tensors"):
        module([*inputs(2), *inputs(2)[1:]])
    with pytest.raises(ValueError, match="at least one KeyedTensor"):
        module([])


def permute_of(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


FIT = [[1, 0, 0, 0, 3, 0], [0, 0, 1, 3, 2, 0], [0, 1, 0, 0, 1, 0], [1, 1, 0, 1, 3, 0]]


def test_permute_multi_embedding() -> None:
    module = PermuteMultiEmbedding(GROUPS[:2])
    kts = inputs(5)
    values = [kt.values() for kt in kts]
    with pytest.raises(RuntimeError, match="`init_tensors` should be called before"):
        module(values)
    shapes = torch.tensor([3, 3]), torch.tensor([5, 4])
    module.init_tensors(permute_of(FIT), *shapes, [5, 4])
    module.set_device("cpu")
    expected = list(by_cat(kts).values())[:2]
    torch.testing.assert_close(module(values), expected, rtol=0, atol=0)
    assert not module.state_dict()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 0, 0, 0, 4, 0], *FIT[1:]], "4 columns of input 1 from 0 on, for output 0"),
        ([[2, 0, 0, 0, 3, 0], *FIT[1:]], "of input 2"),
        ([FIT[0], [0, 0, 1, 4, 2, 0], *FIT[2:]], "Received column 4 after 3"),
        (FIT[:3], r"of \[5, 4\] columns. Received \[5, 1\]"),
        ([[1, 2]], r"should be \(P, 6\)"),
    ],
    ids=["too_wide", "no_input", "gap", "short", "shape"],
)
def test_pieces_that_do_not_fit(rows, message) -> None:
    module = PermuteMultiEmbedding(GROUPS[:2])
    with pytest.raises(ValueError, match=message):
        module.init_tensors(permute_of(rows), torch.tensor([3, 3]), torch.tensor([5, 4]), [5, 4])


def test_output_lengths_that_do_not_agree() -> None:
    shapes = torch.tensor([3, 3]), torch.tensor([5, 4])
    with pytest.raises(ValueError, match=r"`out_lengths` should be `out_shapes`"):
        PermuteMultiEmbedding(GROUPS[:2]).init_tensors(permute_of(FIT), *shapes, [5, 5])


def test_compiles_once_for_changing_batches() -> None:
    torch._dynamo.reset()
    module = KTRegroupAsDict(GROUPS, NAMES, emb_dtype=DataType.BF16)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for batch in (13, 5, 9):  # no size equal to another, which PyTorch would take for a rule
        kts = inputs(batch)
        torch.testing.assert_close(compiled(kts), module(kts), rtol=0, atol=0)
    assert counter.frame_count == 1
