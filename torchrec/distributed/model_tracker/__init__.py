"""Which rows of sharded tables have been looked up since somebody last asked."""

from torchrec.distributed.model_tracker.delta_store import DeltaStore, DeltaStoreTrec
from torchrec.distributed.model_tracker.model_delta_tracker import (
    ModelDeltaTracker,
    ModelDeltaTrackerTrec,
)
from torchrec.distributed.model_tracker.types import (
    DeltaTrackerConfig,
    IndexedLookup,
    ModelTrackerConfigs,
    Trackers,
    TrackingMode,
    UniqueRows,
    UpdateMode,
)

__all__ = [
    "DeltaStore",
    "DeltaStoreTrec",
    "DeltaTrackerConfig",
    "IndexedLookup",
    "ModelDeltaTracker",
    "ModelDeltaTrackerTrec",
    "ModelTrackerConfigs",
    "Trackers",
    "TrackingMode",
    "UniqueRows",
    "UpdateMode",
]
