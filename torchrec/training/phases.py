"""Where the time of training goes: reading, looking up, dense layers, optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
)
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

_COLLECTIONS = (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
PHASES = ("reading", "lookup", "dense", "optimizer")


class PhaseTimer:
    """Adds up the seconds of each phase.

    ``lookup`` is the look-up of embedding collections and its backward pass, which updates fused
    tables; ``dense`` is the rest of forward and backward. Measured is the time of the host: a
    device is never waited for, so on an accelerator the phases say who keeps the host busy.

    Example:
        >>> timer = PhaseTimer()
        >>> with timer("reading"):
        ...     _ = sum(range(1000))
        >>> timer.seconds["reading"] > 0, list(timer.fractions(1.0))
        (True, ['reading', 'lookup', 'dense', 'optimizer'])
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._began = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside for a phase; look-ups inside ``dense`` are taken out of it."""
        lookup = self.seconds["lookup"]
        began = perf_counter()
        try:
            yield
        finally:
            inner = self.seconds["lookup"] - lookup
            self.seconds[phase] += perf_counter() - began - inner

    def fractions(self, seconds: float) -> dict[str, float]:
        """Return the share of each phase in some seconds, and start again from zero."""
        shares = {phase: value / max(seconds, 1e-9) for phase, value in self.seconds.items()}
        self.seconds = dict.fromkeys(PHASES, 0.0)
        return shares

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Time the look-ups of all collections in a model while inside."""
        handles = []
        for module in _outermost_collections(model):
            handles.append(module.register_forward_pre_hook(self._start))
            handles.append(module.register_forward_hook(self._stop_forward))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, *_: Any) -> None:
        self._began = perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds["lookup"] += perf_counter() - self._began

    def _stop_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if not module.training:
            return  # an evaluation is no part of a step
        self._stop()
        node = _grad_fn(output)
        if node is not None:
            node.register_prehook(self._start)
            node.register_hook(self._stop)


def _outermost_collections(model: nn.Module) -> Iterator[nn.Module]:
    if isinstance(model, _COLLECTIONS):
        yield model
        return
    for child in model.children():
        yield from _outermost_collections(child)


def _grad_fn(output: object) -> Any:
    """Return the node of the graph that made the output of a collection."""
    values: Tensor | None = None
    if isinstance(output, tuple):  # of managed collections: with the ids that they mapped to
        output = output[0]
    if isinstance(output, KeyedTensor):
        values = output.values()
    elif isinstance(output, dict) and output:
        first = next(iter(output.values()))
        values = first.values() if isinstance(first, JaggedTensor) else None
    return None if values is None else values.grad_fn
