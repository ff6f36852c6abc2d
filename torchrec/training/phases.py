"""Where the time of training goes: reading, looking up, dense layers, optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from torchrec.modules.collection import collections_in
from torchrec.optim.backward_pass import at_end_of_backward_pass
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

PHASES = ("reading", "lookup", "dense", "optimizer")
_EVERY = 8  # steps, of which one is watched


class PhaseTimer:
    """Adds up the seconds of each phase.

    ``lookup`` is the look-up of embedding collections and its backward pass, which updates fused
    tables; ``dense`` is the rest of forward and backward. How these two share their time is measured
    in one of eight steps: hooks cost more than clocks. Measured is the time of the host: a device is
    never waited for, so on an accelerator the phases say who keeps the host busy.

    Example:
        >>> timer = PhaseTimer()
        >>> with timer("reading"):
        ...     _ = sum(range(1000))
        >>> fractions = timer.fractions(1.0)
        >>> fractions["reading"] > 0, list(fractions)
        (True, ['reading', 'lookup', 'dense', 'optimizer'])
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)  # look-ups are in "dense"
        self._steps = 0
        self._watching = False
        self._watched = self._looking_up = (
            0.0  # seconds of "dense" in watched steps, and of look-ups
        )
        self._share = 0.0  # of look-ups in "dense", as last seen
        self._began = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside for a phase; look-ups are told apart from ``dense`` later."""
        began = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - began
            self._seconds[phase] += seconds
            if self._watching and phase == "dense":
                self._watched += seconds

    def fractions(self, seconds: float) -> dict[str, float]:
        """Return the share of each phase in some seconds, and start again from zero."""
        if self._watched:
            self._share = min(self._looking_up / self._watched, 1.0)
            self._watched = self._looking_up = 0.0
        both = self._seconds["dense"]
        self._seconds |= {"lookup": both * self._share, "dense": both * (1.0 - self._share)}
        shares = {phase: value / max(seconds, 1e-9) for phase, value in self._seconds.items()}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return shares

    @contextmanager
    def step(self, model: nn.Module) -> Iterator[None]:
        """Make a step inside; of one in eight, time the look-ups of all collections of the model."""
        self._watching = self._steps % _EVERY == 0
        self._steps += 1
        handles = []
        if self._watching:
            for path, _ in collections_in(model):
                module = model.get_submodule(path)
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
        self._looking_up += perf_counter() - self._began

    # Fused tables are updated when the backward pass is over, by what the look-up queues between
    # these two.

    def _start_backward(self, *_: Any) -> None:
        at_end_of_backward_pass(self._start)
        self._start()

    def _stop_backward(self, *_: Any) -> None:
        self._stop()
        at_end_of_backward_pass(self._stop)

    def _stop_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stop()
        node = _grad_fn(output)
        if node is not None:
            node.register_prehook(self._start_backward)
            node.register_hook(self._stop_backward)


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
