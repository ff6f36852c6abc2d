"""Where the pruning of tables is logged: a place for loggers of one's own, and one that logs nothing."""

from __future__ import annotations

import abc
from collections.abc import Generator
from contextlib import contextmanager
from types import SimpleNamespace

__all__ = ["PruningLogBase", "PruningLogger", "PruningLoggerDefault"]


class PruningLogBase:
    """What is logged of one event; loggers add attributes of their own."""


class PruningLogger(abc.ABC):
    """Logs events of pruning."""

    @classmethod
    @contextmanager
    @abc.abstractmethod
    def pruning_logger(
        cls, event: str, trainer: str | None = None, publisher: str | None = None
    ) -> Generator[object, None, None]:
        """Log an event, from the beginning of the block to its end.

        Args:
            event: its name.
            trainer: which trainer it happens in.
            publisher: which publisher it happens in.

        Yields:
            An object whose attributes the block may set, to be logged.
        """
        yield PruningLogBase()


class PruningLoggerDefault(PruningLogger):
    """Logs nothing.

    Example:
        >>> with PruningLoggerDefault.pruning_logger("prune") as log:
        ...     log.rows = 3
        >>> log.rows
        3
    """

    @classmethod
    @contextmanager
    def pruning_logger(
        cls, event: str, trainer: str | None = None, publisher: str | None = None
    ) -> Generator[object, None, None]:
        """Yield an object that takes any attribute.

        Args:
            event: without effect.
            trainer: without effect.
            publisher: without effect.
        """
        yield SimpleNamespace()
