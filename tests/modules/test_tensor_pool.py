"""TensorPool against a list of lists."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from torchrec.modules.object_pool import ObjectPool
from torchrec.modules.tensor_pool import TensorPool

SIZE, DIM = 5, 2


@given(
    writes=st.lists(
        st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(-9, 9)), max_size=8), max_size=4
    ),
    reads=st.lists(st.integers(0, SIZE - 1), max_size=8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
    ids_dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_reads_what_was_written_last(writes, reads, dtype, ids_dtype) -> None:
    pool = TensorPool(SIZE, DIM, dtype)
    plain = [[0, 0] for _ in range(SIZE)]
    for write in writes:
        ids = torch.tensor([i for i, _ in write], dtype=ids_dtype)
        values = torch.tensor([[v, v + 1] for _, v in write], dtype=dtype).reshape(-1, DIM)
        pool.update(ids, values)
        for i, v in write:
            plain[i] = [v, v + 1]
    ids = torch.tensor(reads, dtype=ids_dtype)
    assert pool.lookup(ids).tolist() == [plain[i] for i in reads]
    assert pool.pool.tolist() == plain
    assert pool(ids).dtype == dtype


def test_result_is_a_copy_and_keeps_no_graph() -> None:
    pool = TensorPool(SIZE, DIM, torch.float32)
    pool.update(torch.tensor([1]), torch.ones(1, DIM, requires_grad=True))
    result = pool.lookup(torch.tensor([1]))
    assert not result.requires_grad
    result.zero_()
    assert pool.pool[1].tolist() == [1, 1]


def test_start_from_values_and_state() -> None:
    values = torch.arange(10.0).reshape(SIZE, DIM)
    pool = TensorPool(SIZE, DIM, torch.float32, loaded_values=values, enable_uvm=True)
    assert torch.equal(pool.pool, values)
    buffer = io.BytesIO()
    torch.save(pool.state_dict(), buffer)
    buffer.seek(0)
    other = TensorPool(SIZE, DIM, torch.float32, device="cpu")
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(other.lookup(torch.arange(SIZE)), values)
    assert list(pool.state_dict()) == ["_pool"]
    assert (pool.pool_size, pool.dim, pool.dtype, pool.device.type) == (
        SIZE,
        DIM,
        torch.float32,
        "cpu",
    )
    assert TensorPool(SIZE, DIM, torch.float32, device="meta").pool.is_meta
    assert isinstance(nn.Sequential(pool)[0], ObjectPool)


@pytest.mark.parametrize("wrong", [-1, SIZE])
def test_ids_out_of_range(wrong) -> None:
    pool = TensorPool(SIZE, DIM, torch.float32)
    ids = torch.tensor([0, wrong])
    for call in (lambda: pool.lookup(ids), lambda: pool.update(ids, torch.ones(2, DIM))):
        with pytest.raises(IndexError, match=rf"in \[0, 5\).*Received {wrong} at position 1"):
            call()
    assert not pool.pool.any()


def test_what_does_not_fit() -> None:
    pool = TensorPool(SIZE, DIM, torch.float32)
    one = torch.tensor([1])
    with pytest.raises(ValueError, match=r"`values` should be \(1, 2\). Received \(1, 3\)"):
        pool.update(one, torch.ones(1, 3))
    with pytest.raises(TypeError, match=r"`values` should be of torch.float32. Received torch.fl"):
        pool.update(one, torch.ones(1, DIM, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"`ids` should be a Tensor. Received list"):
        pool.lookup([1])
    with pytest.raises(TypeError, match=r"`ids` should be a one-dimensional int32 or int64"):
        pool.lookup(torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"`loaded_values` should be \(5, 2\). Received \(4, 2\)"):
        TensorPool(SIZE, DIM, torch.float32, loaded_values=torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"`pool_size` should be at least 1. Received 0"):
        TensorPool(0, DIM, torch.float32)
    with pytest.raises(TypeError, match=r"`dim` should be an integer. Received 2.0"):
        TensorPool(SIZE, 2.0, torch.float32)


def test_compiled_lookup() -> None:
    torch._dynamo.reset()
    pool = TensorPool(SIZE, DIM, torch.float32, loaded_values=torch.randn(SIZE, DIM))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend=counter)
    for batch in (7, 3, 9):
        ids = torch.randint(0, SIZE, (batch,))
        assert torch.equal(compiled(ids), pool(ids))
    assert counter.frame_count == 1
    with pytest.raises(RuntimeError, match=r"`ids` should be in \[0, 5\)"):
        compiled(torch.tensor([0, 5, 1]))


def test_exported_lookup() -> None:
    pool = TensorPool(SIZE, DIM, torch.float32, loaded_values=torch.randn(SIZE, DIM))
    batch = torch.export.Dim("batch")
    program = torch.export.export(pool, (torch.tensor([0, 1, 2]),), dynamic_shapes=({0: batch},))
    ids = torch.tensor([4, 4, 0, 1])
    assert torch.equal(program.module()(ids), pool(ids))
