"""Measures how long look-ups, updates and exchanges take on this machine, for plans that are true of it.

Collections of some tables are trained on one process, then under `DistributedModelParallel` on several, one thread
each, as `torchrun` starts them.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence

import torch
from torch import nn

from torchrec.distributed.planner._calibration import Calibration
from torchrec.distributed.planner._exchange_rates import exchange_rate
from torchrec.distributed.planner._lookup_rates import (
    TABLES,
    VECTOR_BYTES,
    LookupRates,
    vector_ns,
)
from torchrec.distributed.planner._training_steps import (
    Clock,
    batch_of,
    pooled,
    sequences,
    step_ms,
    training,
    usual_ms,
)

__all__ = ["Calibration", "calibrate", "step_ms", "usual_ms"]

_MILLION = 1_000_000  # numbers of a gradient


def calibrate(
    world_sizes: Sequence[int] = (2, 4),
    seconds: float = 0.3,
    threads: int = 1,
    processor_time: bool = False,
) -> Calibration:
    """Measure this machine, in about a minute; nothing else should run on it.

    Args:
        world_sizes: how many processes exchange, each in turn; none for look-ups alone. Default 2 and 4.
        seconds: how long each thing is done. Default 0.3.
        threads: of each process. Default 1, as ``torchrun`` gives them.
        processor_time: count the time that processes compute, not that in which they wait for one another or for a
            processor, as where others run something. Plans then lack the latency of messages. Default False.

    Returns:
        the rates, which a `Topology` takes as ``rates``, and which `Calibration.to_json` writes.

    Raises:
        ValueError: if a number of processes is below 2, or ``processor_time`` is asked of several threads.
        RuntimeError: if a process fails.
    """
    if any(world_size < 2 for world_size in world_sizes):
        raise ValueError(
            f"`world_sizes` should be numbers of processes that exchange, 2 or more. Received {list(world_sizes)}."
        )
    if processor_time and threads > 1:
        raise ValueError(
            f"`threads` should be 1 with `processor_time`, which adds up those of all. Received {threads}."
        )
    clock = time.process_time if processor_time else time.perf_counter
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tiny = [training(pooled(n, 8, 16), batch_of(n, 1, 1, 16)) for n in (1, 33)]
        alone, many = (step_ms(step, seconds, clock=clock) for step in tiny)
        part = max((many - alone) / 32, 0.0)
        of_sequences = [
            step_ms(training(sequences(n), batch_of(n, 1, 1, 16)), seconds, clock=clock)
            for n in (1, 33)
        ]
        a_byte = vector_ns(alone, seconds, clock)
        rates = LookupRates(alone, part / 2, seconds / 5, clock)
        lookups, updates = rates.measure()
        dense = _dense_ns(seconds, clock)
    finally:
        torch.set_num_threads(before)
    exchanges = tuple(exchange_rate(size, seconds, threads, clock) for size in world_sizes)
    return Calibration(
        machine=f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        part_ms=part / 2,  # once forward, once backward
        tables=TABLES,
        vector_bytes=VECTOR_BYTES,
        vector_ns_a_byte=a_byte,
        sequence_ms=max((of_sequences[1] - of_sequences[0]) / 32 - part, 0.0),
        step_ms_alone=alone,
        dense_ns_a_byte=dense,
        lookups=lookups,
        updates=updates,
        exchanges=exchanges,
    )


def _dense_ns(seconds: float, clock: Clock) -> float:
    weight = nn.Parameter(torch.zeros(_MILLION))
    optimizer = torch.optim.Adagrad([weight], lr=0.01)
    weight.grad = torch.ones_like(weight)

    def step() -> None:
        if weight.grad is not None:
            weight.grad.zero_()
        optimizer.step()

    return step_ms(step, seconds, clock=clock) * 1e6 / (weight.nelement() * 4)
