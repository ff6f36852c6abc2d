"""Each private name of PyTorch that quantised tables use is there and does what they think."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrec.quant import _private

pytestmark = pytest.mark.once


def test_buffers_are_those_that_a_module_has_now() -> None:
    module = nn.BatchNorm1d(2)
    buffers = _private.buffers_by_name(module)
    module.running_mean = torch.ones(2)
    module.double()
    assert buffers["running_mean"].tolist() == [1.0, 1.0]
    assert buffers["running_mean"].dtype is torch.float64


def test_modules_are_those_that_a_module_has_now() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    modules = _private.modules_by_name(module)
    module[0] = nn.ReLU()
    assert modules == {"0": module[0]}
