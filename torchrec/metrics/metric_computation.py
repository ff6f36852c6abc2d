"""What a metric keeps of its tasks: states of all samples (lifetime) and of the last ones (window)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec.metrics.metrics_config import RecComputeMode
from torchrec.metrics.metrics_namespace import MetricNameBase, MetricPrefix
from torchrec.metrics.sliding_sum import MAX_BATCHES, SlidingSum
from torchrec.metrics.state_exchange import gather, world_size

State = Tensor | list[Tensor]
Reduction = str | Callable[[Tensor], Tensor] | None

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.amax(0),
    "min": lambda x: x.amin(0),
}
_VALID = "has_valid_update"


@dataclass
class MetricComputationReport:
    """A number that a metric reports.

    Args:
        name: what it is called.
        metric_prefix: over which samples it is.
        value: of each task, ``(T,)``.
        description: what the name ends with. Default: nothing.
    """

    name: MetricNameBase
    metric_prefix: MetricPrefix
    value: Tensor
    description: str | None = None


class WindowBuffer:
    """A sum over the last samples, kept in a tensor of the caller.

    Args:
        max_size: how many samples fit.
        max_buffer_count: how many batches fit; the oldest leave when there are more of either.

    Example:
        >>> window, state = WindowBuffer(max_size=4, max_buffer_count=1000), torch.zeros(1)
        >>> for value in (1.0, 2.0, 4.0):
        ...     window.aggregate_state(state, torch.tensor([value]), size=2)
        >>> state, window.buffers
        (tensor([6.]), [tensor([2.]), tensor([4.])])
    """

    def __init__(self, max_size: int, max_buffer_count: int) -> None:
        self._sums = SlidingSum(max_size, max_buffer_count)

    @property
    def buffers(self) -> list[Tensor]:
        """What each batch in the window added, the oldest first."""
        return self._sums.rows

    def aggregate_state(self, window_state: Tensor, curr_state: Tensor, size: int) -> None:
        """Add a batch, and write the sum of all in the window to ``window_state``."""
        self._sums.append(curr_state.clone(), size)
        total = self._sums.total()
        if total is None:
            window_state.zero_()
        else:
            window_state.copy_(total)


class RecMetricComputation(nn.Module, ABC):
    """What a metric keeps of its tasks, a row each, and how its numbers come from it.

    For a metric of your own, add states in the constructor by ``_add_state``, add to them in ``update``
    (and to their windows by ``_aggregate_window_state``), and return reports from ``_compute``. Where all
    states are sums over samples, `torchrec.metrics.sum_metric.SumMetricComputation` does all but the sums
    and the formula, and is faster.

    Args:
        my_rank: the rank of this process.
        batch_size: samples of one rank in a step.
        n_tasks: how many tasks, T.
        window_size: over how many samples of this rank the window is.
        compute_on_all_ranks: report on all ranks, and not on the first alone. Default: False.
        should_validate_update: report 0 for a task until a batch came in which a sample has a weight.
        compute_mode: how the tasks of the metric are held.
        process_group: the ranks to compute over. Default: all.
        fused_update_limit: how many batches the metric joins before an update. Default: 0.
        allow_missing_label_with_zero_weight: labels of samples without weight can be NaN. Default: False.

    Raises:
        ValueError: if there are arguments that the metric does not take.
    """

    _nothing: Tensor

    # Whether `update` takes `batch`, the `TaskBatch` that metrics share.
    takes_batch: ClassVar[bool] = False

    def __init__(
        self,
        my_rank: int,
        batch_size: int,
        n_tasks: int,
        window_size: int,
        compute_on_all_ranks: bool = False,
        should_validate_update: bool = False,
        compute_mode: RecComputeMode = RecComputeMode.UNFUSED_TASKS_COMPUTATION,
        process_group: dist.ProcessGroup | None = None,
        fused_update_limit: int = 0,
        allow_missing_label_with_zero_weight: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if args or kwargs:
            raise ValueError(
                f"Arguments of {type(self).__name__} should be those that it documents. Received "
                f"{[*args, *kwargs]}."
            )
        super().__init__()
        self._my_rank = my_rank
        self._batch_size = batch_size
        self._n_tasks = n_tasks
        self._window_size = window_size
        self._compute_on_all_ranks = compute_on_all_ranks
        self._should_validate_update = should_validate_update
        self._compute_mode = compute_mode
        self._process_group = process_group
        self._fused_update_limit = fused_update_limit
        self._allow_missing_label_with_zero_weight = allow_missing_label_with_zero_weight
        self._defaults: dict[str, State] = {}
        self._reductions: dict[str, Reduction] = {}
        self._windows: dict[str, WindowBuffer] = {}
        # What a checkpoint brought to ranks other than the first: it is of all ranks, and counts once.
        self._carried: dict[str, Tensor] = {}
        # What an empty list of tensors is sent as: on the device of the module, so that all ranks send from there.
        self.register_buffer("_nothing", torch.empty(0), persistent=False)
        # The states of this rank, while those of all ranks stand in their places.
        self._local: dict[str, State] | None = None
        if should_validate_update:
            self._add_state(
                _VALID,
                torch.zeros(n_tasks, dtype=torch.uint8),
                add_window_state=False,
                dist_reduce_fx="max",
                persistent=True,
            )

    @property
    def required_inputs(self) -> set[str]:
        """What is asked of ``required_inputs`` in an update; nothing by default."""
        return set()

    @staticmethod
    def get_window_state_name(state_name: str) -> str:
        """Return what the state of the window is called."""
        return f"window_{state_name}"

    def get_window_state(self, state_name: str) -> Tensor:
        """Return a state over the window."""
        state: Tensor = getattr(self, self.get_window_state_name(state_name))
        return state

    def _add_state(
        self,
        name: str,
        default: State,
        add_window_state: bool,
        *,
        dist_reduce_fx: Reduction = "sum",
        persistent: bool = False,
    ) -> None:
        """Add a state, which is an attribute from then on.

        Args:
            name: what it is called.
            default: what it begins with; a list is one of tensors whose last dimension is that of
                samples, and never saved.
            add_window_state: whether there is one over the window as well.
            dist_reduce_fx: how states of all ranks become one: ``sum``, ``mean``, ``max``, ``min``,
                ``cat``, a function of all of them stacked, or None for all of them stacked. Default: sum.
            persistent: whether it is saved. Default: False.
        """
        self._defaults[name] = default.clone() if isinstance(default, Tensor) else []
        self._reductions[name] = dist_reduce_fx
        if isinstance(default, Tensor):
            self.register_buffer(name, default.clone(), persistent=persistent)
        else:
            setattr(self, name, [])
        if add_window_state:
            if not isinstance(default, Tensor):
                raise ValueError(
                    f"`default` of state '{name}' with a window should be a tensor. Received a list."
                )
            window_name = self.get_window_state_name(name)
            self._add_state(window_name, default, False, dist_reduce_fx=dist_reduce_fx)
            self._windows[window_name] = WindowBuffer(self._window_size, MAX_BATCHES)

    def _aggregate_window_state(self, state_name: str, state: Tensor, num_samples: int) -> None:
        """Add what a batch adds to a state to its window."""
        window_name = self.get_window_state_name(state_name)
        window_state: Tensor = getattr(self, window_name)
        self._windows[window_name].aggregate_state(window_state, state, num_samples)

    def _add_to_states(self, added: Mapping[str, Tensor], num_samples: int) -> None:
        """Add what a batch adds to some states and to their windows.

        Args:
            added: by name of the state.
            num_samples: how many samples the batch has.
        """
        for name, value in added.items():
            state: Tensor = getattr(self, name)
            state.add_(value)
            self._aggregate_window_state(name, value, num_samples)

    def _by_prefix(self, *names: str) -> list[tuple[MetricPrefix, list[Tensor]]]:
        """Return some states over all samples, then those over the window."""
        return [
            (MetricPrefix.LIFETIME, [getattr(self, name) for name in names]),
            (MetricPrefix.WINDOW, [self.get_window_state(name) for name in names]),
        ]

    @abstractmethod
    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        **kwargs: Any,
    ) -> None:
        """Take a batch in.

        Args:
            predictions: ``(T, B)``.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            **kwargs: what else a metric asks for; ``required_inputs`` has other outputs by name.
        """

    @abstractmethod
    def _compute(self) -> list[MetricComputationReport]:
        """Return the numbers of the states as they stand."""

    def pre_compute(self) -> None:
        """Do what has to be done before states of ranks are joined; nothing by default."""

    def local_compute(self) -> list[MetricComputationReport]:
        """Return the numbers of the states as they stand: those of this rank alone, unless synced."""
        reports = self._compute()
        if self._should_validate_update:
            for report in reports:
                report.value = self._masked(report.value)
        return reports

    def compute(self) -> list[MetricComputationReport]:
        """Return the numbers of all ranks: on the first, or on all if that was asked for."""
        with synced([self], self._process_group):
            if self._my_rank == 0 or self._compute_on_all_ranks:
                return self.local_compute()
            return []

    def reset(self) -> None:
        """Forget everything."""
        self._local = None
        self._carried.clear()
        for name, default in self._defaults.items():
            state = getattr(self, name)
            if isinstance(default, Tensor) and isinstance(state, Tensor):
                state.copy_(default)
            else:
                setattr(self, name, [])
        for name in self._windows:
            self._windows[name] = WindowBuffer(self._window_size, MAX_BATCHES)

    def sync(self) -> None:
        """Put the states of all ranks together in the place of this rank's, until `unsync`."""
        sync([self], self._process_group)

    def unsync(self) -> None:
        """Put the states of this rank back."""
        if self._local is not None:
            self._set_states(self._local)
            self._local = None

    def states(self) -> dict[str, State]:
        """Return all states by name, those of windows among them."""
        return self._packed_states()

    @property
    def is_synced(self) -> bool:
        """Whether the states of all ranks stand in the place of this rank's."""
        return self._local is not None

    @property
    def has_lists(self) -> bool:
        """Whether states differ in size between ranks."""
        return any(
            isinstance(default, list) or self._reductions[name] == "cat"
            for name, default in self._defaults.items()
        )

    def load_states(self, states: Mapping[str, State]) -> None:
        """Put states of all ranks in the place of this rank's, until `unsync`.

        Args:
            states: by name, as `states` returns them.
        """
        if self._local is None:
            self._local = self._packed_states()
        self._set_states(states)

    def _packed_states(self) -> dict[str, State]:
        """Return all states by the names under which they are kept."""
        return {name: getattr(self, name) for name in self._defaults}

    def _set_states(self, states: Mapping[str, State]) -> None:
        for name, state in states.items():
            setattr(self, name, state)

    def sent_states(self) -> dict[str, Tensor]:
        """Return what this rank adds to the states of all, one tensor each."""
        sent: dict[str, Tensor] = {}
        for name, state in self._packed_states().items():
            if isinstance(state, list):
                state = torch.cat(state, -1) if state else self._nothing
            elif name in self._carried and self._reductions[name] == "sum":
                state = state - self._carried[name]
            sent[name] = state
        return sent

    def join_states(self, by_rank: list[dict[str, Tensor]]) -> dict[str, State]:
        """Return the states of all ranks together, from what each sent."""
        joined: dict[str, State] = {}
        for name, default in self._defaults.items():
            parts = [sent[name] for sent in by_rank]
            reduction = self._reductions[name]
            if isinstance(default, list):
                filled = [part for part in parts if part.numel()]
                joined[name] = [torch.cat(filled, -1)] if filled else []
            elif reduction == "cat":
                joined[name] = torch.cat(parts, -1)
            elif isinstance(reduction, str):
                joined[name] = _REDUCTIONS[reduction](torch.stack(parts)).to(parts[0].dtype)
            else:
                stacked = torch.stack(parts)
                joined[name] = stacked if reduction is None else reduction(stacked)
        return joined

    def note_valid(self, weighted: Tensor) -> None:
        """Note which tasks have had a batch with weights: ``(T,)``, bool."""
        valid: Tensor = getattr(self, _VALID)
        valid.logical_or_(weighted)

    def _masked(self, value: Tensor) -> Tensor:
        """Return the values of the tasks, 0 for one whose updates had no weights."""
        if value.shape != (self._n_tasks,):
            return value
        valid: Tensor = getattr(self, _VALID)
        return torch.where(valid.bool(), value, torch.zeros_like(value))

    def carry(self, name: str) -> None:
        """Note that a checkpoint has just brought a state: it is of all ranks, and counts once.

        Each rank begins with it, but only the first sends it when states are joined.
        """
        if self._my_rank != 0:
            state: Tensor = getattr(self, name)
            self._carried[name] = state.clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, default in self._defaults.items():
            if prefix + name in state_dict and isinstance(default, Tensor):
                self.carry(name)


