"""Bytes for people, and names of sharders."""

from __future__ import annotations

import pytest
from torch import nn

from torchrec import EmbeddingBagCollection
from torchrec.distributed import planner, sharding_plan
from torchrec.distributed.planner.utils import (
    bytes_to_gb,
    bytes_to_mb,
    gb_to_bytes,
    placement,
    sharder_name,
)

pytestmark = pytest.mark.once


@pytest.mark.parametrize("gb", [0, 0.5, 3])
def test_bytes(gb):
    assert gb_to_bytes(gb) == gb * 1024**3
    assert bytes_to_gb(gb_to_bytes(gb)) == gb
    assert bytes_to_mb(gb_to_bytes(gb)) == gb * 1024


def test_names_of_sharders():
    assert sharder_name(EmbeddingBagCollection) == (
        "torchrec.modules.embedding_modules.EmbeddingBagCollection"
    )
    assert sharder_name(nn.Linear) == "torch.nn.modules.linear.Linear"


def test_paths_of_the_api():
    assert placement is sharding_plan.placement
    assert planner.bytes_to_gb is bytes_to_gb
