"""What estimates need to know of sharders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrec.distributed.planner._interfaces import SharderData
from torchrec.distributed.types import ModuleSharder, StorageUsageType

__all__ = ["build_sharder_data_map"]


def build_sharder_data_map(
    sharder_map: Mapping[str, ModuleSharder[Any]],
) -> dict[str, SharderData]:
    """Return what estimates need to know of each sharder.

    Args:
        sharder_map: `ShardingOption.module_type_key` -> sharder.

    Example:
        >>> from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
        >>> data = build_sharder_data_map({"bags": EmbeddingBagCollectionSharder()})
        >>> data["bags"].qcomm_dtype_sizes, data["bags"].storage_usage_type.value
        ({}, 'ModuleSharder')
    """
    return {
        name: SharderData(
            fused_params=dict(getattr(sharder, "fused_params", None) or {}),
            qcomm_dtype_sizes={
                op: (
                    codecs.forward.quantized_dtype.itemsize,
                    codecs.backward.quantized_dtype.itemsize,
                )
                for op, codecs in (sharder.qcomm_codecs_registry or {}).items()
            },
            storage_usage_type=getattr(sharder, "storage_usage_type", StorageUsageType.DEFAULT),
        )
        for name, sharder in sharder_map.items()
    }
