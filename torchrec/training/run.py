"""The run of an experiment: from files to trained, evaluated and saved models in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torchrec.experiment.advice import advised
from torchrec.experiment.files import load_experiment
from torchrec.experiment.schema import Experiment
from torchrec.heap import keep_freed_memory
from torchrec.runs import RunFolder, RunResult, lock
from torchrec.training.attempts import Attempts, Opened
from torchrec.training.checkpoint import Checkpoints
from torchrec.training.observers import Observer, Observers
from torchrec.training.progress import progress_observer
from torchrec.training.ranks import joined_ranks
from torchrec.training.run_threads import run_threads
from torchrec.training.seeds import train_seeds
from torchrec.training.single_run import train_run
from torchrec.training.world import World

# What a run may go on with otherwise than it began: nothing that is learned depends on it.
_FREE = (
    "output",
    "data.workers",
    "training.keep_checkpoints",
    "training.tensorboard",
    "distributed.plan",
    "distributed.rates",
    "distributed.constraints",
    "distributed.timeout",
)


def run_experiment(
    experiment: Experiment,
    folder: str | Path,
    resume: bool = False,
    observers: Sequence[Observer] | None = None,
) -> RunResult:
    """Train what an experiment describes, evaluate it, and save all there is to know in a folder.

    The folder gets ``experiment.yaml`` with every key, ``metrics.jsonl``, ``checkpoints/``, and at
    the end ``model/`` (the bundle), ``report.json`` and ``result.json``, which is written last. With
    ``training.seeds`` above 1 it gets such a folder for each seed, and a ``result.json`` of all.

    Under `torchrun` the ranks train one model together, each on its share of every batch, and the first of them
    writes the folder, which all see. After a restart by `torchrun` they go on from the last checkpoint of their job.

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
    with joined_ranks(experiment.distributed.timeout) as world, ExitStack() as stack:
        if world.rank:
            observers = ()
        elif observers is None:
            observers = [progress_observer()]

        def prepare() -> RunResult | None:
            attempts = Attempts(run.path)
            before = attempts.before()
            if before is Opened.NEW and not run.has_begun():
                _clear(run.path)
            found = Opened.THERE if _has_files(run.path) else Opened.NEW
            if _is_over(experiment, run, resume or before is not None):
                return run.read_result()
            stack.enter_context(_folder(run))
            attempts.open(found)
            return None

        ended = world.first(prepare, "opening the folder of the run")
        if ended is not None:
            Observers(observers).said(f"The run in '{run.path}' has ended already: nothing to do.")
            return ended
        if experiment.features is None and not run.has_begun():
            Observers(observers).said(
                "The experiment has no features: they are inferred from the data, and written to "
                f"{run.experiment}."
            )
        return _train(experiment, run, observers, world)


def _train(
    experiment: Experiment, run: RunFolder, observers: Sequence[Observer], world: World
) -> RunResult:
    keep_freed_memory()
    with run_threads(experiment.training.threads), advised():
        if experiment.training.seeds == 1:
            return train_run(experiment, run, observers, world=world)
        return train_seeds(experiment, run, observers, world)


@contextmanager
def _folder(run: RunFolder) -> Iterator[None]:
    """Lock the folder of a run while inside; a new one without a checkpoint is removed after an error."""
    fresh = not run.path.exists()
    with lock(run.path):
        try:
            yield
        except Exception:
            # What was wrong is to be mended and tried again, under the same name.
            if fresh and not _has_checkpoint(run):
                shutil.rmtree(run.path, ignore_errors=True)
            raise


def _clear(folder: Path) -> None:
    """Remove what an attempt has left that ended before its run had begun, or while it removed it."""
    if _has_files(folder):
        with lock(folder):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _has_checkpoint(run: RunFolder) -> bool:
    folders = [run, *run.members()]
    return any(Checkpoints(one.checkpoints).latest() is not None for one in folders)


def _is_over(experiment: Experiment, run: RunFolder, resume: bool) -> bool:
    """Return whether the run has ended; refuse what would damage one that is there."""
    folder = run.path
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The folder of a run should be one. Received the file '{folder}'.")
    if not _has_files(folder):
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
        if key.startswith(_FREE) or (inferred and key.startswith("features.")):
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
