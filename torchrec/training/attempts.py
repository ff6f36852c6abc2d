"""What an attempt of a job tells the next one, where `torchrun` starts its ranks again after one has ended."""

from __future__ import annotations

import os
from datetime import timedelta
from enum import Enum
from pathlib import Path

from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

__all__ = ["Attempts", "Opened"]

_CONNECT = timedelta(minutes=5)


class Opened(Enum):
    """How an attempt has found the folder of its run."""

    NEW = "new"
    """Nothing was in it: what is there now is of the job."""

    THERE = "there"
    """With a run, which it was asked to resume."""


class Attempts:
    """The attempts of a job, which share a store: one goes on with the run that another has opened, and with no other.

    Args:
        folder: of the run that the job trains.
    """

    def __init__(self, folder: Path) -> None:
        self._key = f"rowwise/opened/{os.path.realpath(folder)}"
        self._store = _store_of_job()

    def before(self) -> Opened | None:
        """Return how the first attempt that has opened the folder has found it; None: none has."""
        if self._store is None or not self._store.check([self._key]):
            return None
        return Opened(self._store.get(self._key).decode())

    def open(self, found: Opened) -> None:
        """Note that this attempt has opened the folder, unless one before has.

        Args:
            found: how.
        """
        if self._store is not None and self.before() is None:
            self._store.set(self._key, found.value)


def _store_of_job() -> Store | None:
    """Return the store that `torchrun` keeps for all attempts; None where it has not started this process."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store: Store
    store, *_ = next(rendezvous("env://", timeout=_CONNECT))
    return store
