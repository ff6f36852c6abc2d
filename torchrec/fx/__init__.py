"""Tracing by ``torch.fx``: a tracer that keeps modules whole by name, and marks in graphs."""

from torchrec.fx.tracer import Tracer, is_fx_tracing, symbolic_trace

__all__ = ["Tracer", "is_fx_tracing", "symbolic_trace"]
