"""The run of an experiment with one seed: from files to a trained, evaluated and saved model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
from torch import nn

from torchrec.bundle import save_bundle
from torchrec.experiment.build import build_model, table_optimizer
from torchrec.experiment.files import FILE_NAME, dump_experiment
from torchrec.experiment.schema import Experiment, TrainingSection
from torchrec.modules.collection import collections_in
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.runs import Fitted, RunFolder, RunReport, RunResult
from torchrec.training.ancestor import continued_model
from torchrec.training.baselines import Baseline, baselines_of
from torchrec.training.checkpoint import Checkpoints
from torchrec.training.fit_state import FitResult
from torchrec.training.id_counts import IdCounts, UnknownIds, out_of_range_counts
from torchrec.training.memory import peak_rss_bytes
from torchrec.training.observers import MetricsLog, Observer, Observers, TensorBoard
from torchrec.training.optimizers import combined_optimizer, dense_optimizer
from torchrec.training.options import (
    AverageOptions,
    EarlyStoppingOptions,
    FitOptions,
    ScheduleOptions,
)
from torchrec.training.run_data import RunData, learned
from torchrec.training.run_tasks import tasks_of
from torchrec.training.run_threads import thread_chooser
from torchrec.training.state_store import StateStore
from torchrec.training.table_facts import table_facts
from torchrec.training.trainer import Trainer
from torchrec.training.world import ALONE, World


def train_run(
    experiment: Experiment,
    run: RunFolder,
    given: Sequence[Observer],
    fitted: Fitted | None = None,
    world: World = ALONE,
) -> RunResult:
    """Train with one seed what an experiment describes, and fill the folder of the run.

    Args:
        experiment: what to do.
        run: its folder, locked by the first rank; training goes on from its last checkpoint, if it has one.
        given: are told how it goes.
        fitted: what others have learned of the same data. Default: it is learned anew.
        world: the ranks that train together. Default: this process alone.
    """
    options, waited = experiment.training, world.waited
    torch.manual_seed(options.seed)
    checkpoints = _checkpoints(run, options.keep_checkpoints, world)
    begun = checkpoints.latest() is not None
    tell = Observers(given)
    if fitted is None:
        tell.began("reading the data")
    data, notices = _read(experiment, run, fitted, begun, world)
    before = continued_model(experiment.continue_from)
    described = dump_experiment(data.experiment)
    if world.rank == 0:
        run.write_experiment(described)
    for message in notices:
        tell.said(message)
    by_part = world.size > 1 and experiment.distributed.first_weights == "by_part"
    tables = "meta" if by_part else None
    model = build_model(experiment.model, options, data.transform, tables)
    if before is not None and not begun:
        before.load_into(model, experiment.model)
    if world.size > 1:
        from torchrec.training.plan import sharded

        model = sharded(model, experiment, data)
    id_counts = IdCounts(data.transform, data.evaluated, model, world)
    unknown = UnknownIds(id_counts, tell.said)
    trainer = Trainer(
        model,
        dense_optimizer(model, options.optimizer, options.learning_rate, options.weight_decay),
        tasks=tasks_of(data.experiment),
        options=fit_options(options, evaluates=data.valid is not None),
        checkpoints=checkpoints,
        observers=[] if world.rank else [*_writers(run, options), *given, unknown],
        id_counts=id_counts,
        # Of several ranks, each would measure how long it waits for the others.
        threads=thread_chooser(options, model, data.batch_sizes, tell.said)
        if world.size == 1
        else None,
        world=world,
    )
    began = perf_counter()
    reached = trainer.fit(
        data.train, data.valid, data.test, resume=True, batches=data.train_batches
    )
    tell.began("saving the model")
    whole = _whole(trainer, perf_counter() - began, world.waited - waited)

    def save() -> RunResult:
        assert whole is not None
        save_bundle(
            run.model,
            whole.model,
            data.transform,
            data.experiment.model,
            table_optimizer(data.experiment.training),
            {FILE_NAME: described},
            () if before is None else before.lineage,
        )
        drawn = reached.valid if reached.test is None else reached.test
        curves = {} if drawn is None else drawn.curves
        facts = table_facts(whole.model, data.transform, whole.optimizer)
        run.write_report(RunReport(facts, curves, whole.ranks, whole.plan))
        chooser = trainer.threads
        threads = torch.get_num_threads() if chooser is None else chooser.threads
        alone = data if world.size == 1 else RunData(data.experiment, data.fitted)
        baselines, notice = baselines_of(
            options.baselines, alone, reached, options.seed, tell.began
        )
        if notice:
            tell.said(notice)
        run.write_result(_result(reached, options.seed, threads, baselines))
        return run.read_result()

    return world.first(save, "saving the model")


def _writers(run: RunFolder, options: TrainingSection) -> list[Observer]:
    """Return what writes the measurements of a run to its folder."""
    log = MetricsLog(run.metrics)
    return [log, TensorBoard(run.tensorboard)] if options.tensorboard else [log]


class _Whole(NamedTuple):
    """A trained model as one process has it."""

    model: nn.Module
    optimizer: KeyedOptimizer
    ranks: Sequence[Mapping[str, float]] = ()
    plan: Mapping[str, str] = {}


def _checkpoints(run: RunFolder, keep: int, world: World) -> StateStore:
    """Return what keeps the states of a run: as ranks write them, if there are or were several."""
    alone = Checkpoints(run.checkpoints, keep)
    step = alone.latest() if world.size == 1 else None
    if world.size == 1 and (step is None or alone.is_of_one_process(step)):
        return alone
    from torchrec.training.rank_checkpoints import RankCheckpoints

    return RankCheckpoints(run.checkpoints, keep)


def _read(
    experiment: Experiment, run: RunFolder, fitted: Fitted | None, begun: bool, world: World
) -> tuple[RunData, list[str]]:
    """Return the data of a run, and notices of them; of several ranks, one learns of them for all."""
    if world.size == 1:
        data = RunData(experiment, run.read_fitted() if begun else fitted)
        if not begun:
            run.write_fitted(data.fitted)
        return data, data.notices

    def learn() -> list[str]:
        if fitted is not None:
            run.write_fitted(fitted)
            return []
        resolved = learned(experiment)
        run.write_fitted(resolved.fitted)
        return resolved.notices

    notices = [] if begun else world.first(learn, "reading the data")
    data = RunData(experiment, run.read_fitted(), world=world)
    return data, [*data.notices, *notices]


def _whole(trainer: Trainer, seconds: float, waited: float) -> _Whole | None:
    """Return what was trained as one process has it, with counts of ids of all ranks; None but on the first."""
    world = trainer.world
    if world.size == 1:
        return _Whole(trainer.model, trainer.optimizer)
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.unshard import unshard
    from torchrec.training.rank_facts import plan_in_words, rank_facts

    assert isinstance(trainer.model, DistributedModelParallel)
    facts = rank_facts(trainer.model, seconds, waited, trainer.traffic)
    ranks, plan = world.gather(facts, "figures of ranks"), plan_in_words(trainer.model.plan)
    counts = out_of_range_counts(trainer.model)
    totals = world.total(list(counts.values()), "ids out of range")
    model = unshard(trainer.model, rank=0)
    if model is None:
        return None
    of_tables = {name: int(total) for name, total in zip(counts, totals, strict=True)}
    for _, collection in collections_in(model):
        store = collection.table_store()
        names = [config.name for config in store.table_configs()]
        store.set_out_of_range_counts({name: of_tables[name] for name in names})
    return _Whole(model, combined_optimizer(model), ranks, plan)


def fit_options(section: TrainingSection, evaluates: bool) -> FitOptions:
    """Return what the trainer does of what a section asks for.

    Args:
        section: of an experiment.
        evaluates: whether there are validation data.

    Raises:
        ValueError: the section asks for something that needs them, and there are none.
    """
    if section.evaluate_every is not None and not evaluates:
        raise ValueError(
            "`training.evaluate_every` should be given with validation data to evaluate on: "
            "`data.valid`, or `data.split.valid` above 0. Received none."
        )
    if section.schedule.decay == "plateau" and not evaluates:
        raise ValueError(
            "`training.schedule.decay` plateau should have validation data to go by: `data.valid`, or "
            "`data.split.valid` above 0. Received none."
        )
    stopping, average = section.early_stopping, section.average
    return FitOptions(
        epochs=section.epochs,
        accumulate=section.accumulate,
        clip_norm=section.clip_norm,
        precision=section.precision,
        compile=section.compile,
        label_smoothing=section.label_smoothing,
        average=None if average is None else AverageOptions(**average.model_dump()),
        schedule=ScheduleOptions(**section.schedule.model_dump()),
        early_stopping=None if stopping is None else EarlyStoppingOptions(**stopping.model_dump()),
        evaluate_every=section.evaluate_every,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        seed=section.seed,
    )


def _result(
    fitted: FitResult, seed: int, threads: int, baselines: Mapping[str, Baseline]
) -> RunResult:
    return RunResult(
        train=fitted.train.to_json(),
        valid=None if fitted.valid is None else fitted.valid.to_json(),
        test=None if fitted.test is None else fitted.test.to_json(),
        samples_per_second=round(fitted.samples_per_second, 1),
        seconds=round(fitted.seconds, 3),
        peak_rss_bytes=peak_rss_bytes(),
        steps=fitted.steps,
        epochs=fitted.epochs,
        samples=fitted.samples,
        best_step=fitted.best_step,
        threads=threads,
        seed=seed,
        best_epoch=fitted.best_epoch,
        notes=fitted.notes,
        baselines=baselines,
    )
