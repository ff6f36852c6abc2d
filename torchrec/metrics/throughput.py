"""Samples per second of all ranks together."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.metrics.metrics_config import BatchSizeStage, validate_batch_size_stages
from torchrec.metrics.metrics_namespace import (
    MetricName,
    MetricNamespace,
    MetricPrefix,
    compose_metric_key,
)

MAX_WINDOW_TS = 2 * 60 * 60

logger = logging.getLogger(__name__)


class ThroughputMetric(nn.Module):
    """How many samples are trained, and how fast: of all runs, of this one (attempt), and lately (window).

    Args:
        batch_size: samples of one rank in a step.
        world_size: how many ranks there are; all are taken to be as fast as this one.
        window_seconds: how long the window is; 7200 at most.
        warmup_steps: how many steps at the start do not count. Default: 100.
        batch_size_stages: batch sizes that change over time; they take the place of ``batch_size``.

    Raises:
        ValueError: if the window or the warm-up is shorter than 1.

    Example:
        >>> throughput = ThroughputMetric(
        ...     batch_size=8, world_size=2, window_seconds=100, warmup_steps=1
        ... )
        >>> throughput.update()
        >>> throughput.compute()["throughput-throughput|total_examples"]
        tensor(16)
    """

    total_examples: Tensor
    warmup_examples: Tensor
    time_lapse_after_warmup: Tensor
    attempt_examples: Tensor
    attempt_warmup_examples: Tensor
    attempt_time_lapse_after_warmup: Tensor

    def __init__(
        self,
        *,
        batch_size: int,
        world_size: int,
        window_seconds: int,
        warmup_steps: int = 100,
        batch_size_stages: list[BatchSizeStage] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("window_seconds", window_seconds), ("warmup_steps", warmup_steps)):
            if value < 1:
                raise ValueError(f"`{name}` should be 1 or more. Received {value}.")
        if window_seconds > MAX_WINDOW_TS:
            logger.warning(
                "`window_seconds` is %d; the window is cut to %d.", window_seconds, MAX_WINDOW_TS
            )
        validate_batch_size_stages(batch_size_stages)
        self._batch_size = batch_size
        self._world_size = world_size
        self._window_seconds = min(window_seconds, MAX_WINDOW_TS)
        self._warmup_steps = warmup_steps
        self._stages = list(batch_size_stages or [])
        self._num_batch = 0
        self._steps = 0
        self._previous_ts = 0.0
        # When each step of the window ended, how many samples it had, and how long it took.
        self._window: deque[tuple[float, int, float]] = deque()
        for attempt in (False, True):
            prefix = "attempt_" if attempt else ""
            name = f"{prefix}examples" if attempt else "total_examples"
            counts = {name: torch.long, f"{prefix}warmup_examples": torch.long}
            seconds = {f"{prefix}time_lapse_after_warmup": torch.double}
            for state, dtype in {**counts, **seconds}.items():
                self.register_buffer(state, torch.zeros((), dtype=dtype), persistent=not attempt)

    def set_num_batch(self, num_batch: int) -> None:
        """Say how many batches there have been, from which the stage of the batch size follows."""
        self._num_batch = num_batch

    def update(self) -> None:
        """Count a step."""
        now = time.monotonic()
        self._num_batch += 1
        self._steps += 1
        examples = self._current_batch_size() * self._world_size
        self.total_examples += examples
        self.attempt_examples += examples
        if self._steps <= self._warmup_steps:
            self.warmup_examples += examples
            self.attempt_warmup_examples += examples
        else:
            seconds = now - self._previous_ts
            self.time_lapse_after_warmup += seconds
            self.attempt_time_lapse_after_warmup += seconds
            self._window.append((now, examples, seconds))
            while self._window[0][0] < now - self._window_seconds:
                self._window.popleft()
        self._previous_ts = now

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers by name; samples per second come when the warm-up is over."""
        values = {
            (MetricName.TOTAL_EXAMPLES, MetricPrefix.DEFAULT): self.total_examples.clone(),
            (MetricName.ATTEMPT_EXAMPLES, MetricPrefix.DEFAULT): self.attempt_examples.clone(),
        }
        if self._window:
            examples = sum(examples for _, examples, _ in self._window)
            seconds = sum(seconds for *_, seconds in self._window)
            trained = self.total_examples - self.warmup_examples
            attempted = self.attempt_examples - self.attempt_warmup_examples
            speeds = {
                MetricPrefix.LIFETIME: trained / self.time_lapse_after_warmup,
                MetricPrefix.WINDOW: torch.tensor(examples / seconds, dtype=torch.double),
                MetricPrefix.ATTEMPT: attempted / self.attempt_time_lapse_after_warmup,
            }
            values.update({(MetricName.THROUGHPUT, prefix): x for prefix, x in speeds.items()})
        if self._stages:
            size = torch.tensor(self._current_batch_size(), dtype=torch.int32)
            values[MetricName.BATCH_SIZE, MetricPrefix.DEFAULT] = size
        namespace = MetricNamespace.THROUGHPUT
        return {
            compose_metric_key(namespace, str(namespace), name, prefix): value
            for (name, prefix), value in values.items()
        }

    def _current_batch_size(self) -> int:
        """Return the batch size of the step that was counted last."""
        begin = 0
        for stage in self._stages:
            begin += stage.max_iters or 0
            if stage.max_iters is None or self._num_batch <= begin:
                return stage.batch_size
        return self._batch_size

    @staticmethod
    def state_dict_hook(
        module: nn.Module,
        state_dict: OrderedDict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
    ) -> None:
        """Save how many batches there have been, where the batch size depends on it."""
        if isinstance(module, ThroughputMetric) and module._stages:
            state_dict[f"{prefix}num_batch"] = torch.tensor(module._num_batch)

    def load_state_dict_hook(
        self,
        state_dict: OrderedDict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take over how many batches there have been, if it was saved."""
        num_batch = state_dict.pop(f"{prefix}num_batch", None)
        if num_batch is not None and self._stages:
            self._num_batch = int(num_batch)

    def _save_to_state_dict(
        self, destination: OrderedDict[str, Tensor], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.state_dict_hook(self, destination, prefix, {})

    def _load_from_state_dict(
        self, state_dict: OrderedDict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        self.load_state_dict_hook(state_dict, prefix, *args)
        super()._load_from_state_dict(state_dict, prefix, *args)
