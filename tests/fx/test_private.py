"""What the private names of PyTorch that tracing needs should do."""

from __future__ import annotations

import pytest
import torch

from torchrec.fx import _private

pytestmark = pytest.mark.once


class Pair(metaclass=_private.ProxyableClassMeta):
    def __init__(self, left: object, right: object) -> None:
        self.left, self.right = left, right


def test_objects_of_its_classes_are_constants_of_graphs() -> None:
    pair = Pair(1, 2)
    traced = torch.fx.symbolic_trace(lambda x: _kept(x, pair))
    assert traced(5) == (5, pair)


def _kept(x: object, pair: Pair) -> tuple[object, Pair]:
    return x, pair


torch.fx.wrap("_kept")


def test_source_ranges() -> None:
    made = _private.source_range_factory("ab", None, 0, 0).make_raw_range(0, 1)
    assert isinstance(made, _private.SourceRange)
    assert (made.start, made.end) == (0, 1)
