"""What plans are written in: small enumerations, and options of tables that are data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, unique

from torchrec.types import CacheAlgorithm, DataType


@unique
class CommOp(Enum):
    """What is exchanged between ranks."""

    POOLED_EMBEDDINGS_ALL_TO_ALL = "pooled_embeddings_all_to_all"
    POOLED_EMBEDDINGS_REDUCE_SCATTER = "pooled_embeddings_reduce_scatter"
    SEQUENCE_EMBEDDINGS_ALL_TO_ALL = "sequence_embeddings_all_to_all"


@unique
class ComputeDevice(Enum):
    """What kind of device a rank computes on."""

    CUDA = "cuda"
    CPU = "cpu"
    MTIA = "mtia"


@unique
class ParameterStorage(Enum):
    """Which memory a table lies in: that of an accelerator, or that of its host."""

    HBM = "hbm"
    DDR = "ddr"


@unique
class PipelineType(Enum):
    """How far a training pipeline runs ahead, which says how many batches are in memory at once."""

    NONE = "none"
    TRAIN_BASE = "train_base"
    TRAIN_SPARSE_DIST = "train_sparse_dist"
    TRAIN_PREFETCH_SPARSE_DIST = "train_prefetch_sparse_dist"


class ShardingStrategy(Enum):
    """How groups of ranks that hold the same tables are kept alike, where tables are sharded and replicated."""

    DEFAULT = "default"
    PER_MODULE = "per_module"
    FULLY_SHARDED = "fully_sharded"


class StorageUsageType(Enum):
    """Whose kernels a table is for, which says which memory it lies in."""

    BASE_QUANT = "BaseQuantEmbeddingSharder"
    BASE = "BaseEmbeddingSharder"
    DEFAULT = "ModuleSharder"


class CacheStatistics:
    """What is known of how well rows of a table can be cached."""

    @property
    def expected_lookups(self) -> float:
        """How many distinct rows a step looks up."""
        raise NotImplementedError

    def expected_miss_rate(self, clf: float) -> float:
        """Return the share of look-ups that a cache of the share ``clf`` of all rows misses."""
        raise NotImplementedError

    @property
    def cacheability(self) -> float:
        """From 0, where a small cache serves nearly all look-ups, to 1."""
        raise NotImplementedError


@dataclass
class MultiPassPrefetchConfig:
    """How rows are fetched into a cache in several passes."""

    num_passes: int = 12
    min_splitable_pass_size: int = 6 * 1024 * 1024


@dataclass
class CacheParams:
    """How rows of a table in managed memory are cached.

    No table is in managed memory here, so that plans with these are refused where a model is sharded.
    """

    algorithm: CacheAlgorithm | None = None
    load_factor: float | None = None
    reserved_memory: float | None = None
    precision: DataType | None = None
    prefetch_pipeline: bool | None = None
    stats: CacheStatistics | None = None
    multipass_prefetch_config: MultiPassPrefetchConfig | None = None


@dataclass
class KeyValueParams:
    """How a table in a key-value store is kept.

    No table is in one here, so that plans with these are refused where a model is sharded.
    """

    ssd_storage_directory: str | None = None
    ssd_rocksdb_write_buffer_size: int | None = None
    ssd_rocksdb_shards: int | None = None
    gather_ssd_cache_stats: bool | None = None
    use_passed_in_path: bool = True
    l2_cache_size: int | None = None
    max_l1_cache_size: int | None = None
    enable_async_update: bool | None = None
    bulk_init_chunk_size: int | None = None
    lazy_bulk_init_enabled: bool | None = None
    load_ckpt_without_opt: bool = False
    ps_hosts: Sequence[tuple[str, int]] | None = None
    ps_client_thread_num: int | None = None
    ps_max_key_per_request: int | None = None
    ps_max_local_index_length: int | None = None
