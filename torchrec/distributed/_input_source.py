"""Where sharded modules get input from that was sent before they were called.

A forward pass calls ``self.tables(features)`` somewhere inside, and knows nothing of what was sent ahead for its batch.
Who runs it, a pipeline, holds that as a value, and enters it as the source of input for this one forward pass: so there
is no queue on a module that one fills and another has to empty, and a pass that fails leaves nothing behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["InputSource", "current_source", "input_from"]


class InputSource(ABC):
    """Runs the forward passes of sharded modules, with input that is on its way already."""

    @abstractmethod
    def forward(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what a sharded module returns, which may wait for what was sent for it.

        Args:
            module: the `ShardedModule` that is called.
            args: with what.
            kwargs: with what, by name.
        """


_source: ContextVar[InputSource | None] = ContextVar("source", default=None)


def current_source() -> InputSource | None:
    """Return where the forward pass that runs gets its input from; None: modules send it themselves."""
    return _source.get()


@contextmanager
def input_from(source: InputSource | None) -> Iterator[None]:
    """Have the forward pass inside get its input from somewhere.

    Args:
        source: where from; None: modules send it themselves.
    """
    before = _source.set(source)
    try:
        yield
    finally:
        _source.reset(before)
