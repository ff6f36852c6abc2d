"""Metrics that a thread on the CPU takes in and computes, while the training goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from torchrec.metrics.deferrable_metrics import DeferrableMetrics, MetricValues
from torchrec.metrics.metric_module import PreComputeStates, RecMetricModule
from torchrec.metrics.rec_metric import RecMetricException


@dataclass(frozen=True)
class _Job:
    """Something for the thread to do, and who waits for it."""

    run: Callable[[], Any]
    future: Future[Any] | None = None


class CPUOffloadedRecMetricModule(RecMetricModule):
    """A `RecMetricModule` whose updates and computations are the work of one thread, one after another.

    An update only starts the copies to the CPU and hands them over; what `async_compute` returns is of all
    updates before it, and is waited for where it is read. Numbers are those of a `RecMetricModule`. On several
    ranks the thread exchanges states: give the metrics a process group of their own, over gloo.

    What goes wrong in the thread is raised by the next call, and by all computations that wait.

    Args:
        model_out_device: where outputs of the model are.
        update_queue_size: how many batches can wait; an update waits itself while there are more. Default: 100.
        compute_queue_size: how many computations can wait. Default: 100.
        update_batch_size: how many batches are handed over together. Default: 10.
        clone_model_out: copy outputs that are on the CPU already, for models that write over them. Default:
            False.
        *args: see `RecMetricModule`.
        **kwargs: see `RecMetricModule`.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        model_out_device: torch.device,
        update_queue_size: int = 100,
        compute_queue_size: int = 100,
        update_batch_size: int = 10,
        clone_model_out: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for name, size in (
            ("update_queue_size", update_queue_size),
            ("compute_queue_size", compute_queue_size),
            ("update_batch_size", update_batch_size),
        ):
            if size < 1:
                raise ValueError(f"`{name}` should be 1 or more. Received {size}.")
        self._model_out_device = model_out_device
        self._clone_model_out = clone_model_out
        self._together = min(update_batch_size, update_queue_size)
        self._most_computations = compute_queue_size
        # Belongs to the caller's thread: batches that are not handed over yet.
        self._gathered: list[Callable[[], None]] = []
        self._computing: list[Future[MetricValues]] = []
        # Belongs to the worker: what went wrong; the caller only reads it.
        self._error: Exception | None = None
        self._jobs: queue.Queue[_Job | None] = queue.Queue(
            max(update_queue_size // self._together, 1) + compute_queue_size
        )
        self._worker = threading.Thread(target=self._work, daemon=True, name="metrics")
        self._worker.start()

    def update(self, model_out: dict[str, Tensor], **kwargs: Any) -> None:
        """Hand a batch over, see `RecMetricModule.update`.

        Raises:
            RecMetricException: if the thread has ended, or failed in a batch before.
        """
        self._check()
        copied, arrived = self._copied(model_out)

        def take_in() -> None:
            arrived()
            with torch.no_grad():
                self._update_rec_metrics(copied, **kwargs)

        self._gathered.append(take_in)
        if self.throughput_metric is not None:
            self.throughput_metric.update()
        self.trained_batches += 1
        if len(self._gathered) >= self._together:
            self._hand_over()

    def async_compute(self) -> DeferrableMetrics:
        """Return the numbers of all ranks by name, which the thread works out.

        Raises:
            RecMetricException: if more computations wait than may, or the thread has failed.
        """
        self._check()
        self._computing = [one for one in self._computing if not one.done()]
        if len(self._computing) >= self._most_computations:
            raise RecMetricException(
                f"At most {self._most_computations} computations should wait. Received one more."
            )
        self.compute_count += 1
        self._adjust_compute_interval()
        others = self._other_metrics()
        future: Future[MetricValues] = Future()
        self._computing.append(future)
        self._hand_over()
        self._jobs.put(_Job(lambda: {**self.rec_metrics.compute(), **others}, future))
        return DeferrableMetrics(future)

    def compute(self) -> DeferrableMetrics:
        """Do as `async_compute`."""
        return self.async_compute()

    def local_compute(self) -> DeferrableMetrics:
        """Wait for all updates, and return the numbers of this rank alone."""
        self._drain()
        return super().local_compute()

    def sync(self) -> None:
        """Wait for all updates, see `RecMetricModule.sync`."""
        self._drain()
        super().sync()

    def get_pre_compute_states(
        self, pg: dist.ProcessGroup | DeviceMesh | None = None
    ) -> PreComputeStates:
        """Wait for all updates, see `RecMetricModule.get_pre_compute_states`."""
        self._drain()
        return super().get_pre_compute_states(pg)

    def load_pre_compute_states(self, source: PreComputeStates) -> None:
        """Wait for all updates, see `RecMetricModule.load_pre_compute_states`."""
        self._drain()
        super().load_pre_compute_states(source)

    def reset(self) -> None:
        """Wait for all updates, and forget what metrics of tasks have seen."""
        self._drain()
        super().reset()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for all updates, and return what is saved."""
        self._drain()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Wait for all updates, and go on from a state.

        Args:
            state_dict: what `state_dict` returned.
            strict: whether names have to be the same. Default: True.
            assign: see `torch.nn.Module.load_state_dict`.
        """
        self._drain()
        return super().load_state_dict(state_dict, strict, assign)

    def shutdown(self) -> None:
        """Wait for all that was handed over, and end the thread.

        Raises:
            RecMetricException: if it has failed.
        """
        if self._worker.is_alive():
            self._hand_over()
            self._jobs.put(None)
            self._worker.join()
        if self._error is not None:
            self._check()

    def _copied(self, model_out: dict[str, Tensor]) -> tuple[dict[str, Any], Callable[[], None]]:
        """Start the copies to the CPU; return them, and what waits for them."""
        if self._model_out_device.type == "cpu":
            if not self._clone_model_out:
                return dict(model_out), lambda: None
            found = {
                k: x.detach().clone() if isinstance(x, Tensor) else x for k, x in model_out.items()
            }
            return found, lambda: None
        found = {
            k: x.detach().to("cpu", non_blocking=True) if isinstance(x, Tensor) else x
            for k, x in model_out.items()
        }
        event = torch.Event(self._model_out_device)
        event.record()
        return found, event.synchronize

    def _hand_over(self) -> None:
        """Give the thread the batches that were gathered."""
        gathered, self._gathered = self._gathered, []

        def take_in_all() -> None:
            for take_in in gathered:
                take_in()

        if gathered:
            self._jobs.put(_Job(take_in_all))

    def _drain(self) -> None:
        """Wait until the thread has nothing left."""
        self._check()
        self._hand_over()
        done: Future[None] = Future()
        self._jobs.put(_Job(lambda: None, done))
        done.exception()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise RecMetricException(
                f"Metrics failed in their thread: {self._error}"
            ) from self._error
        if not self._worker.is_alive():
            raise RecMetricException("Metrics should be used before `shutdown`, not after it.")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(job)

    def _do(self, job: _Job) -> None:
        """Do a job; once one has failed, only tell those that wait."""
        try:
            if self._error is not None:
                raise self._error
            value = job.run()
        except Exception as error:
            self._error = error
            if job.future is not None:
                job.future.set_exception(error)
        else:
            if job.future is not None:
                job.future.set_result(value)
