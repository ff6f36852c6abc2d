"""How tables can be placed that belong to one optimizer, which updates them in the backward pass."""

from __future__ import annotations

from collections.abc import Mapping

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import ParameterSharding, ShardingType

KERNELS = [EmbeddingComputeKernel.FUSED.value]
SHARDING_TYPES = [kind.value for kind in ShardingType if kind is not ShardingType.DATA_PARALLEL]


def check_plan(sharding: Mapping[str, ParameterSharding], path: str) -> None:
    """Refuse copies of such tables: ranks add their gradients up for an optimizer around the model.

    Args:
        sharding: of each table.
        path: of the collection in its model, for errors.

    Raises:
        ValueError: naming the table.
    """
    where = f" of module '{path}'" if path else ""
    for table, mine in sharding.items():
        if mine.sharding_type not in SHARDING_TYPES:
            raise ValueError(
                f"Table '{table}'{where} should have parts on the ranks: its optimizer is that of its collection, and "
                f"copies would be trained by an optimizer around the model. Received {mine.sharding_type}."
            )
