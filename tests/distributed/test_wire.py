"""Ranks that exchange something."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from torchrec.distributed.wire import Wire

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def kept():
    wire = Wire(dist.group.WORLD)
    for write in (pickle.dumps, lambda value: torch.save({"wire": value}, "/dev/null")):
        with pytest.raises(TypeError, match=r"saved by its `state_dict\(\)`"):
            write(wire)
    return copy.deepcopy([wire])[0] is wire


def test_it_is_copied_as_it_is_and_not_pickled():
    assert run(kept, 2) == [True, True]
