"""The interface of pools."""

from __future__ import annotations

import pytest
import torch

from torchrec.modules.object_pool import ObjectPool
from torchrec.modules.pool_rows import last_of_each


def test_leaves_everything_to_others() -> None:
    with pytest.raises(TypeError, match=r"abstract.*lookup.*pool_size.*update"):
        ObjectPool()


@pytest.mark.parametrize("ids", [[], [3], [3, 1, 3, 3, 1], [2, 2]], ids=str)
def test_last_of_each(ids) -> None:
    distinct, last = last_of_each(torch.tensor(ids, dtype=torch.int64))
    expected = {i: at for at, i in enumerate(ids)}
    assert dict(zip(distinct.tolist(), last.tolist(), strict=True)) == expected
