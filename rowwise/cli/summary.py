"""The table that ends ``torchrec train``: what came of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rowwise.cli.console import console, table

if TYPE_CHECKING:
    from torchrec.runs import RunFolder, RunResult, Scores

_OF_ONE = ("auc", "logloss", "ne", "calibration")
_OF_TASKS = ("auc", "ne", "mse", "mae", "accuracy", "logloss")
_BASELINES = {"constant": "base rate of training", "lr": "logistic regression"}


def show_summary(run: RunFolder) -> None:
    """Print what came of a run: metrics by split, baselines, time, where things are.

    Args:
        run: its folder; it has ended.
    """
    from torchrec.metrics.names import title_of

    result, out = run.read_result(), console()
    out.print()
    names = metric_names(result.train)
    heads = [title_of(name, short=True) for name in names]
    out.print(table(["", "rows", *heads], _rows(result, names)))
    if result.seeds:
        out.print(
            f"\nMeans and standard deviations of {len(result.seeds)} seeds, {result.seeds[0]} to "
            f"{result.seeds[-1]}.",
            markup=False,
        )
    out.print()
    for name, value in (
        ("best epoch", _best(result)),
        ("time", _time(result)),
        ("model", _models(run)),
    ):
        if value:
            out.print(f"{name:10}  {value}", markup=False)


def metric_names(scores: Scores) -> list[str]:
    """Return the metrics that a table shows: of one label those it knows, of tasks the first of each."""
    if "auc" in scores:
        return [*_OF_ONE]
    from torchrec.metrics.names import by_task

    chosen = {f"{prefix}{name}" for prefix in by_task(scores) for name in _OF_TASKS}
    return [name for name in scores if name in chosen]


def _rows(result: RunResult, names: list[str]) -> list[list[str]]:
    splits = {"train": result.train, "valid": result.valid, "test": result.test}
    rows = [
        _row(result.part_name(name), scores, names, result.deviation.get(name))
        for name, scores in splits.items()
        if scores
    ]
    # Beside the split that counts most.
    last = "valid" if result.test is None else "test"
    ensemble = result.ensemble.get(last)
    if ensemble:
        rows.append(_row(f"{last}, mean of {len(result.seeds)} models", ensemble, names))
    for name, baseline in result.baselines.items():
        scores = baseline.get(last)
        if scores:
            rows.append(_row(f"{last}, {_BASELINES.get(name, name)}", scores, names))
    return rows


def _row(name: str, scores: Scores, names: list[str], deviation: Scores | None = None) -> list[str]:
    samples = next((value for key, value in scores.items() if key.endswith("samples")), None)
    numbers = [_number(scores.get(key), (deviation or {}).get(key)) for key in names]
    return [name, "" if samples is None else f"{samples:,.0f}", *numbers]


def _number(value: float | None, deviation: float | None) -> str:
    from torchrec.metrics.interval import metric_text

    if value is None:
        return "-"
    if deviation is None:
        return metric_text(value)
    return f"{metric_text(value)} \N{PLUS-MINUS SIGN} {metric_text(deviation, value)}"


def _models(run: RunFolder) -> str:
    members = run.members()
    if run.model.is_dir() or not members:
        return os.path.relpath(run.model) if run.model.is_dir() else ""
    return f"{os.path.relpath(members[0].model)}, and {len(members) - 1} more"


def _best(result: RunResult) -> str:
    if result.best_epoch is None or result.epochs is None:
        return ""
    saved = ""
    if result.best_step is not None and result.best_step != result.steps:
        saved = f", whose weights (of step {result.best_step:,}) are saved"
    return f"{result.best_epoch} of {max(result.epochs, result.best_epoch)}{saved}"


def _time(result: RunResult) -> str:
    minutes, seconds = divmod(round(result.seconds), 60)
    parts = [f"{minutes}:{seconds:02}", f"{result.samples_per_second:,.0f} samples/s"]
    if result.threads is not None:
        parts.append(f"{result.threads} thread{'s' if result.threads > 1 else ''}")
    return ", ".join(parts)
