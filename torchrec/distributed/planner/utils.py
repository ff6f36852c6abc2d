"""A path of the API: what planning needs here and there."""

from __future__ import annotations

from torchrec.distributed.planner._options import sharder_name
from torchrec.distributed.planner._units import bytes_to_gb, bytes_to_mb, gb_to_bytes
from torchrec.distributed.sharding_plan import placement

__all__ = ["bytes_to_gb", "bytes_to_mb", "gb_to_bytes", "placement", "sharder_name"]
