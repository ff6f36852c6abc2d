"""The enumerations of the original's kernels, by the names and values that they have there.

Those that functions of this library return are its own, so that they compare equal whichever way they are reached.
"""

from __future__ import annotations

from enum import Enum, IntEnum

from torchrec.modules.embedding_configs import PoolingMode, SparseType
from torchrec.modules.fused_embedding_modules import EmbeddingLocation
from torchrec.types import BoundsCheckMode, CacheAlgorithm

__all__ = [
    "BoundsCheckMode",
    "CacheAlgorithm",
    "ComputeDevice",
    "EmbOptimType",
    "EmbeddingLocation",
    "PoolingMode",
    "SparseType",
]


class EmbOptimType(Enum):
    """The optimizer of a table. Wherever an optimizer is named, those that there is a rule for here are taken.

    Example:
        >>> from torchrec import OptimizerType
        >>> OptimizerType(EmbOptimType.EXACT_ROWWISE_ADAGRAD)
        <OptimizerType.ROWWISE_ADAGRAD: 'rowwise_adagrad'>
    """

    SGD = "sgd"
    EXACT_SGD = "exact_sgd"
    LAMB = "lamb"
    ADAM = "adam"
    EXACT_ADAGRAD = "exact_adagrad"
    EXACT_ROWWISE_ADAGRAD = "exact_row_wise_adagrad"
    LARS_SGD = "lars_sgd"
    PARTIAL_ROWWISE_ADAM = "partial_row_wise_adam"
    PARTIAL_ROWWISE_LAMB = "partial_row_wise_lamb"
    ROWWISE_ADAGRAD = "row_wise_adagrad"
    SHAMPOO = "shampoo"
    SHAMPOO_V2 = "shampoo_v2"
    MADGRAD = "madgrad"
    EXACT_ROWWISE_WEIGHTED_ADAGRAD = "exact_row_wise_weighted_adagrad"
    ENSEMBLE_ROWWISE_ADAGRAD = "ensemble_row_wise_adagrad"
    EMAINPLACE_ROWWISE_ADAGRAD = "ema_in_place_row_wise_adagrad"
    NONE = "none"

    def __str__(self) -> str:
        return self.value


class ComputeDevice(IntEnum):
    """Which device kernels run on. Here, that of their tensors."""

    CPU = 0
    CUDA = 1
    MTIA = 2
