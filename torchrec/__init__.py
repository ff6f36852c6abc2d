"""TorchRec, written anew: jagged types, embedding collections and fused optimizers."""

from __future__ import annotations

import importlib
from types import ModuleType

from torchrec._environment import refuse_other_distributions

refuse_other_distributions()

from torchrec.modules.embedding_configs import (  # noqa: E402
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import (  # noqa: E402
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
    EmbeddingCollection,
)
from torchrec.sparse.jagged_tensor import (  # noqa: E402
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
)
from torchrec.streamable import Multistreamable, Pipelineable  # noqa: E402
from torchrec.types import DataType, IdPolicy, OptimizerType  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "DataType",
    "EmbeddingBagCollection",
    "EmbeddingBagCollectionInterface",
    "EmbeddingBagConfig",
    "EmbeddingCollection",
    "EmbeddingConfig",
    "IdPolicy",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "Multistreamable",
    "OptimizerType",
    "Pipelineable",
    "PoolingType",
]

_SUBPACKAGES = (
    "bundle",
    "datasets",
    "distributed",
    "experiment",
    "inference",
    "metrics",
    "models",
    "modules",
    "ops",
    "optim",
    "pt2",
    "report",
    "sparse",
    "streamable",
    "test_utils",
    "training",
    "types",
)


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage when it is first used, as in ``torchrec.models.dlrm``."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"torchrec.{name}")
    raise AttributeError(f"module 'torchrec' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES, "__version__"])
