"""A path of the API: what planning needs here and there."""

from __future__ import annotations

from torchrec.distributed._units import bytes_to_gb, bytes_to_mb, gb_to_bytes
from torchrec.distributed.planner._options import sharder_name
from torchrec.distributed.planner._sharder_data import build_sharder_data_map
from torchrec.distributed.planner.shard_estimators import get_num_poolings
from torchrec.distributed.sharding_plan import placement

__all__ = [
    "build_sharder_data_map",
    "bytes_to_gb",
    "bytes_to_mb",
    "gb_to_bytes",
    "get_num_poolings",
    "placement",
    "sharder_name",
]
