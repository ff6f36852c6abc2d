"""The head of the page: the result in large numbers, and the facts of the run."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from torchrec.bundle import INDEX
from torchrec.files import read_index
from torchrec.metrics.interval import metric_text
from torchrec.metrics.names import by_task
from torchrec.report.card import View, of_task
from torchrec.report.references import comparables
from torchrec.report.scale import UNKNOWN, duration, memory
from torchrec.runs import SPLITS, Run, RunFolder, numbers_of

# In the order of the tiles; the first that a task has is what its kind is judged by.
_METRICS = (
    ("auc", "AUC", "share of (positive, negative) pairs in the right order"),
    ("mse", "Squared error", "mean of the squares of what predictions are off by"),
    ("mae", "Absolute error", "mean of what predictions are off by"),
    ("accuracy", "Accuracy", "share of the rows whose class is the likeliest"),
    ("ne", "Normalised entropy", "log loss over that of guessing the mean"),
    ("logloss", "Log loss", "mean of the negative log likelihood"),
    ("calibration", "Calibration", "sum of predictions over number of positives"),
)
_FILES_SHOWN = 2


@dataclass(frozen=True)
class Tile:
    """A number of the first line: what it is, its value, and the same elsewhere."""

    name: str
    value: str
    about: str
    beside: list[str]


def tiles(view: View) -> list[Tile]:
    """Return the metrics of the part that tells most, with what there is to compare them with.

    Of several tasks it is what their kind is judged by.
    """
    scores, split = view.scores, view.part
    tasks = by_task(scores.get(split, {}))
    shown = []
    for prefix, names in tasks.items():
        known = [(key, name, about) for key, name, about in _METRICS if key in names]
        shown += [
            _tile(view, f"{prefix}{key}", f"{name}{of_task(prefix)}", about)
            for key, name, about in (known[:1] if prefix else known)
        ]
    return shown


def _tile(view: View, key: str, name: str, about: str) -> Tile:
    scores, split, result = view.scores, view.part, view.run.result
    deviation = {} if result is None else numbers_of(result.deviation.get(split))
    beside = (
        [f"\N{PLUS-MINUS SIGN} {metric_text(deviation[key], scores[split][key])}"]
        if key in deviation
        else []
    )
    beside += [
        f"{other} {score(scores[other][key])}"
        for other in SPLITS
        if other != split and key in scores.get(other, {})
    ]
    beside += [
        f"{one.name} {score(one.scores[key])}"
        for one in comparables(view, split)
        if key in one.scores and one.kind != "constant"
    ]
    return Tile(name, score(scores[split][key]), about, beside)


def score(value: float) -> str:
    """Write a metric."""
    return metric_text(value) if math.isfinite(value) else UNKNOWN


def summary(view: View, folder: RunFolder) -> list[tuple[str, str]]:
    """Return the facts of a run: model, length, speed; data, seed, versions, how to repeat it."""
    run, experiment = view.run, view.experiment
    facts = [] if experiment is None else [("model", str(experiment.model.name))]
    facts += _length(run)
    if experiment is not None:
        facts += _data(view)
        first, seeds = experiment.training.seed, experiment.training.seeds
        shown = str(first) if seeds == 1 else f"{first} to {first + seeds - 1}"
        facts.append(("seed" if seeds == 1 else "seeds", shown))
    if experiment is not None and experiment.continue_from is not None:
        facts.append(("trained on from", experiment.continue_from))
    facts += _made(folder)
    if folder.experiment.is_file():
        path = shlex.quote(os.fspath(folder.experiment))
        facts.append(("again", f"torchrec train {path} -o {shlex.quote(f'{folder.path}-again')}"))
    return facts


def _length(run: Run) -> list[tuple[str, str]]:
    last = next((line for line in reversed(run.lines) if line.split == "train"), None)
    facts: list[tuple[str, str]] = []
    if last:
        facts.append(("samples", f"{last.samples:,.0f}"))
        facts.append(("steps", f"{last.step:,.0f}"))
    facts += _epochs(run)
    best = run.facts.get("best_step")
    if last and best is not None and best != last.step:
        facts.append(("weights of step", f"{best:,.0f}, the best on valid"))
    seconds = run.facts.get("seconds", last.seconds if last else 0.0)
    if seconds:
        facts.append(("time", duration(seconds)))
    if "samples_per_second" in run.facts:
        facts.append(("samples/s", f"{run.facts['samples_per_second']:,.0f}"))
    if "peak_rss_bytes" in run.facts:
        facts.append(("peak memory", memory(run.facts["peak_rss_bytes"])))
    return facts


def _epochs(run: Run) -> list[tuple[str, str]]:
    """Return how many passes were made, and which was the best."""
    result = run.result
    if result is None or result.epochs is None or result.seeds:
        return []
    if result.best_epoch is None:
        return [("epochs", str(result.epochs))]
    return [("best epoch", f"{result.best_epoch} of {max(result.epochs, result.best_epoch)}")]


def _data(view: View) -> list[tuple[str, str]]:
    """Return the files of each part, and its rows as far as they are known."""
    assert view.experiment is not None
    data = view.experiment.data
    facts = []
    epochs = view.run.facts.get("epochs")
    for split, paths in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        scores = view.run.scores.get(split, {})
        rows = scores.get("samples")
        if split == "train" and epochs and "samples" in view.run.facts:
            rows = view.run.facts["samples"] / epochs
        counted = "" if rows is None else f"{rows:,.0f} rows"
        if paths:
            facts.append((split, f"{_files(paths)}{', ' if counted else ''}{counted}"))
        elif counted:
            facts.append((split, f"{counted}, split off the training data"))
    return facts


def _files(paths: Sequence[str]) -> str:
    names = ", ".join(
        os.path.join(*os.path.normpath(path).split(os.sep)[-2:]) for path in paths[:_FILES_SHOWN]
    )
    more = len(paths) - _FILES_SHOWN
    return f"{names} and {more} more" if more > 0 else names


def _made(folder: RunFolder) -> list[tuple[str, str]]:
    """Return when the run ended, and with what, as its bundle says."""
    try:
        index = read_index(folder.model, index=INDEX)
    except (OSError, ValueError):
        return []
    facts = []
    created = index.facts.get("created")
    if isinstance(created, str):
        at = datetime.fromisoformat(created).astimezone(timezone.utc)
        facts.append(("ended", f"{at:%Y-%m-%d %H:%M} UTC"))
    versions = [index.written_by] if index.written_by else []
    torch = index.facts.get("torch_version")
    versions += [f"PyTorch {torch}"] if isinstance(torch, str) else []
    if versions:
        facts.append(("versions", ", ".join(versions)))
    return facts
