"""Commands that `torchrun` starts as several processes, its *ranks*: which may be, and which of them says an error."""

from __future__ import annotations

import os
from datetime import timedelta
from time import monotonic, sleep

__all__ = ["is_first_rank", "require_one_process", "says_first_rank"]

_PATIENCE = 5.0  # seconds that ranks which meet the same error do so after one another, at most
_POLL = 0.02
_CONNECT = timedelta(seconds=5)


def is_first_rank() -> bool:
    """Return whether this is the first rank, or the only process."""
    return _rank() == 0


def require_one_process(command: str) -> None:
    """Refuse to run a command once a rank: each would do all of it, and write the same files.

    Args:
        command: its name.

    Raises:
        ValueError: if `torchrun` has started more than one process.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and _by_torchrun():
        raise ValueError(
            f"`{command}` should be started without torchrun: it runs in one process. Received {size}."
        )


def says_first_rank(message: str) -> bool:
    """Return whether the first rank says the same, in the store that the ranks have of `torchrun`.

    All ranks that have failed call this. The first tells the others what it says; these wait for it, as `torchrun` ends
    all ranks as soon as one of them has ended, the first before it has said anything.

    Args:
        message: one line.
    """
    if not _by_torchrun() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return is_first_rank()
    key = f"rowwise/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        from torch.distributed.rendezvous import rendezvous

        store, *_ = next(rendezvous("env://", timeout=_CONNECT))
        if is_first_rank():
            store.set(key, message)
            return True
        end = monotonic() + _PATIENCE
        while not store.check([key]):  # `wait` logs a traceback where nothing comes
            if monotonic() > end:
                return False
            sleep(_POLL)
        return bool(store.get(key).decode() == message)
    except (
        ImportError,
        KeyError,
        RuntimeError,
    ):  # no store, or nothing from the first: each speaks for itself
        return is_first_rank()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _by_torchrun() -> bool:
    # Other launchers set RANK and WORLD_SIZE for whole machines, where any command may be run.
    return "TORCHELASTIC_RUN_ID" in os.environ
