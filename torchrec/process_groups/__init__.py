"""Waiting in a process group, whoever made it: ranks that have ended, have stopped or do something else are named."""

from torchrec.process_groups._private import default_store, timeout_of
from torchrec.process_groups.collectives import (
    all_gather,
    all_reduce,
    broadcast,
    done_within,
    wait_for,
)

__all__ = [
    "all_gather",
    "all_reduce",
    "broadcast",
    "default_store",
    "done_within",
    "timeout_of",
    "wait_for",
]
