"""What the private names of PyTorch that tracing needs should do."""

from __future__ import annotations

from torchrec.fx import _private


def test_source_ranges() -> None:
    made = _private.source_range_factory("ab", None, 0, 0).make_raw_range(0, 1)
    assert isinstance(made, _private.SourceRange)
    assert (made.start, made.end) == (0, 1)
