"""Settings of a process that the API has: the only one has a single value here."""

from __future__ import annotations

__all__ = ["get_propogate_device", "set_propogate_device"]


def get_propogate_device() -> bool:
    """Return whether sharded modules for inference are told which device to answer on: they are not.

    Example:
        >>> get_propogate_device()
        False
    """
    return False


def set_propogate_device(val: bool) -> None:
    """Say whether sharded modules for inference are told which device to answer on.

    Args:
        val: False. They answer where their input is.

    Raises:
        ValueError: if it is True.
    """
    if val:
        raise ValueError(
            "`val` should be False: modules answer on the device of their input. Received True."
        )
