"""The run of an experiment with one seed: from files to a trained, evaluated and saved model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from torchrec.bundle import save_bundle
from torchrec.experiment.build import build_model, table_optimizer
from torchrec.experiment.files import FILE_NAME, dump_experiment
from torchrec.experiment.schema import Experiment, TrainingSection
from torchrec.runs import Fitted, RunFolder, RunReport, RunResult
from torchrec.training.baselines import Baseline, baselines_of
from torchrec.training.checkpoint import Checkpoints
from torchrec.training.fit_state import FitResult
from torchrec.training.id_counts import IdCounts
from torchrec.training.memory import peak_rss_bytes
from torchrec.training.observers import MetricsLog, Observer, Observers, TensorBoard
from torchrec.training.optimizers import dense_optimizer
from torchrec.training.options import (
    AverageOptions,
    EarlyStoppingOptions,
    FitOptions,
    ScheduleOptions,
)
from torchrec.training.run_data import RunData
from torchrec.training.run_threads import thread_chooser
from torchrec.training.table_facts import table_facts
from torchrec.training.trainer import Trainer


def train_run(
    experiment: Experiment,
    run: RunFolder,
    given: Sequence[Observer],
    fitted: Fitted | None = None,
) -> RunResult:
    """Train with one seed what an experiment describes, and fill the folder of the run.

    Args:
        experiment: what to do.
        run: its folder, locked; training goes on from its last checkpoint, if it has one.
        given: are told how it goes.
        fitted: what others have learned of the same data. Default: it is learned anew.
    """
    options = experiment.training
    torch.manual_seed(options.seed)
    checkpoints = Checkpoints(run.checkpoints, keep=options.keep_checkpoints)
    begun = checkpoints.latest() is not None
    tell = Observers(given)
    if fitted is None:
        tell.began("reading the data")
    data = RunData(experiment, run.read_fitted() if begun else fitted)
    if not begun:
        run.write_fitted(data.fitted)
    described = dump_experiment(data.experiment)
    run.write_experiment(described)
    for message in data.notices:
        tell.said(message)
    model = build_model(experiment.model, options, data.transform)
    observers = [MetricsLog(run.metrics), *given]
    if options.tensorboard:
        observers.append(TensorBoard(run.tensorboard))
    trainer = Trainer(
        model,
        dense_optimizer(model, options.optimizer, options.learning_rate, options.weight_decay),
        options=fit_options(options, evaluates=data.valid is not None),
        checkpoints=checkpoints,
        observers=observers,
        id_counts=IdCounts(data.transform, data.evaluated, model),
        threads=thread_chooser(options, model, data.batch_sizes, tell.said),
    )
    reached = trainer.fit(
        data.train, data.valid, data.test, resume=True, batches=data.train_batches
    )
    tell.began("saving the model")
    save_bundle(
        run.model,
        model,
        data.transform,
        data.experiment.model,
        table_optimizer(data.experiment.training),
        {FILE_NAME: described},
    )
    drawn = reached.valid if reached.test is None else reached.test
    curves = {} if drawn is None else drawn.curves
    run.write_report(RunReport(table_facts(model, data.transform, trainer.optimizer), curves))
    chooser = trainer.threads
    threads = torch.get_num_threads() if chooser is None else chooser.threads
    baselines, notice = baselines_of(options.baselines, data, reached, options.seed, tell.began)
    if notice:
        tell.said(notice)
    run.write_result(_result(reached, options.seed, threads, baselines))
    return run.read_result()


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
