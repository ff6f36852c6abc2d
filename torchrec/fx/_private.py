"""Private names of PyTorch that tracing needs; ``tests/fx/test_private.py`` holds what each should do."""

from __future__ import annotations

import torch
from torch.fx._symbolic_trace import ProxyableClassMeta

__all__ = ["ProxyableClassMeta", "SourceRange", "source_range_factory"]

SourceRange = torch._C._jit_tree_views.SourceRange
source_range_factory = torch._C._jit_tree_views.SourceRangeFactory
