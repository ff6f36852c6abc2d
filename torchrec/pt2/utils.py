"""Preparing inputs for tracing: a public path over a private module."""

from torchrec.pt2._inputs import kjt_for_pt2_tracing

__all__ = ["kjt_for_pt2_tracing"]
