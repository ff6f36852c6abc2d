"""The training loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from torchrec.datasets.utils import Batch
from torchrec.experiment.schema import TrainingSection
from torchrec.metrics import BinaryMetrics, BinaryReport
from torchrec.training.checkpoint import Checkpoints
from torchrec.training.early_stopping import EarlyStopping
from torchrec.training.fit_state import FitResult, Progress
from torchrec.training.observers import Observer, Plan, Record
from torchrec.training.optimizers import (
    collecting,
    combined_optimizer,
    dense_parameters,
    stepping,
)
from torchrec.training.phases import PhaseTimer
from torchrec.training.random_state import random_state, set_random_state
from torchrec.training.schedule import Schedule
from torchrec.training.training_metrics import TrainingMetrics
from torchrec.training.unsaved_buffers import load_unsaved_buffers, unsaved_buffers

IdCounts = Callable[[], Mapping[str, int]]


class Trainer:
    """Trains a model of clicks on batches, and evaluates it.

    The loss is the binary cross-entropy of the logits. Tables with fused optimizers are updated in
    the backward pass, all other parameters by ``optimizer``; one schedule moves the learning rates
    of both. There is nothing here that a plain loop could not do: ``examples/plain_loop.py``.

    Args:
        model: from ``(dense_features, sparse_features)`` to logits, ``(B,)`` or ``(B, 1)``.
        optimizer: of the parameters that are not fused. Default: as ``options`` say.
        options: the section ``training`` of an experiment.
        checkpoints: where to save. Default: nothing is saved.
        observers: are told how it goes.
        id_counts: gives counts of unusual ids since it was last asked, for records. It is asked before
            an evaluation, and after it with the model still in evaluation mode.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> class Mean(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         table = EmbeddingBagConfig(
        ...             2, 1, "t", feature_names=["f"], optimizer="adam", lr=0.1
        ...         )
        ...         self.rates = EmbeddingBagCollection(tables=[table])
        ...     def forward(self, dense, sparse):
        ...         return self.rates(sparse).values()
        >>> ids = KeyedJaggedTensor.from_lists({"f": [[0], [1], [1]]})
        >>> batch = Batch(torch.zeros(3, 0), ids, torch.tensor([1.0, 0.0, 0.0]))
        >>> trainer = Trainer(Mean(), options=TrainingSection(epochs=60))
        >>> result = trainer.fit([batch])
        >>> result.steps, trainer.evaluate([batch]).auc
        (60, 1.0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        options: TrainingSection | None = None,
        checkpoints: Checkpoints | None = None,
        observers: Sequence[Observer] = (),
        id_counts: IdCounts = dict,
    ) -> None:
        self.model = model
        self.options = options = TrainingSection() if options is None else options
        self.checkpoints = checkpoints
        self.observers = observers
        self.id_counts = id_counts
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.optimizer = combined_optimizer(model, optimizer, options)
        self.progress = Progress()
        self.stopping = EarlyStopping(options.early_stopping)
        self.phases = PhaseTimer()
        self._forward: Any = torch.compile(model) if options.compile else model
        self._stepping = stepping(self.optimizer)
        self._left_gradients = list(dense_parameters(model).values())
        self._clipped = [
            p for each in self._stepping for g in each.param_groups for p in g["params"]
        ]
        self._metrics = TrainingMetrics()
        self._ids: Counter[str] = Counter()  # counts of training that no record has told yet
        self._ids_evaluated: Mapping[str, int] = {}  # of the last evaluation
        self._best: dict[str, Tensor] | None = None  # where there are no checkpoints
        self._valid: BinaryReport | None = None
        self._length: int | None = None
        self._learning_rate = 0.0

    def fit(
        self,
        train: Iterable[Batch],
        valid: Iterable[Batch] | None = None,
        *,
        resume: bool = False,
        batches: int | None = None,
    ) -> FitResult:
        """Train, and return what came of it; the model then has the best weights, or the last.

        Args:
            train: batches of an epoch, an iteration each. Its ``epoch`` is set where it has one.
                With ``state_dict`` it goes on where a checkpoint was written; otherwise the batches
                before are read again and passed over, so it should give the same ones.
            valid: to evaluate on. Default: nothing is evaluated.
            resume: go on from the last checkpoint, if there is one.
            batches: how many ``train`` gives an epoch, where ``len`` does not tell.

        Raises:
            ValueError: if the loss is no number, early stopping has nothing to go by, the schedule
                has to know how long an unknown number of batches is, or this trainer has trained.
        """
        options = self.options
        if self.progress.step:
            raise ValueError(
                f"`fit` should be called once. Received a trainer that has made {self.progress.step} "
                "steps: make another one."
            )
        if valid is train and hasattr(train, "load_state_dict"):
            raise ValueError(
                "`valid` should be another loader than `train`, which keeps its place in the data. "
                "Received the same."
            )
        if options.early_stopping is not None and valid is None:
            raise ValueError("`valid` should be given for early stopping. Received None.")
        torch.manual_seed(options.seed)
        began = perf_counter()
        self._length = _length_of(train) if batches is None else batches
        schedule = Schedule(options.schedule, self.optimizer.param_groups, self._total_steps())
        if resume:
            self._load(train)
        progress = self.progress
        self._learning_rate = schedule.write(max(progress.step - 1, 0))
        began -= progress.seconds
        self._started(train)
        try:
            while not progress.over and progress.epoch < options.epochs:
                self.model.train()
                for group in self._groups(train):
                    self._learning_rate = schedule.write(progress.step)
                    with self._watching():
                        self._step(group)
                    progress.seconds = perf_counter() - began
                    if progress.step % options.log_every == 0:
                        self._record_training()
                    if _is_due(options.evaluate_every, progress.step) and valid is not None:
                        self._evaluate_now(valid)
                    if progress.over:
                        break
                    if _is_due(options.checkpoint_every, progress.step):
                        self._save(train)
                self._end_epoch(train, valid)
                progress.seconds = perf_counter() - began
            return self._result()
        finally:
            schedule.end()
            for observer in self.observers:
                observer.ended()

    def evaluate(self, data: Iterable[Batch]) -> BinaryReport:
        """Return the metrics of the model as it is.

        Args:
            data: batches.

        Raises:
            ValueError: if there are no samples, or a logit is NaN.
        """
        return self.metrics_of(data).compute()

    @torch.no_grad()
    def metrics_of(self, data: Iterable[Batch]) -> BinaryMetrics:
        """Return the metrics of the model as it is, for curves too.

        Args:
            data: batches.
        """
        self._ids.update(self.id_counts())
        was_training = self.model.training
        self.model.eval()
        metrics = BinaryMetrics()
        try:
            for batch in data:
                batch = self._placed(batch)
                # As it is saved and will predict: neither compiled nor in another precision.
                logits = self.model(batch.dense_features, batch.sparse_features)
                metrics.update(logits, batch.labels)
            self._ids_evaluated = self.id_counts()
        finally:
            self.model.train(was_training)
        if not metrics.compute().samples:
            raise ValueError("`data` should have samples to evaluate on. Received none.")
        return metrics

    # One step.

    def _step(self, group: list[Batch]) -> None:
        """Make one update with the gradient of all samples of some batches."""
        began = perf_counter()
        sizes = [batch.labels.numel() for batch in group]
        samples = sum(sizes)
        if min(sizes) == 0:
            raise ValueError(
                f"`train` should give batches with samples. Received none for step {self.progress.step + 1}."
            )
        losses: list[Tensor] = []
        scored: list[tuple[Tensor, Tensor]] = []
        for number, batch in enumerate(group, 1):
            batch = self._placed(batch)
            with self.phases("dense"):
                logits = self._logits(batch)
                # The mean over all samples, whichever batch they are in.
                part = binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype))
                part = part * (batch.labels.numel() / samples) if len(group) > 1 else part
                if number == 1:
                    # Not after the step: a heap that is emptied goes back to the system, page by
                    # page, and is fetched again: some hundredths of a step.
                    for parameter in self._left_gradients:
                        parameter.grad = None
                with collecting(self.optimizer) if number < len(group) else nullcontext():
                    part.backward()
            losses.append(part.detach())
            scored.append((logits.detach(), batch.labels))
        with self.phases("optimizer"):
            if self.options.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._clipped, self.options.clip_norm)
            for optimizer in self._stepping:
                optimizer.step()
        progress = self.progress
        progress.step += 1
        progress.batch += len(group)
        progress.samples += samples
        try:
            self._metrics.update(sum(losses[1:], losses[0]), scored)
        except ValueError:
            self._metrics.check(progress.step)  # if a loss is at fault, that says what to do
            raise
        progress.step_seconds += perf_counter() - began
        for observer in self.observers:
            observer.stepped(progress.step, progress.samples)

    def _logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch to train on, ``(B,)``, in float32 at least."""
        with self._precision():
            logits: Tensor = self._forward(batch.dense_features, batch.sparse_features)
        if logits.numel() != batch.labels.numel():
            raise ValueError(
                "The model should return a logit a sample, (B,) or (B, 1), for dense and sparse "
                f"features of {batch.labels.numel()} samples. Received {tuple(logits.shape)}."
            )
        logits = logits.reshape(-1)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def _watching(self) -> AbstractContextManager[None]:
        # Hooks would have a compiled model compiled again.
        return nullcontext() if self.options.compile else self.phases.step(self.model)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.options.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _placed(self, batch: Batch) -> Batch:
        return batch if self.device.type == "cpu" else batch.to(self.device, non_blocking=True)

    def _groups(self, train: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Give the batches that are left of this epoch, as many at once as make a step."""
        progress = self.progress
        if hasattr(train, "epoch"):
            train.epoch = progress.epoch
        batches = iter(train)
        if progress.batch and not hasattr(train, "load_state_dict"):
            next(islice(batches, progress.batch - 1, None), None)
        close = getattr(batches, "close", None)
        with closing(batches) if close else nullcontext():  # type: ignore[type-var]
            while True:
                began = perf_counter()
                with self.phases("reading"):
                    group = list(islice(batches, self.options.accumulate))
                progress.step_seconds += perf_counter() - began
                if not group:
                    return
                yield group

    # What happens between steps.

    def _end_epoch(self, train: Iterable[Batch], valid: Iterable[Batch] | None) -> None:
        progress = self.progress
        if progress.batch == 0:
            raise ValueError(
                f"`train` should give batches each time it is iterated. Received none in epoch "
                f"{progress.epoch + 1}."
            )
        self._record_training()
        if not progress.over or progress.batch == self._length:  # else stopped within the epoch
            progress.epoch, progress.batch = progress.epoch + 1, 0
            if valid is not None and progress.evaluated != progress.step:
                self._evaluate_now(valid)
            progress.over = progress.over or progress.epoch == self.options.epochs
        if not progress.over:
            self._metrics.new_epoch()
        self._save(train)

    def _record_training(self) -> None:
        """Tell what was measured since the last record."""
        progress = self.progress
        if progress.step == progress.recorded:
            return
        report, loss = self._metrics.record(progress.step)
        seconds = progress.step_seconds - progress.recorded_seconds
        progress.recorded, progress.recorded_seconds = progress.step, progress.step_seconds
        times = self.phases.fractions(seconds)
        self._tell("train", report, loss, report.samples / max(seconds, 1e-9), times)

    def _evaluate_now(self, valid: Iterable[Batch]) -> None:
        """Evaluate, note whether it is the best so far, and whether to stop."""
        progress = self.progress
        began = perf_counter()
        try:
            report = self.evaluate(valid)
        except ValueError as error:
            raise ValueError(f"Evaluation after step {progress.step}: {error}") from error
        seconds = perf_counter() - began
        progress.evaluated = progress.step
        self._tell("valid", report, report.logloss, report.samples / max(seconds, 1e-9), {})
        best = self.stopping.improves(progress.step, report)
        if best and self.checkpoints is not None:
            self.checkpoints.save_best(progress.step, self.model.state_dict())
        elif best:
            weights = self.model.state_dict()
            self._best = {name: value.detach().clone() for name, value in weights.items()}
        if best or self.stopping.section is None:
            self._valid = report
        if self.stopping.is_over:
            progress.over = True
            self._say(
                f"stopping early: {self.options.early_stopping.metric} has not improved for "  # type: ignore[union-attr]
                f"{self.stopping.waited} evaluations"
            )

    def _result(self) -> FitResult:
        """Put the best weights back, and sum up."""
        progress, best = self.progress, self.stopping.best_step
        if best is not None and best != progress.step:
            saved = self._best if self.checkpoints is None else self.checkpoints.load_best(best)
            assert saved is not None
            self.model.load_state_dict(saved)
            self._say(f"the model has the weights of step {best:,} again, the best of all")
        return FitResult(
            steps=progress.step,
            epochs=progress.epoch,
            samples=progress.samples,
            seconds=progress.seconds,
            samples_per_second=progress.samples / max(progress.step_seconds, 1e-9),
            train=self._metrics.epoch(),
            valid=self._valid,
            best_step=best,
        )

    # Checkpoints.

    def _save(self, train: Any) -> None:
        """Write a checkpoint, unless this step has one."""
        progress = self.progress
        if self.checkpoints is None or progress.saved == progress.step:
            return
        self._metrics.check(progress.step)  # of no use is a checkpoint behind one that is no number
        progress.saved = progress.step
        self._ids.update(self.id_counts())
        state = {
            "progress": asdict(progress),
            "stopping": self.stopping.state_dict(),
            "valid": None if self._valid is None else asdict(self._valid),
            "model": self.model.state_dict(),
            "buffers": unsaved_buffers(self.model),
            "optimizer": self.optimizer.state_dict(),
            "data": train.state_dict() if hasattr(train, "state_dict") else None,
            "random": random_state(),
            "metrics": self._metrics.state_dict(),
            "ids": dict(self._ids),
            "observers": [
                {"type": type(each).__name__, "state": each.state_dict()} for each in self.observers
            ],
        }
        self.checkpoints.save(progress.step, state, best=self.stopping.best_step)

    def _load(self, train: Any) -> None:
        """Go on from the last checkpoint, if there is one."""
        step = None if self.checkpoints is None else self.checkpoints.latest()
        if self.checkpoints is None or step is None:
            for observer in self.observers:
                observer.load_state_dict({})
            return
        self.checkpoints.tidy()
        state = self.checkpoints.load(step)
        self.progress = Progress(**state["progress"])
        self.stopping.load_state_dict(state["stopping"])
        self._valid = None if state["valid"] is None else BinaryReport(**state["valid"])
        self.model.load_state_dict(state["model"])
        load_unsaved_buffers(self.model, state["buffers"])
        self.optimizer.init_state()
        self.optimizer.load_state_dict(state["optimizer"])
        if state["data"] is not None and self.progress.batch:
            train.load_state_dict(state["data"])
        elif state["data"] is not None and hasattr(train, "check_state_dict"):
            train.check_state_dict(state["data"])  # between epochs there is no place to go to
        set_random_state(state["random"])
        self._metrics.load_state_dict(state["metrics"], self.device)
        self.id_counts()  # what the checkpoint's counters hold is told, or among these:
        self._ids = Counter(state["ids"])
        saved = list(state["observers"])
        for observer in self.observers:  # there may be others now; each takes the first of its type
            own = next((one for one in saved if one["type"] == type(observer).__name__), None)
            observer.load_state_dict({} if own is None else own["state"])
            if own is not None:
                saved.remove(own)

    # Observers.

    def tell_test(self, report: BinaryReport, seconds: float) -> None:
        """Tell the observers what the test data gave.

        Args:
            report: the metrics.
            seconds: that it took.
        """
        self._tell("test", report, report.logloss, report.samples / max(seconds, 1e-9), {})

    def _say(self, message: str) -> None:
        for observer in self.observers:
            observer.said(message)

    def _tell(
        self,
        split: str,
        report: BinaryReport,
        loss: float,
        speed: float,
        time: Mapping[str, float],
    ) -> None:
        progress, ids = self.progress, self._ids_evaluated
        if split == "train":
            self._ids.update(self.id_counts())
            ids, self._ids = self._ids, Counter()
        record = Record(
            split=split,
            step=progress.step,
            epoch=progress.epoch + (progress.batch / self._length if self._length else 0.0),
            samples=progress.samples,
            seconds=progress.seconds,
            loss=loss,
            report=report,
            learning_rate=self._learning_rate,
            samples_per_second=speed,
            time=time,
            ids=ids,
        )
        for observer in self.observers:
            observer.recorded(record)

    def _started(self, train: Any) -> None:
        progress, epochs = self.progress, self.options.epochs
        samples = getattr(train, "samples", None)
        plan = Plan(
            steps=self._total_steps(),
            samples=None if samples is None else samples * epochs,
            epochs=epochs,
            step=progress.step,
            resumed_samples=progress.samples,
        )
        for observer in self.observers:
            observer.started(plan)

    def _total_steps(self) -> int | None:
        if self._length is None:
            return None
        return -(-self._length // self.options.accumulate) * self.options.epochs


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _length_of(data: Any) -> int | None:
    """Return how many batches there are; None if only reading them tells."""
    try:
        return len(data)
    except TypeError:
        return None
