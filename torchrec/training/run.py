"""The run of an experiment: from files to a trained, evaluated and saved model in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from torchrec.bundle import save_bundle
from torchrec.experiment.advice import advised
from torchrec.experiment.build import build_model, table_optimizer
from torchrec.experiment.files import FILE_NAME, dump_experiment, load_experiment
from torchrec.experiment.schema import Experiment, TrainingSection
from torchrec.runs import RunFolder, RunReport, RunResult, lock
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
from torchrec.training.progress import progress_observer
from torchrec.training.run_data import RunData
from torchrec.training.run_threads import run_threads, thread_chooser
from torchrec.training.table_facts import table_facts
from torchrec.training.trainer import Trainer

# What a run may go on with otherwise than it began: nothing that is learned depends on it.
_FREE = ("output", "data.workers", "training.keep_checkpoints", "training.tensorboard")


def run_experiment(
    experiment: Experiment,
    folder: str | Path,
    resume: bool = False,
    observers: Sequence[Observer] | None = None,
) -> RunResult:
    """Train what an experiment describes, evaluate it, and save all there is to know in a folder.

    The folder gets ``experiment.yaml`` with every key, ``metrics.jsonl``, ``checkpoints/``, and at
    the end ``model/`` (the bundle), ``report.json`` and ``result.json``, which is written last.

    Args:
        experiment: what to do.
        folder: of the run; new, unless ``resume``.
        resume: go on from the last checkpoint in the folder, to the same result as if the run had
            never been interrupted. A run that has ended is left alone.
        observers: are told how it goes. Default: a progress line on standard output.

    Raises:
        ValueError: if the folder has a run already, or one of another experiment, or one that another
            process trains; for what is wrong with the data or the experiment. A new folder without
            a checkpoint is removed again.
        OSError: if the folder cannot be written; checkpoints that are there stay whole.
    """
    run = RunFolder(folder)
    observers = [progress_observer()] if observers is None else observers
    if _is_over(experiment, run, resume):
        Observers(observers).said(f"The run in '{run.path}' has ended already: nothing to do.")
        return run.read_result()
    fresh = not run.path.exists()
    with lock(run.path):
        try:
            with run_threads(experiment.training.threads), advised():
                return _run(experiment, run, observers)
        except Exception:
            # What was wrong is to be mended and tried again, under the same name.
            if fresh and Checkpoints(run.checkpoints).latest() is None:
                shutil.rmtree(run.path, ignore_errors=True)
            raise


def _run(experiment: Experiment, run: RunFolder, given: Sequence[Observer]) -> RunResult:
    options = experiment.training
    torch.manual_seed(options.seed)
    checkpoints = Checkpoints(run.checkpoints, keep=options.keep_checkpoints)
    begun = checkpoints.latest() is not None
    data = RunData(experiment, run.read_fitted() if begun else None)
    if not begun:
        run.write_fitted(data.fitted)
    run.write_experiment(dump_experiment(data.experiment))
    for message in data.notices:
        Observers(given).said(message)
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
        threads=thread_chooser(options, model, data.batch_sizes, Observers(given).said),
    )
    fitted = trainer.fit(data.train, data.valid, data.test, resume=True, batches=data.train_batches)
    save_bundle(
        run.model,
        model,
        data.transform,
        data.experiment.model,
        table_optimizer(data.experiment.training),
        {FILE_NAME: dump_experiment(data.experiment)},
    )
    drawn = fitted.valid if fitted.test is None else fitted.test
    curves = {} if drawn is None else drawn.curves
    run.write_report(RunReport(table_facts(model, data.transform, trainer.optimizer), curves))
    chooser = trainer.threads
    threads = torch.get_num_threads() if chooser is None else chooser.threads
    baselines, notice = baselines_of(options.baselines, data, fitted, options.seed)
    if notice:
        Observers(given).said(notice)
    run.write_result(_result(fitted, threads, baselines))
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


def _result(fitted: FitResult, threads: int, baselines: Mapping[str, Baseline]) -> RunResult:
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
        best_epoch=fitted.best_epoch,
        notes=fitted.notes,
        baselines=baselines,
    )


def _is_over(experiment: Experiment, run: RunFolder, resume: bool) -> bool:
    """Return whether the run has ended; refuse what would damage one that is there."""
    folder = run.path
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The folder of a run should be one. Received the file '{folder}'.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not resume:
        raise ValueError(
            f"The folder of a run should be new. Received '{folder}', which exists: go on with its "
            "run with --resume, or choose another folder with --output."
        )
    if not run.has_begun():
        raise ValueError(
            f"--resume should be given for the folder of a run. Received '{folder}', which holds "
            "something else."
        )
    if run.experiment.exists():
        _check_same(experiment, load_experiment(run.experiment), folder)
    return run.has_ended()


def _check_same(experiment: Experiment, before: Experiment, folder: Path) -> None:
    given, saved = _flat(experiment.model_dump(mode="json")), _flat(before.model_dump(mode="json"))
    inferred = experiment.features is None
    for key in {**saved, **given}:
        if key in _FREE or (inferred and key.startswith("features.")):
            continue
        if inferred and key.startswith("data.types.") and key not in given:
            continue
        if given.get(key) != saved.get(key):
            raise ValueError(
                f"`{key}` should be {_shown(saved.get(key))}, as when the run in '{folder}' began. "
                f"Received {_shown(given.get(key))}: to change it, start a new run."
            )


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _shown(value: object) -> str:
    return json.dumps(value)