def sync(computations: Sequence[RecMetricComputation], group: dist.ProcessGroup | None) -> None:
    """Join the states of all ranks, of several computations at once: one collective for all sums.

    Those that are synced already stay as they are, and so do all where there is one rank.

    Args:
        computations: as many, of the same kinds, on each rank.
        group: the ranks; None: all.
    """
    waiting = [computation for computation in computations if not computation.is_synced]
    if not waiting or world_size(group) == 1:
        return
    for computation in waiting:
        computation.pre_compute()
    sent = [computation.sent_states() for computation in waiting]
    tensors = [tensor for states in sent for tensor in states.values()]
    same_shapes = not any(computation.has_lists for computation in waiting)
    by_rank = [iter(of_rank) for of_rank in gather(tensors, group, same_shapes=same_shapes)]
    for computation, states in zip(waiting, sent, strict=True):
        received = [dict(zip(states, of_rank, strict=False)) for of_rank in by_rank]
        computation.load_states(computation.join_states(received))


@contextmanager
def synced(
    computations: Sequence[RecMetricComputation], group: dist.ProcessGroup | None
) -> Iterator[None]:
    """Join the states of all ranks for as long as the block lasts."""
    waiting = [computation for computation in computations if not computation.is_synced]
    sync(waiting, group)
    try:
        yield
    finally:
        for computation in waiting:
            computation.unsync()
