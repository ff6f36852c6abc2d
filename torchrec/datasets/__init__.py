"""Readers and generators of recommendation data, and the batch that they make."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrec.datasets.loader import Loader
    from torchrec.datasets.source import TableSource
    from torchrec.datasets.split import FractionSplit, TimeSplit
    from torchrec.datasets.transform import FeatureTransform
    from torchrec.datasets.utils import Batch

__all__ = ["Batch", "FeatureTransform", "FractionSplit", "Loader", "TableSource", "TimeSplit"]

# Imported when first used: readers need the extra `train`, and the data sets of the API do not.
_MODULES = {
    "Batch": "utils",
    "FeatureTransform": "transform",
    "FractionSplit": "split",
    "Loader": "loader",
    "TableSource": "source",
    "TimeSplit": "split",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"torchrec.datasets.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'torchrec.datasets' has no attribute '{name}'")
