"""Private names of PyTorch that waiting for ranks needs: what a new version may break is in this file alone.

``tests/process_groups/test_private.py`` holds what each should do.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store, _get_default_store

__all__ = ["default_store", "is_gloo", "timeout_of"]

_CPU = torch.device("cpu")


def default_store() -> Store:
    """Return the store that the ranks of the program met at."""
    return _get_default_store()


def timeout_of(group: dist.ProcessGroup) -> timedelta:
    """Return how long what a group does may take."""
    timeout: timedelta = group._get_backend(_CPU).options._timeout
    return timeout


def is_gloo(group: dist.ProcessGroup) -> bool:
    """Return whether tensors on the CPU travel by gloo."""
    if _CPU not in group._device_types or not dist.is_gloo_available():
        return False
    return isinstance(group._get_backend(_CPU), dist.ProcessGroupGloo)
