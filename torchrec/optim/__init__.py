"""Optimizers for tables, by name, inside the backward pass, and around other optimizers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.fused import EmptyFusedOptimizer, FusedOptimizer, FusedOptimizerModule
from torchrec.optim.keyed import (
    CombinedOptimizer,
    KeyedOptimizer,
    KeyedOptimizerWrapper,
    OptimizerWrapper,
)
from torchrec.optim.optimizers import (
    LAMB,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    LarsSGD,
    PartialRowWiseAdam,
    PartialRowWiseLAMB,
    in_backward_optimizer_filter,
)
from torchrec.optim.owners import owner_of
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.optim.semi_sync import SemisyncOptimizer

if TYPE_CHECKING:
    from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
    from torchrec.optim.warmup import WarmupOptimizer, WarmupPolicy, WarmupStage

__all__ = [
    "LAMB",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CombinedOptimizer",
    "EmptyFusedOptimizer",
    "FusedOptimizer",
    "FusedOptimizerModule",
    "GradientClipping",
    "GradientClippingOptimizer",
    "KeyedOptimizer",
    "KeyedOptimizerWrapper",
    "LarsSGD",
    "OptimizerWrapper",
    "PartialRowWiseAdam",
    "PartialRowWiseLAMB",
    "RowWiseAdagrad",
    "SemisyncOptimizer",
    "WarmupOptimizer",
    "WarmupPolicy",
    "WarmupStage",
    "apply_optimizer_in_backward",
    "in_backward_optimizer_filter",
    "owner_of",
]

# Imported when first used: no table needs them.
_MODULES = {
    "GradientClipping": "clipping",
    "GradientClippingOptimizer": "clipping",
    "WarmupOptimizer": "warmup",
    "WarmupPolicy": "warmup",
    "WarmupStage": "warmup",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"torchrec.optim.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'torchrec.optim' has no attribute '{name}'")
