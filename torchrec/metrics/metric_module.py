"""All metrics of a training or an evaluation, from a configuration: what takes in a batch and what reports."""

from __future__ import annotations

import abc
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from torchrec.metrics.deferrable_metrics import DeferrableMetrics
from torchrec.metrics.metric_computation import State
from torchrec.metrics.metrics_config import (
    BatchSizeStage,
    MetricsConfig,
    RecMetricDef,
    RecMetricEnumBase,
    RecTaskInfo,
    StateMetricEnum,
    validate_batch_size_stages,
)
from torchrec.metrics.metrics_namespace import compose_customized_metric_key
from torchrec.metrics.model_utils import parse_task_model_outputs
from torchrec.metrics.rec_metric import RecMetric, RecMetricException, RecMetricList
from torchrec.metrics.registry import REC_METRICS_MAPPING as REC_METRICS_MAPPING
from torchrec.metrics.state_exchange import largest
from torchrec.metrics.throughput import ThroughputMetric

logger = logging.getLogger(__name__)

PreComputeStates = dict[str, dict[str, dict[str, State]]]
Module = TypeVar("Module", bound="RecMetricModule")


class StateMetric(abc.ABC):
    """Something else that reports numbers, such as an optimizer its learning rate."""

    @abc.abstractmethod
    def get_metrics(self) -> dict[str, Tensor | float]:
        """Return numbers by name."""


