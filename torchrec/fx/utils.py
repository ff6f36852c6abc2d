"""Marks in graphs, under the name that the API gives the file."""

from torchrec.fx.markers import (
    assert_fx_safe,
    dmp_fx_trace_forward,
    fake_range,
    fx_marker,
    is_marker_node,
)

__all__ = [
    "assert_fx_safe",
    "dmp_fx_trace_forward",
    "fake_range",
    "fx_marker",
    "is_marker_node",
]
