"""Memory that matrix products keep, as it is found in a process."""

from __future__ import annotations

import pytest
import torch

from torchrec.distributed.planner import _products
from torchrec.distributed.planner._products import kept_by_products

pytestmark = pytest.mark.once

MB = 2**20


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="MKL keeps this memory")
def test_products_keep_what_they_are_packed_in():
    a, b, out = torch.rand(2048, 700), torch.rand(700, 256), torch.empty(2048, 256)
    wide = kept_by_products(lambda: torch.mm(a, b, out=out))
    assert 0.1 * MB < wide < 4 * MB
    # Others of the process have needed it before, and it is found all the same.
    again = kept_by_products(lambda: torch.mm(a, b, out=out))
    assert again == pytest.approx(wide, rel=0.5)
    assert kept_by_products(lambda: None) < wide / 4


def test_other_libraries_keep_what_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(_products, "_library", lambda: tmp_path / "none.so")
    steps = []
    assert kept_by_products(lambda: steps.append(1)) == 0
    assert not steps
