"""From the columns of Arrow tables to batches: the same in training, evaluation and serving."""

from torchrec.datasets.transform._transform import FeatureTransform, RawBatch
from torchrec.datasets.transform.counts import FeatureCounts, TransformCounts
from torchrec.datasets.transform.groups import GroupedTransform, group_ids
from torchrec.datasets.transform.labels import TargetKind
from torchrec.datasets.transform.rows import NotPlainError
from torchrec.datasets.transform.tables import TableSpec
from torchrec.datasets.transform.targets import Target

__all__ = [
    "FeatureCounts",
    "FeatureTransform",
    "GroupedTransform",
    "NotPlainError",
    "RawBatch",
    "TableSpec",
    "Target",
    "TargetKind",
    "TransformCounts",
    "group_ids",
]
