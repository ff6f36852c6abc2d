"""Measures look-ups and updates on one process, for `calibrate`."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from torchrec.distributed.planner._bandwidths import StateSize
from torchrec.distributed.planner._calibration import LookupRate, UpdateRate
from torchrec.distributed.planner._training_steps import Clock, batch_of, pooled, step_ms, training
from torchrec.ops.embedding.updates import RULES, Hyper
from torchrec.types import OptimizerType

__all__ = ["COLUMNS", "TABLES", "VECTOR_BYTES", "LookupRates", "vector_ns"]

# Look-ups: tables, their columns and rows, samples and ids a bag; optimizers that keep more and more.
TABLES = 4
COLUMNS, _ROWS = (8, 32, 128), (1_000, 10_000, 100_000)
_SINGLE, _BAGS = (2048, 1), (512, 20)
VECTOR_BYTES = 4 * TABLES * max(COLUMNS) * _SINGLE[0]  # of a batch of the widest
_ROUND = 0.03  # seconds of each thing, then of the next; the quickest round counts, as others may run something
_CROWD = 4  # times as many samples, whose vectors caches do not hold
_OPTIMIZERS = (
    OptimizerType.SGD,
    OptimizerType.ROWWISE_ADAGRAD,
    OptimizerType.ADAGRAD,
    OptimizerType.PARTIAL_ROWWISE_ADAM,
    OptimizerType.ADAM,
)


class LookupRates:
    """Measures look-ups and updates on this process.

    Args:
        alone: milliseconds of a step of a collection of one small table.
        part: of a table more in it, forward or backward.
        seconds: how long each thing is done.
        clock: of `time`.
    """

    def __init__(self, alone: float, part: float, seconds: float, clock: Clock) -> None:
        self._rounds = max(1, round(seconds / _ROUND))
        self._part, self._seconds, self._clock = part, seconds / self._rounds, clock
        forward, _ = self._times(pooled(1, 8, 16), (1, 1), 16)
        self._calls = forward, max(alone - forward, 0.0)

    def measure(self) -> tuple[tuple[LookupRate, ...], tuple[UpdateRate, ...]]:
        """Return the rates of look-ups and updates."""
        kinds = list(itertools.product(COLUMNS, _ROWS, _OPTIMIZERS))
        rounds = [[self._of_kind(*kind) for kind in kinds] for _ in range(self._rounds)]
        # Of each kind, the least of all rounds, of each shape, each way.
        least = [
            [
                tuple(map(min, zip(*of_shape, strict=True)))
                for of_shape in zip(*of_kind, strict=True)
            ]
            for of_kind in zip(*rounds, strict=True)
        ]
        times = dict(zip(kinds, least, strict=True))
        lookups, updates = [], []
        for columns in COLUMNS:
            backward_rates: tuple[float, float] | None = None
            for rows in _ROWS:
                of_rows = {each: times[columns, rows, each] for each in _OPTIMIZERS}
                # Forward, optimizers do not matter; backward, they take nothing but more.
                quickest = [
                    [min(of_kind[shape][way] for of_kind in of_rows.values()) for shape in (0, 1)]
                    for way in (0, 1)
                ]
                forward_rates = _an_id_and_bag(*quickest[0])
                if backward_rates is None:  # of few rows, which are in the cache
                    backward_rates = _an_id_and_bag(*quickest[1])
                lookups.append(LookupRate(columns, rows, *forward_rates, *backward_rates))
                updates += [
                    _update_rate(columns, rows, optimizer, shape, backward, backward_rates)
                    for optimizer, of_kind in of_rows.items()
                    for shape, (_, backward) in zip((_SINGLE, _BAGS), of_kind, strict=True)
                ]
        return tuple(lookups), tuple(updates)

    def _of_kind(
        self, columns: int, rows: int, optimizer: OptimizerType
    ) -> list[tuple[float, float]]:
        model = pooled(TABLES, columns, rows, optimizer=optimizer)
        return [self._of_table(model, shape, rows) for shape in (_SINGLE, _BAGS)]

    def _of_table(self, model: nn.Module, shape: tuple[int, int], rows: int) -> tuple[float, float]:
        """Return milliseconds of a table, forward and backward, without what a call takes."""
        forward, backward = self._times(model, shape, rows)
        return (
            max((forward - self._calls[0]) / TABLES - self._part, 1e-6),
            max((backward - self._calls[1]) / TABLES - self._part, 1e-6),
        )

    def _times(self, model: nn.Module, shape: tuple[int, int], rows: int) -> tuple[float, float]:
        """Measure several batches in turn, so that rows come from where they lie."""
        features = len(list(model.parameters()))
        given = [batch_of(features, *shape, rows, seed) for seed in range(4)]
        batches, steps = (
            itertools.cycle(given),
            itertools.cycle([training(model, b) for b in given]),
        )

        def both() -> None:
            next(steps)()

        def forward() -> None:
            with torch.no_grad():
                model(next(batches)).values()

        of_forward = step_ms(forward, self._seconds / 2, clock=self._clock)
        of_both = step_ms(both, self._seconds, clock=self._clock)
        return of_forward, max(of_both - of_forward, 0.0)


def _an_id_and_bag(single: float, bags: float) -> tuple[float, float]:
    """Return nanoseconds of an id and of a bag, from the milliseconds of a table with one id a bag and with many."""
    (samples, _), (batch, bag) = _SINGLE, _BAGS
    an_id = max(bags - single * batch / samples, 0.0) / (batch * (bag - 1))
    return an_id * 1e6, max(single / samples - an_id, 0.0) * 1e6


def _update_rate(
    columns: int,
    rows: int,
    optimizer: OptimizerType,
    shape: tuple[int, int],
    backward: float,
    rates: tuple[float, float],
) -> UpdateRate:
    """Return what a row takes beside ids and bags, from the milliseconds of a table."""
    (batch, bag), state = shape, _state_of(optimizer)
    ids = batch * bag
    update = backward * 1e6 - ids * rates[0] - batch * rates[1]
    chosen = -rows * math.expm1(-ids / rows)  # each row counted once
    row = max(update / chosen, 0.0)
    return UpdateRate(columns, rows, ids, state.a_weight, state.a_row, row)


def _state_of(optimizer: OptimizerType) -> StateSize:
    """Return what an optimizer keeps of a table."""
    kind = RULES[optimizer]
    by_row = [kind.state[name] for name in kind.state_names(Hyper(lr=0.01))]
    return StateSize(by_row.count(False), by_row.count(True))


def vector_ns(alone: float, seconds: float, clock: Clock) -> float:
    """Return what a byte of vectors takes more where there are more than `VECTOR_BYTES`, of tables that caches hold.

    Args:
        alone: milliseconds of a step of a collection of one small table.
        seconds: how long each thing is done.
        clock: of `time`.
    """
    model, (few, _) = pooled(TABLES, max(COLUMNS), min(_ROWS)), _SINGLE
    times = [
        step_ms(training(model, batch_of(TABLES, batch, 1, min(_ROWS))), seconds, clock=clock)
        - alone
        for batch in (few, few * _CROWD)
    ]
    more = max(times[1] - _CROWD * times[0], 0.0)
    return more * 1e6 / ((_CROWD - 1) * VECTOR_BYTES)