class RecMetricModule(nn.Module):
    """All metrics of a job. An update takes in a batch and waits for no device; `compute` reports.

    Args:
        batch_size: samples of one rank in a step.
        world_size: how many ranks there are.
        rec_tasks: the tasks of the model. Default: none.
        rec_metrics: the metrics. Default: none.
        throughput_metric: how throughput is measured. Default: it is not.
        state_metrics: what else reports, by namespace. Default: nothing.
        compute_interval_steps: after how many steps `should_compute` says so. Default: 100.
        min_compute_interval: at least this many seconds should lie between two computations.
        max_compute_interval: at most this many should. If one of the two is given, the number of steps
            follows the time that steps take, the same on all ranks.

    Raises:
        ValueError: if an interval is negative, or none is possible.

    Example:
        >>> from torchrec.metrics.metrics_config import MetricsConfig, RecMetricDef, RecMetricEnum
        >>> task = RecTaskInfo(name="click", label_name="y", prediction_name="p", weight_name="w")
        >>> module = generate_metric_module(
        ...     RecMetricModule,
        ...     MetricsConfig(
        ...         rec_tasks=[task], rec_metrics={RecMetricEnum.NE: RecMetricDef(rec_tasks=[task])}
        ...     ),
        ...     batch_size=2,
        ...     world_size=1,
        ...     my_rank=0,
        ...     state_metrics_mapping={},
        ...     device=torch.device("cpu"),
        ... )
        >>> module.update({"y": torch.tensor([0.0, 1.0]), "p": torch.tensor([0.5, 0.5]), "w": torch.ones(2)})
        >>> module.compute()["ne-click|window_ne"]
        tensor([1.], dtype=torch.float64)
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        rec_tasks: list[RecTaskInfo] | None = None,
        rec_metrics: RecMetricList | None = None,
        throughput_metric: ThroughputMetric | None = None,
        state_metrics: dict[str, StateMetric] | None = None,
        compute_interval_steps: int = 100,
        min_compute_interval: float = 0.0,
        max_compute_interval: float = math.inf,
    ) -> None:
        super().__init__()
        if compute_interval_steps < 1:
            raise ValueError(
                f"`compute_interval_steps` should be 1 or more. Received {compute_interval_steps}."
            )
        if not 0.0 <= min_compute_interval <= max_compute_interval:
            raise ValueError(
                "`min_compute_interval` should be from 0 to `max_compute_interval`. Received "
                f"{min_compute_interval} and {max_compute_interval}."
            )
        self.batch_size = batch_size
        self.world_size = world_size
        self.rec_tasks = rec_tasks or []
        self.rec_metrics = rec_metrics or RecMetricList([])
        self.throughput_metric = throughput_metric
        self.state_metrics = state_metrics or {}
        self.compute_interval_steps = compute_interval_steps
        self.min_compute_interval = min_compute_interval
        self.max_compute_interval = max_compute_interval
        self.trained_batches = 0
        self.compute_count = 0
        self.last_compute_time = -1.0
        self._batches_at_last_compute = 0

    def update(self, model_out: dict[str, Tensor], **kwargs: Any) -> None:
        """Take a batch in.

        Args:
            model_out: labels, predictions, weights and what else metrics ask for, by name.
            **kwargs: what else computations take.

        Raises:
            ValueError: if outputs are missing, or those of a task differ in size.
        """
        with torch.no_grad():
            self._update_rec_metrics(model_out, **kwargs)
            if self.throughput_metric is not None:
                self.throughput_metric.update()
        self.trained_batches += 1

    def _update_rec_metrics(self, model_out: dict[str, Tensor], **kwargs: Any) -> None:
        if not len(self.rec_metrics):
            return
        labels, predictions, weights, required = parse_task_model_outputs(
            self.rec_tasks, model_out, self.get_required_inputs()
        )
        if required:
            kwargs["required_inputs"] = required
        self.rec_metrics.update(predictions=predictions, labels=labels, weights=weights, **kwargs)

    def should_compute(self) -> bool:
        """Return whether it is time to compute; the same on all ranks."""
        return self.trained_batches % self.compute_interval_steps == 0

    def compute(self) -> DeferrableMetrics:
        """Return the numbers of all ranks by name. All ranks have to call it together.

        Metrics of tasks are reported by the first rank, or by all if that was asked for.
        """
        self.compute_count += 1
        self._adjust_compute_interval()
        found: dict[str, Any] = dict(self.rec_metrics.compute())
        found.update(self._other_metrics())
        return DeferrableMetrics(found)

    def local_compute(self) -> DeferrableMetrics:
        """Return the numbers of this rank alone, by names that say so."""
        return DeferrableMetrics(dict(self.rec_metrics.local_compute()))

    def async_compute(self) -> DeferrableMetrics:
        """Refuse: `torchrec.metrics.cpu_offloaded_metric_module` computes beside the training."""
        raise RecMetricException(
            f"`async_compute` should be called on a CPUOffloadedRecMetricModule. Received {type(self).__name__}."
        )

    def _other_metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.throughput_metric is not None:
            found.update(self.throughput_metric.compute())
        for namespace, metric in self.state_metrics.items():
            for name, value in metric.get_metrics().items():
                found[compose_customized_metric_key(f"{namespace}-{namespace}", name)] = value
        return found

    def _adjust_compute_interval(self) -> None:
        """Set the number of steps by the time that steps took since the last computation."""
        now, last = time.monotonic(), self.last_compute_time
        steps = self.trained_batches - self._batches_at_last_compute
        self.last_compute_time, self._batches_at_last_compute = now, self.trained_batches
        if (self.min_compute_interval <= 0 and math.isinf(self.max_compute_interval)) or last < 0:
            return
        # Of all ranks the slowest, so that they go on computing in the same steps.
        seconds = largest((now - last) / max(steps, 1), self._device(), self._group())
        at_least = math.ceil(self.min_compute_interval / seconds)
        at_most = self.max_compute_interval / seconds
        wanted = min(max(self.compute_interval_steps, at_least), at_most)
        self.compute_interval_steps = max(int(wanted), 1)

    def _device(self) -> torch.device:
        return next((buffer.device for buffer in self.buffers()), torch.device("cpu"))

    def _group(self) -> dist.ProcessGroup | None:
        metrics = self.rec_metrics.metrics()
        return metrics[0].process_group if metrics else None

    def sync(self) -> None:
        """Put the states of all ranks together in the place of this rank's, until `unsync`, to be saved."""
        self.rec_metrics.sync()

    def unsync(self) -> None:
        """Put the states of this rank back."""
        self.rec_metrics.unsync()

    def reset(self) -> None:
        """Forget what metrics of tasks have seen."""
        self.rec_metrics.reset()

    def shutdown(self) -> None:
        """End what runs beside the training; here there is nothing."""

    def get_required_inputs(self) -> list[str] | None:
        """Return what metrics ask for beside labels, predictions and weights; None: nothing."""
        return self.rec_metrics.get_required_inputs()

    def get_pre_compute_states(
        self, pg: dist.ProcessGroup | DeviceMesh | None = None
    ) -> PreComputeStates:
        """Return the states of all ranks together, by namespace, task and name.

        Of metrics of one namespace, the second is under its name with `_2`, and so on.

        Args:
            pg: the ranks. Default: those of the metrics.
        """
        group = pg.get_group() if isinstance(pg, DeviceMesh) else pg
        found: PreComputeStates = {}
        with self.rec_metrics.joined(group):
            for name, metric in self._named_metrics():
                found[name] = metric.states()
        if self.throughput_metric is not None:
            name = "throughput"
            found[name] = {
                name: {key: x.clone() for key, x in self.throughput_metric.named_buffers()}
            }
        return found

    def load_pre_compute_states(self, source: PreComputeStates) -> None:
        """Put the states of all ranks in the place of this rank's, so that it can compute alone.

        Args:
            source: what `get_pre_compute_states` returned.

        Raises:
            ValueError: if there is none for a metric or a task.
        """
        for name, metric in self._named_metrics():
            if name not in source:
                raise ValueError(f"`source` should have '{name}'. Received {sorted(source)}.")
            metric.load_states(source[name])
        if self.throughput_metric is not None:
            states = source.get("throughput", {}).get("throughput", {})
            for name, buffer in self.throughput_metric.named_buffers():
                value = states.get(name)
                if isinstance(value, Tensor):
                    buffer.copy_(value)

    def _named_metrics(self) -> Iterator[tuple[str, RecMetric]]:
        seen: Counter[str] = Counter()
        for metric in self.rec_metrics.metrics():
            name = str(metric.namespace)
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name}_{seen[name]}"), metric

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
        """Let metrics of which a checkpoint has nothing begin anew, and say so."""
        parts: dict[str, nn.Module] = {
            f"{prefix}rec_metrics.rec_metrics.{i}.": metric
            for i, metric in enumerate(self.rec_metrics.metrics())
        }
        if self.throughput_metric is not None:
            parts[f"{prefix}throughput_metric."] = self.throughput_metric
        for start, metric in parts.items():
            if any(name.startswith(start) for name in state_dict):
                continue
            if isinstance(metric, RecMetric):
                metric.reset()
            fresh = metric.state_dict(prefix=start)
            if fresh:
                logger.warning("The checkpoint has no `%s`: it begins anew.", start[:-1])
                # What is saved of either begins with zeros.
                state_dict.update({name: torch.zeros_like(x) for name, x in fresh.items()})

    def _load_from_state_dict(
        self, state_dict: OrderedDict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        self.load_state_dict_hook(state_dict, prefix, *args)
        super()._load_from_state_dict(state_dict, prefix, *args)


def generate_metric_module(
    metric_class: type[Module],
    metrics_config: MetricsConfig,
    batch_size: int,
    world_size: int,
    my_rank: int,
    state_metrics_mapping: dict[StateMetricEnum, StateMetric],
    device: torch.device,
    process_group: dist.ProcessGroup | None = None,
    batch_size_stages: list[BatchSizeStage] | None = None,
    module_kwargs: dict[str, Any] | None = None,
) -> Module:
    """Return the module of all metrics that a configuration names.

    Args:
        metric_class: the module's class.
        metrics_config: what is measured of which tasks.
        batch_size: samples of one rank in a step.
        world_size: how many ranks there are.
        my_rank: the rank of this process.
        state_metrics_mapping: what else reports, for each of ``metrics_config.state_metrics``.
        device: where states are.
        process_group: the ranks to compute over. Default: all.
        batch_size_stages: batch sizes that change over time. Default: one.
        module_kwargs: what else the module's constructor takes. Default: nothing.

    Raises:
        ValueError: if a metric has no tasks or too small a window, if something that should report is
            missing, or if ``enable_pt2_compile`` is asked for.
    """
    if metrics_config.enable_pt2_compile:
        raise ValueError(
            "`enable_pt2_compile` should be False: an update is a few calls, which compiling would not "
            "speed up. Received True."
        )
    if metrics_config.use_cpu_offloaded_rec_metric_module and metric_class is RecMetricModule:
        raise ValueError(
            "`metric_class` should be a CPUOffloadedRecMetricModule where "
            "`use_cpu_offloaded_rec_metric_module` is asked for. Received RecMetricModule."
        )
    validate_batch_size_stages(batch_size_stages)
    throughput = None
    if metrics_config.throughput_metric is not None:
        throughput = ThroughputMetric(
            batch_size=batch_size,
            world_size=world_size,
            window_seconds=metrics_config.throughput_metric.window_size,
            warmup_steps=metrics_config.throughput_metric.warmup_steps,
            batch_size_stages=batch_size_stages,
        )
    metrics = [
        _generate_metric(
            kind, definition, metrics_config, batch_size, world_size, my_rank, process_group
        )
        for kind, definition in metrics_config.rec_metrics.items()
    ]
    module = metric_class(
        batch_size=batch_size,
        world_size=world_size,
        rec_tasks=metrics_config.rec_tasks,
        rec_metrics=RecMetricList(metrics),
        throughput_metric=throughput,
        state_metrics=_chosen_state_metrics(metrics_config, state_metrics_mapping),
        compute_interval_steps=metrics_config.compute_interval_steps,
        min_compute_interval=metrics_config.min_compute_interval,
        max_compute_interval=metrics_config.max_compute_interval,
        **(module_kwargs or {}),
    )
    module.to(device)
    return module


def _generate_metric(
    kind: RecMetricEnumBase,
    definition: RecMetricDef,
    config: MetricsConfig,
    batch_size: int,
    world_size: int,
    my_rank: int,
    process_group: dist.ProcessGroup | None,
) -> RecMetric:
    if kind not in REC_METRICS_MAPPING:
        raise ValueError(
            f"`rec_metrics` should have keys of {sorted(map(str, REC_METRICS_MAPPING))}. Received '{kind}'."
        )
    window_size = -(-definition.window_size // world_size)
    if window_size < batch_size:
        raise ValueError(
            f"`window_size` of metric '{kind}' should hold a batch of each of {world_size} ranks: "
            f"{batch_size * world_size} samples. Received {definition.window_size}."
        )
    arguments = dict(definition.arguments or {})
    if config.should_clone_update_inputs:
        arguments["should_clone_update_inputs"] = True
    return REC_METRICS_MAPPING[kind](
        world_size=world_size,
        my_rank=my_rank,
        batch_size=batch_size,
        tasks=_tasks_of(kind, definition, config.rec_tasks),
        compute_mode=config.rec_compute_mode,
        window_size=definition.window_size,
        fused_update_limit=config.fused_update_limit,
        compute_on_all_ranks=config.compute_on_all_ranks,
        should_validate_update=config.should_validate_update,
        process_group=process_group,
        **arguments,
    )


def _tasks_of(
    kind: RecMetricEnumBase, definition: RecMetricDef, tasks: list[RecTaskInfo]
) -> list[RecTaskInfo]:
    by_position = definition.rec_task_indices
    if bool(definition.rec_tasks) == bool(by_position):
        raise ValueError(
            f"`rec_tasks` or `rec_task_indices` of metric '{kind}' should be given, and one only. Received "
            f"{len(definition.rec_tasks)} tasks and {len(by_position)} positions."
        )
    for position in by_position:
        if not 0 <= position < len(tasks):
            raise ValueError(
                f"`rec_task_indices` of metric '{kind}' should be from 0 to {len(tasks) - 1}. Received "
                f"{position}."
            )
    return definition.rec_tasks or [tasks[position] for position in by_position]


def _chosen_state_metrics(
    config: MetricsConfig, mapping: dict[StateMetricEnum, StateMetric]
) -> dict[str, StateMetric]:
    missing = [str(name) for name in config.state_metrics if name not in mapping]
    if missing:
        raise ValueError(
            f"`state_metrics_mapping` should have {[str(name) for name in config.state_metrics]}. "
            f"{missing} are missing."
        )
    return {str(name): mapping[name] for name in config.state_metrics}
