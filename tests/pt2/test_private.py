"""Each private name of PyTorch that tracing uses is there and does what we think."""

from __future__ import annotations

import pytest
import torch

from torchrec.pt2 import _private


def test_a_condition_that_does_not_hold():
    _private.state(True)
    with pytest.raises(RuntimeError):
        _private.state(False)


def test_guards_of_what_is_known():
    assert [
        f(b) for f in (_private.guard_or_true, _private.guard_or_false) for b in (0 < 1, 1 < 0)
    ] == [
        True,
        False,
        True,
        False,
    ]


def test_a_size_that_may_be_any():
    counter = torch._dynamo.testing.CompileCounter()
    doubled = torch.compile(lambda x: x * 2, backend=counter, fullgraph=True)
    for size in (3, 0, 1, 7):
        values = torch.ones(size)
        _private.let_vary(values)
        assert doubled(values).tolist() == [2.0] * size
    assert counter.frame_count == 1
