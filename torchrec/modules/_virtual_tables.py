"""How rows of a virtual table are evicted, as configurations say it.

A virtual table has a row for each id that it has met, in a store outside of memory. There is none here, and a table
that asks for one is refused; programs may make the policies all the same, for code of their own that looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torchrec.types import DataType

_HEADER_BYTES = 16  # in front of each row of a virtual table: its id, and what its eviction counts
_ELEMENT_BYTES = {
    DataType.INT64: 8,
    DataType.FP32: 4,
    DataType.INT32: 4,
    DataType.FP16: 2,
    DataType.BF16: 2,
}  # of all others: 1


@dataclass
class VirtualTableEvictionPolicy:
    """What all policies have: the room for counts in front of a row.

    Attributes:
        meta_header_len: that room, in elements of the row.
        embedding_dim: of the table.
        initialized: whether ``init_metaheader_config`` has set both.
    """

    meta_header_len: int = 0
    embedding_dim: int = 0
    initialized: bool = False

    def init_metaheader_config(self, data_type: DataType, embedding_dim: int) -> None:
        """Set the room that a row needs; a second call changes nothing.

        Args:
            data_type: of the table.
            embedding_dim: of the table.

        Example:
            >>> policy = NoEvictionPolicy()
            >>> policy.init_metaheader_config(DataType.FP16, 64)
            >>> policy.get_meta_header_len(), policy.get_embedding_dim()
            (8, 64)
        """
        if self.initialized:
            return
        self.meta_header_len = _HEADER_BYTES // _ELEMENT_BYTES.get(data_type, 1)
        self.embedding_dim = embedding_dim
        self.initialized = True

    def get_meta_header_len(self) -> int:
        """Return the room in front of a row, in elements."""
        return self.meta_header_len

    def get_embedding_dim(self) -> int:
        """Return the dimension of the table."""
        return self.embedding_dim


@dataclass
class NoEvictionPolicy(VirtualTableEvictionPolicy):
    """Rows stay."""


@dataclass
class CountBasedEvictionPolicy(VirtualTableEvictionPolicy):
    """Rows go whose id came seldom.

    Attributes:
        training_id_eviction_trigger_count: number of ids from which rows are evicted.
        eviction_threshold: rows with a smaller count go.
        decay_rate: what counts are multiplied by at each eviction.
        inference_eviction_threshold: the same for inference. Default: ``eviction_threshold``.
    """

    training_id_eviction_trigger_count: int = 0
    eviction_threshold: int = 15
    decay_rate: float = 0.99
    inference_eviction_threshold: int | None = None

    def __post_init__(self) -> None:
        """Take for inference what training has, where nothing is said."""
        if self.inference_eviction_threshold is None:
            self.inference_eviction_threshold = self.eviction_threshold


@dataclass
class TimestampBasedEvictionPolicy(VirtualTableEvictionPolicy):
    """Rows go whose id came long ago.

    Attributes:
        training_id_eviction_trigger_count: number of ids from which rows are evicted.
        eviction_ttl_mins: minutes after which a row goes.
        inference_eviction_ttl_mins: the same for inference. Default: ``eviction_ttl_mins``.
        max_inference_id_num_per_rank: rows that a rank keeps for inference; 0: all.
    """

    training_id_eviction_trigger_count: int = 0
    eviction_ttl_mins: int = 24 * 60
    inference_eviction_ttl_mins: int | None = None
    max_inference_id_num_per_rank: int = 0

    def __post_init__(self) -> None:
        """Take for inference what training has, where nothing is said."""
        if self.inference_eviction_ttl_mins is None:
            self.inference_eviction_ttl_mins = self.eviction_ttl_mins


@dataclass
class CountTimestampMixedEvictionPolicy(VirtualTableEvictionPolicy):
    """Rows go whose id came seldom and long ago.

    Attributes: see `CountBasedEvictionPolicy` and `TimestampBasedEvictionPolicy`.
    """

    training_id_eviction_trigger_count: int = 0
    eviction_threshold: int = 15
    decay_rate: float = 0.99
    eviction_ttl_mins: int = 24 * 60
    inference_eviction_threshold: int | None = None
    inference_eviction_ttl_mins: int | None = None

    def __post_init__(self) -> None:
        """Take for inference what training has, where nothing is said."""
        if self.inference_eviction_threshold is None:
            self.inference_eviction_threshold = self.eviction_threshold
        if self.inference_eviction_ttl_mins is None:
            self.inference_eviction_ttl_mins = self.eviction_ttl_mins


@dataclass
class FeatureL2NormBasedEvictionPolicy(VirtualTableEvictionPolicy):
    """Rows go that are short.

    Attributes:
        training_id_eviction_trigger_count: number of ids from which rows are evicted.
        eviction_threshold: rows with a smaller L2 norm go.
        inference_eviction_threshold: the same for inference. Default: ``eviction_threshold``.
    """

    training_id_eviction_trigger_count: int = 0
    eviction_threshold: float = 0.0
    inference_eviction_threshold: float | None = None

    def __post_init__(self) -> None:
        """Take for inference what training has, where nothing is said."""
        if self.inference_eviction_threshold is None:
            self.inference_eviction_threshold = self.eviction_threshold


@dataclass
class FeatureScoreBasedEvictionPolicy(VirtualTableEvictionPolicy):
    """Rows go that score low, by the features that their id came in.

    Attributes:
        decay_rate: what scores are multiplied by at each eviction.
        training_id_eviction_trigger_count: number of ids from which rows are evicted.
        training_id_keep_count: number of ids that are kept.
        eviction_ttl_mins: minutes after which a row goes; 0: never for that.
        max_inference_id_num_per_rank: rows that a rank keeps for inference; 0: all.
        inference_eviction_feature_score_threshold: rows with a smaller score are not taken to inference.
            Default: 0.
        inference_eviction_ttl_mins: the minutes for inference. Default: ``eviction_ttl_mins``.
        feature_score_mapping: feature -> what an id of it adds to the score of its row.
        feature_score_default_value: the same for other features.
        enable_auto_feature_score_collection: whether scores come with the features, as their weights.
        enable_eviction: whether rows go at all.
    """

    decay_rate: float = 0.99
    training_id_eviction_trigger_count: int = 0
    training_id_keep_count: int = 0
    eviction_ttl_mins: int = 0
    max_inference_id_num_per_rank: int = 0
    inference_eviction_feature_score_threshold: float | None = None
    inference_eviction_ttl_mins: int | None = None
    feature_score_mapping: dict[str, float] | None = None
    feature_score_default_value: float | None = None
    enable_auto_feature_score_collection: bool = False
    enable_eviction: bool = True

    def __post_init__(self) -> None:
        """Take for inference what training has, where nothing is said."""
        if self.inference_eviction_feature_score_threshold is None:
            self.inference_eviction_feature_score_threshold = 0
        if self.inference_eviction_ttl_mins is None:
            self.inference_eviction_ttl_mins = self.eviction_ttl_mins


@dataclass
class FeatureScoreMapping:
    """Scores of features, for `FeatureScoreBasedEvictionPolicy`.

    Attributes:
        feature_score_mapping: feature -> score.
        eviction_enabled: whether rows go.
    """

    feature_score_mapping: dict[str, float] = field(default_factory=dict)
    eviction_enabled: bool = False
