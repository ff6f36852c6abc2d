"""The training loop."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.checks import require_integer
from torchrec.datasets.utils import Batch
from torchrec.metrics import Report
from torchrec.metrics.report import join_reports
from torchrec.threads import ThreadChooser
from torchrec.training.averaging import WeightAverage
from torchrec.training.evaluation import Evaluation, evaluate
from torchrec.training.findings import Overfitting, of_test, useless
from torchrec.training.fit_state import FitResult, Progress
from torchrec.training.monitor import Monitor
from torchrec.training.observers import Extent, Observer, Observers, Record, check_metric_names
from torchrec.training.optimizers import combined_optimizer, moved_with_rows
from torchrec.training.options import FitOptions
from torchrec.training.phases import PhaseTimer
from torchrec.training.random_state import random_state, rank_seed, set_random_state
from torchrec.training.schedule import Plateau, Schedule
from torchrec.training.state_store import StateStore
from torchrec.training.task import Task
from torchrec.training.task_metrics import TaskMetrics
from torchrec.training.training_metrics import TrainingMetrics
from torchrec.training.unsaved_buffers import load_unsaved_buffers, unsaved_buffers
from torchrec.training.update import Update
from torchrec.training.weigh import weigh
from torchrec.training.world import ALONE, Traffic, World, own_state, state_of_ranks


class Trainer:
    """Trains a model on batches, and evaluates it.

    Tables with fused optimizers are updated in the backward pass, all other parameters by
    ``optimizer``; one schedule moves the learning rates of both. There is nothing here that a plain
    loop could not do: ``examples/plain_loop.py``.

    Args:
        model: from ``(dense_features, sparse_features)`` to logits, ``(B,)`` or ``(B, 1)``; for
            several tasks ``(B, T)``, or a dictionary of logits by target.
        optimizer: of the parameters that are not fused. Default: Adam, as `dense_optimizer` makes it.
        tasks: what is learned, with targets that differ; the losses of several are added up.
            Default: one of yes and no, whose target are the labels.
        options: how it is trained. Default: one epoch.
        checkpoints: where to save, such as `Checkpoints`. Default: nothing is saved.
        observers: are told how it goes.
        id_counts: gives counts of unusual ids since it was last asked, for records. It is asked before
            an evaluation, and after it with the model still in evaluation mode.
        threads: chooses how many threads steps and evaluations run on. Default: as PyTorch does.
        world: the ranks that train the model together, each of which has a trainer, made and called alike.
            Their batches of a step, as many on each, count as one; some may be without samples. The model's
            gradients are the mean over ranks, as `DistributedModelParallel` has them. Default: this process
            alone.

    Raises:
        TypeError: if ``optimizer``, ``tasks`` or ``options`` are of another kind.
        ValueError: if there is nothing to train, ``optimizer`` has not just the parameters that are
            to be trained and not fused, a table has an optimizer without a learning rate,
            or an option would have no effect.

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
        >>> trainer = Trainer(Mean(), options=FitOptions(epochs=60))
        >>> result = trainer.fit([batch])
        >>> result.steps, trainer.evaluate([batch]).auc
        (60, 1.0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        tasks: Task | Sequence[Task] = (Task(),),  # noqa: B008 - frozen
        options: FitOptions | None = None,
        checkpoints: StateStore | None = None,
        observers: Sequence[Observer] = (),
        id_counts: Callable[[], Mapping[str, int]] = dict,
        threads: ThreadChooser | None = None,
        world: World = ALONE,
    ) -> None:
        self.model = model
        self.world = world
        self.tasks = _checked_tasks((tasks,) if isinstance(tasks, Task) else tasks)
        self.options = options = _checked_options(options, checkpoints)
        self.checkpoints = checkpoints
        self.id_counts = id_counts
        self.threads = threads
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.optimizer = combined_optimizer(model, optimizer)
        self.progress = Progress()
        self.monitor = Monitor(options.early_stopping)
        self.plateau = Plateau(options.schedule)
        self.average = WeightAverage(options.average, model) if options.average else None
        loss = self.tasks[0].measured_loss if len(self.tasks) == 1 else None
        self.overfitting = Overfitting(loss or "loss")
        empty = join_reports({task.target: TaskMetrics(task).compute() for task in self.tasks})
        check_metric_names(empty)
        self.monitor.check_metrics(empty)
        self.phases = PhaseTimer()
        self.traffic = Traffic()
        self._observers = Observers(observers)
        self._update = Update(model, self.tasks, self.optimizer, options, self.phases, world)
        self._metrics = TrainingMetrics(self.tasks, world)
        self._ids: Counter[str] = Counter()  # counts of training that are in no record yet
        self._ids_evaluated: Mapping[str, int] = {}  # of the last evaluation
        self._best: dict[str, Tensor] | None = None  # where there are no checkpoints
        self._valid: Report | None = None  # with the weights that the result will have
        self._length: int | None = None
        self._begun = False

    def fit(
        self,
        train: Iterable[Batch],
        valid: Iterable[Batch] | None = None,
        test: Iterable[Batch] | None = None,
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
            test: to evaluate on once, in the end. Default: nothing.
            resume: go on from the last checkpoint, if there is one.
            batches: how many ``train`` gives an epoch, where ``len`` does not tell; at least 1.

        Raises:
            TypeError: if ``batches`` is no integer.
            ValueError: if the loss is no number, weights or targets are not as they should be, an
                option would have no effect, the schedule has to know how long an unknown number of
                batches is, there are more batches than was said, or this trainer has begun before.
        """
        options, threads = self.options, self.threads
        if self._begun:  # and may have updated some tables in a step that broke off
            raise ValueError(
                f"`fit` should be called once. Received a trainer that has begun, and made "
                f"{self.progress.step} steps: make another one."
            )
        if resume and self.checkpoints is None:
            raise ValueError("`checkpoints` should be given to resume from. Received None.")
        _check_data(train, valid, options)
        if batches is not None:
            require_integer(batches, "`batches`", least=1)
        torch.manual_seed(rank_seed(options.seed, self.world.rank))
        clock = perf_counter()
        self._length = _length_of(train) if batches is None else batches
        if self.average is not None:
            self.average.check_total(self._total_steps())
        groups = self.optimizer.param_groups
        schedule = Schedule(options.schedule, groups, self._total_steps(), self.plateau)
        self._begun = True
        try:
            self._update.drop_gradients()  # of whoever went before
            if resume:
                self._load(train)
            progress = self.progress
            if progress.learning_rate is None:
                progress.learning_rate = schedule.write(max(progress.step - 1, 0))
            began = clock - progress.seconds
            self._observers.started(self._extent(train))
            while not progress.over and progress.epoch < options.epochs:
                self.model.train()
                for group in self._groups(train):
                    progress.learning_rate = schedule.write(progress.step)
                    with threads.step() if threads else nullcontext():
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
            return self._result(valid, test)
        finally:
            self._update.drop_gradients()  # of a step that broke off
            schedule.end()
            self._observers.ended()

    def evaluate(self, data: Iterable[Batch]) -> Report:
        """Return the metrics of the model as it is, with curves; of several tasks with prefixes.

        Args:
            data: batches.

        Raises:
            ValueError: if there are no samples, or a logit is NaN.
        """
        return self._evaluate(data).report

    def _evaluate(self, data: Iterable[Batch]) -> Evaluation:
        self._ids.update(self.id_counts())
        was_training = self.model.training
        self.model.eval()
        try:
            with self.threads.chosen() if self.threads else nullcontext():
                found = evaluate(self.model, self.tasks, data, self._placed, self.world)
            self._ids_evaluated = self.id_counts()
        finally:
            self.model.train(was_training)
        return found

    # One step.

    def _step(self, group: list[Batch]) -> None:
        """Make one update with the gradient of all samples of some batches, and measure."""
        began, progress, sent = perf_counter(), self.progress, self.world.sent
        samples, weight = weigh(group, self.tasks, self.world, progress)
        loss, predictions = self._update([self._placed(batch) for batch in group], weight)
        progress.step += 1
        self.traffic.count(sent, self.world.sent)
        if self.average is not None:
            with self.phases("optimizer"):
                self.average.update(progress.step, self._total_steps())
        progress.batch += len(group)
        progress.samples += samples
        try:
            self._metrics.update(loss, predictions)
        except ValueError:
            self._metrics.check_here(progress.step)  # if a loss is at fault, that says what to do
            raise
        progress.step_seconds += perf_counter() - began
        self._observers.stepped(progress.step, progress.samples)

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
                if self._length is not None and progress.batch + len(group) > self._length:
                    raise ValueError(
                        "`batches`, or `len(train)`, should be how many batches `train` gives an "
                        f"epoch. Received {self._length}, and more in epoch {progress.epoch + 1}."
                    )
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
            progress.over = progress.over or progress.epoch == self.options.epochs
            if valid is not None and progress.evaluated != progress.step:
                self._evaluate_now(valid)
        if not progress.over:
            self._metrics.new_epoch()
        self._save(train)

    def _record_training(self) -> None:
        """Record what was measured since the last record."""
        progress = self.progress
        if progress.step == progress.recorded:
            return
        report, loss = self._metrics.record(progress.step)
        seconds = progress.step_seconds - progress.recorded_seconds
        samples = progress.samples - progress.recorded_samples
        progress.recorded, progress.recorded_seconds = progress.step, progress.step_seconds
        progress.recorded_samples = progress.samples
        times = self.phases.fractions(seconds)
        self._ids.update(self.id_counts())
        ids, self._ids = self._ids, Counter()
        evaluation = Evaluation(report, loss, samples / max(seconds, 1e-9))
        self._observers.recorded(self._record("train", evaluation, ids, times))

    def _evaluate_now(self, valid: Iterable[Batch]) -> None:
        """Evaluate what would be saved, note whether it is the best so far, and whether to stop."""
        with self.average.shown() if self.average else nullcontext():
            best = self._evaluate_and_keep(valid)
        standstill = self.monitor.standstill
        if self.monitor.is_over:
            self.progress.over = True
            self._observers.said(f"stopping early: {standstill}")
        elif not self.progress.over and self.plateau.lowers(best):
            self._observers.said(
                f"learning rates lowered to {self.plateau.factor:.3g} of the first ones: {standstill}"
            )

    def _evaluate_and_keep(self, valid: Iterable[Batch]) -> bool:
        """Evaluate the model as it is, keep its weights if they are the best, and return whether."""
        progress = self.progress
        self._observers.began("evaluating on valid")
        try:
            found = self._evaluate(valid)
        except ValueError as error:
            raise ValueError(f"Evaluation after step {progress.step}: {error}") from error
        progress.evaluated = progress.step
        self._observers.recorded(self._record("valid", found, self._ids_evaluated))
        epoch = progress.epoch + (1 if progress.batch else 0)
        best = self.monitor.improves(found, progress.step, epoch)
        stopping = self.options.early_stopping
        if best and stopping is not None:
            self._keep_best()
        if best or stopping is None:
            self._valid = found.report
        self.overfitting.note(found.loss, epoch, kept=best or stopping is None)
        if self.overfitting.is_clear:
            self.overfitting.is_told = True
            self._observers.said(self.overfitting.sentence())
        return best

    def _keep_best(self) -> None:
        weights = self.model.state_dict()
        if self.checkpoints is None:
            self._best = {name: value.detach().clone() for name, value in weights.items()}
        else:
            self.checkpoints.save_best(self.progress.step, weights)

    def _result(self, valid: Iterable[Batch] | None, test: Iterable[Batch] | None) -> FitResult:
        """Put the best weights back, evaluate what has not been, and sum up."""
        progress, best = self.progress, self.monitor.kept_step
        if best is None and self.average is not None:
            self.average.write()
        elif best is not None and (best != progress.step or self.average is not None):
            saved: Mapping[str, Tensor] | None = self._best
            if self.checkpoints is not None:
                saved = self.checkpoints.load_best(best, self.model.state_dict())
            assert saved is not None
            self.model.load_state_dict(saved)
        if self.monitor.best_epoch is not None:
            of = f"step {best:,}" if best else "the last step"
            self._observers.said(
                f"best epoch: {self.monitor.best_epoch}; the model has the weights of {of}"
            )
        train = self._metrics.epoch()
        for name, why in train.undefined.items():
            self._observers.said(f"{name} of the training data is not defined: {why}.")
        if self._valid is None and valid is not None:  # the checkpoint was written without
            self._valid = self.evaluate(valid)
        tested = None
        if test is not None:
            self._observers.began("evaluating on test")
            found = self._evaluate(test)
            tested = found.report
            self._observers.recorded(self._record("test", found, self._ids_evaluated))
        notes = [*useless("valid", self._valid), *of_test(tested)]
        if self.overfitting.is_there:
            notes.insert(0, self.overfitting.sentence())
        if self.average is not None:
            notes += self.average.finding(best or progress.step, self._total_steps())
        for note in notes[self.overfitting.is_there and self.overfitting.is_told :]:
            self._observers.said(note)
        return FitResult(
            steps=progress.step,
            epochs=progress.epoch,
            samples=progress.samples,
            seconds=progress.seconds,
            samples_per_second=progress.samples / max(progress.step_seconds, 1e-9),
            train=train,
            valid=self._valid,
            test=tested,
            best_step=best,
            best_epoch=self.monitor.best_epoch,
            notes=tuple(notes),
        )

    def _record(
        self,
        split: str,
        found: Evaluation,
        ids: Mapping[str, int],
        times: Mapping[str, float] | None = None,
    ) -> Record:
        progress = self.progress
        return Record(
            split=split,
            step=progress.step,
            epoch=progress.epoch + (progress.batch / self._length if self._length else 0.0),
            samples=progress.samples,
            seconds=progress.seconds,
            loss=found.loss,
            report=found.report,
            learning_rate=progress.learning_rate or 0.0,
            samples_per_second=found.samples_per_second,
            time={} if times is None else times,
            ids=ids,
        )

    def _extent(self, train: Any) -> Extent:
        samples, epochs = getattr(train, "samples", None), self.options.epochs
        if samples is not None:
            samples = int(self.world.total([samples], "the samples of an epoch")[0])
        return Extent(
            steps=self._total_steps(),
            samples=None if samples is None else samples * epochs,
            epochs=epochs,
            step=self.progress.step,
            resumed_samples=self.progress.samples,
        )

    def _total_steps(self) -> int | None:
        if self._length is None:
            return None
        return -(-self._length // self.options.accumulate) * self.options.epochs

    # Checkpoints.

    def _save(self, train: Any) -> None:
        """Write a checkpoint, unless this step has one."""
        progress = self.progress
        if self.checkpoints is None or progress.saved == progress.step:
            return
        self._metrics.check(progress.step)  # of no use is a checkpoint behind one that is no number
        progress.saved = progress.step
        self._observers.began("saving a checkpoint")
        self._ids.update(self.id_counts())
        state = {
            "progress": asdict(progress),
            "stopping": self.monitor.state_dict(),
            "plateau": self.plateau.state_dict(),
            "overfitting": self.overfitting.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "valid": None if self._valid is None else asdict(self._valid),
            "model": self.model.state_dict(),
            "buffers": state_of_ranks(self.world, unsaved_buffers(self.model), "buffers"),
            "optimizer": self.optimizer.state_dict(),
            "data": train.state_dict() if hasattr(train, "state_dict") else None,
            "random": state_of_ranks(self.world, random_state(), "random generators"),
            "metrics": self._metrics.state_dict(),
            "ids": dict(self._ids),
            **self._observers.state_dict(),
        }
        self.checkpoints.save(progress.step, state, best=self.monitor.kept_step)

    def _load(self, train: Any) -> None:
        """Go on from the last checkpoint, if there is one."""
        step = None if self.checkpoints is None else self.checkpoints.latest()
        if self.checkpoints is None or step is None:
            self._observers.load_state_dict({})
            return
        self.checkpoints.tidy()
        self.optimizer.init_state()
        present = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            self.average.init_state(step, self._total_steps())
            present["average"] = self.average.state_dict()
        state = self.checkpoints.load(step, present)
        self.progress = Progress(**state["progress"])
        self.monitor.load_state_dict(state["stopping"])
        if "plateau" in state:  # earlier versions had neither
            self.plateau.load_state_dict(state["plateau"])
            self.overfitting.load_state_dict(state["overfitting"])
        average = state.get("average")  # earlier versions had none
        if (average is None) != (self.average is None):
            raise ValueError(
                "`average` should be given, or not, as when the checkpoint was written. Received "
                f"{self.options.average} for a checkpoint {'without' if average is None else 'with'} one."
            )
        self._valid = None if state["valid"] is None else Report.restored(state["valid"])
        _load_model(self.model, state["model"])
        if self.average is not None and average is not None:
            self.average.load_state_dict(average, self.model)
        buffers = own_state(self.world, state["buffers"])
        if buffers is not None:  # of other ranks, their counts of ids begin anew
            load_unsaved_buffers(self.model, buffers)
        self.optimizer.load_state_dict(moved_with_rows(self.model, state["optimizer"]))
        if state["data"] is not None and self.progress.batch:
            train.load_state_dict(state["data"])
        elif state["data"] is not None and hasattr(train, "check_state_dict"):
            train.check_state_dict(state["data"])  # between epochs there is no place to go to
        random = own_state(self.world, state["random"])
        if random is None:
            torch.manual_seed(rank_seed(self.options.seed, self.world.rank, self.world.size, step))
        else:
            set_random_state(random)
        self._metrics.load_state_dict(state["metrics"], self.device)
        self.id_counts()  # what the checkpoint's counters hold is told, or among these:
        self._ids = Counter(state["ids"])
        self._observers.load_state_dict(state)


def _load_model(model: nn.Module, state: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        # Of rows that have moved: their states, and averages, do as well.
        warnings.filterwarnings("ignore", "Rows of table", UserWarning)
        model.load_state_dict(state)


def _checked_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    if not isinstance(tasks, Sequence) or not all(isinstance(task, Task) for task in tasks):
        raise TypeError(f"`tasks` should be a Task, or a sequence of them. Received {tasks!r}.")
    targets = [task.target for task in tasks]
    if not targets or len(set(targets)) < len(targets):
        raise ValueError(
            f"`tasks` should be one or more, of targets that differ. Received the targets {targets}."
        )
    return tuple(tasks)


def _checked_options(options: FitOptions | None, checkpoints: StateStore | None) -> FitOptions:
    options = FitOptions() if options is None else options
    if not isinstance(options, FitOptions):
        raise TypeError(
            f"`options` should be a FitOptions. Received a {type(options).__name__}, which may ask for "
            "what a trainer does not do."
        )
    if options.checkpoint_every is not None and checkpoints is None:
        raise ValueError("`checkpoints` should be given for `checkpoint_every`. Received None.")
    return options


def _check_data(train: Iterable[Batch], valid: Iterable[Batch] | None, options: FitOptions) -> None:
    """Refuse data without what the options need."""
    if valid is train and hasattr(train, "load_state_dict"):
        raise ValueError(
            "`valid` should be another loader than `train`, which keeps its place in the data. "
            "Received the same."
        )
    for what, option in (
        ("early stopping", options.early_stopping),
        ("`evaluate_every`", options.evaluate_every),
        ("`schedule.decay` plateau", options.schedule.decay == "plateau" or None),
    ):
        if option is not None and valid is None:
            raise ValueError(f"`valid` should be given for {what}. Received None.")


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _length_of(data: Any) -> int | None:
    """Return how many batches there are; None if only reading them tells."""
    try:
        return len(data)
    except TypeError:
        return None
