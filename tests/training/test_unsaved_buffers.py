"""Buffers that ``state_dict`` leaves out are saved beside it, and come back with the size they had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrec.training.unsaved_buffers import load_unsaved_buffers, unsaved_buffers

pytestmark = pytest.mark.once


def make() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    model.register_buffer("own", torch.zeros(3), persistent=False)
    model[1].register_buffer("seen", torch.zeros(2), persistent=False)
    return model


def test_only_those_that_are_not_saved_come_back() -> None:
    model, other = make(), make()
    model.own.fill_(5)
    model[1].register_buffer("seen", torch.arange(4.0), persistent=False)
    model[0].running_mean.fill_(7)
    saved = unsaved_buffers(model)
    assert saved.keys() == {".own", "1.seen"}
    state, seen = other.state_dict(), other[1].seen
    load_unsaved_buffers(other, saved)
    assert other.own.tolist() == [5.0] * 3
    assert other[1].seen.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert seen.tolist() == [0.0, 0.0]  # the model has another one now
    assert other.state_dict().keys() == state.keys()
    assert other[0].running_mean.tolist() == [0.0, 0.0]
