"""Several runs beside one another: what differs, in what was asked for and in what came of it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchrec.metrics import (
    AucDifference,
    Interval,
    auc_estimates,
    independent_difference,
)
from torchrec.report.configuration import keys_of, read_configuration
from torchrec.report.intervals import metric_intervals
from torchrec.report.predictions import Predictions, load_trained, predict_part
from torchrec.runs import SPLITS, Run, RunFolder, read_run

if TYPE_CHECKING:
    from torchrec.datasets.source import TableSource

Floats = NDArray[np.float64]

ROWS = 1_000_000  # that are predicted for at most
METRICS = {
    "auc": "AUC",
    "logloss": "log loss",
    "ne": "normalised entropy",
    "calibration": "calibration",
}
_SILENT = ("output", "data.workers", "training.keep_checkpoints", "training.tensorboard")


@dataclass(frozen=True)
class Contender:
    """One of the runs.

    Attributes:
        name: as short as tells it from the others.
        run: what its folder tells.
        keys: of its experiment; empty if its file does not read.
        predictions: of its model; None where they cannot be had.
        why: they cannot be had; empty where they can.
        metrics: with intervals where there are predictions; those of ``result.json`` else.
    """

    name: str
    run: Run
    keys: dict[str, str]
    predictions: Predictions | None
    why: str
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class Verdict:
    """How one run is to the first.

    Attributes:
        auc: by how much its AUC is higher; None where that is not known.
        logloss: by how much its log loss is higher, likewise.
        sentence: the verdict in words.
    """

    auc: AucDifference | None
    logloss: AucDifference | None
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Several runs beside one another.

    Attributes:
        part: of the data that the metrics are of.
        contenders: the runs; the others are compared with the first.
        differing: keys of the experiment that are not the same in all, with the value of each run.
        verdicts: of all runs but the first.
        notes: what to keep in mind.
    """

    part: str
    contenders: list[Contender]
    differing: list[tuple[str, list[str]]]
    verdicts: list[Verdict]
    notes: list[str]


def compare_runs(folders: Sequence[str | os.PathLike[str]], *, most: int = ROWS) -> Comparison:
    """Compare runs: their models predict for their test data again, for intervals and differences.

    Where two runs have the same test rows their predictions are paired: what is hard about these rows
    is so for both, and cancels out. AUCs are compared by DeLong's method, log losses by the mean
    difference of the rows; intervals of single metrics other than the AUC are by the bootstrap.

    Args:
        folders: of the runs, two or more; all are compared with the first.
        most: rows predicted for at most; of more, every second, fourth, eighth... is taken.
            Default 1,000,000.

    Raises:
        ValueError: there are fewer than two runs, one is none or comes twice, or they predict
            different labels.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise ValueError(f"Runs to compare should be two or more. Received {len(paths)}.")
    real = [os.path.realpath(path) for path in paths]
    for number, path in enumerate(real):
        if path in real[:number]:
            raise ValueError(
                f"Runs to compare should be different. Received '{paths[number]}' twice."
            )
    runs = [read_run(path) for path in paths]
    contenders = [
        _contender(name, RunFolder(path), run, most)
        for name, path, run in zip(short_names(real), paths, runs, strict=True)
    ]
    _check_labels(contenders)
    part = _part(contenders)
    verdicts, notes = [], _missing(contenders)
    p_values = []
    first = contenders[0]
    for other in contenders[1:]:
        auc, logloss, why = _differences(first, other)
        if why and why not in notes:
            notes.append(why)
        verdicts.append((auc, logloss))
        p_values.append(auc.p if auc is not None else math.nan)
    adjusted = holm(p_values)
    if sum(map(math.isfinite, p_values)) > 1:
        notes.append("The p-values are adjusted for the number of runs (Holm).")
    notes.append(
        "The intervals are of these models on such rows. Training again with another seed moves the "
        "metrics as well: `training.seeds` tells by how much."
    )
    return Comparison(
        part,
        contenders,
        differing_keys([one.keys for one in contenders]),
        [
            Verdict(auc, logloss, _sentence(first, other, auc, logloss, p, part))
            for (auc, logloss), other, p in zip(verdicts, contenders[1:], adjusted, strict=True)
        ],
        notes,
    )


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the last parts of some paths, as many as tell them apart.

    Example:
        >>> short_names(["/runs/a", "/runs/b"]), short_names(["/x/run", "/y/run"])
        (['a', 'b'], ['x/run', 'y/run'])
    """
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = [os.path.join(*part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def differing_keys(keys: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Return the keys whose values are not the same in all; one that is not there is ``–``.

    Example:
        >>> differing_keys([{"dim": "8", "lr": "1"}, {"dim": "16", "lr": "1"}])
        [('dim', ['8', '16'])]
    """
    every = dict.fromkeys(key for one in keys for key in one)
    found = [(key, [one.get(key, "\N{EN DASH}") for one in keys]) for key in every]
    return [(key, values) for key, values in found if len(set(values)) > 1 and key not in _SILENT]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, by Holm's method; NaN is none.

    Example:
        >>> holm([0.01, 0.04, 0.03, float("nan")])
        [0.03, 0.06, 0.06, nan]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if math.isfinite(p))
    found, least = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(p * (len(known) - rank), 1.0))
        found[place] = least
    return found


def _contender(name: str, folder: RunFolder, run: Run, most: int) -> Contender:
    experiment = read_configuration(run.configuration, run.name)
    keys = {} if experiment is None else keys_of(experiment)
    why = ""
    try:
        predictions = predict_part(load_trained(folder), most)
    except (OSError, ValueError) as error:
        predictions, why = None, f"{name}: no intervals. {error}"
    if predictions is None:
        split = next((one for one in reversed(SPLITS) if one in run.scores), "")
        metrics = {
            key: Interval(value, math.nan, math.nan)
            for key, value in run.scores.get(split, {}).items()
            if key in METRICS
        }
    else:
        metrics = metric_intervals(predictions)
    return Contender(name, run, keys, predictions, why, metrics)


def _check_labels(contenders: Sequence[Contender]) -> None:
    labels = {one.keys["data.label"]: one.name for one in contenders if "data.label" in one.keys}
    if len(labels) > 1:
        said = ", ".join(f"`{label}` ({name})" for label, name in labels.items())
        raise ValueError(f"Runs to compare should predict the same label. Received {said}.")


def _part(contenders: Sequence[Contender]) -> str:
    for one in contenders:
        if one.predictions is not None:
            return one.predictions.part
    scores = contenders[0].run.scores
    return next((one for one in reversed(SPLITS) if one in scores), "test")


def _missing(contenders: Sequence[Contender]) -> list[str]:
    return [one.why for one in contenders if one.why]


def _differences(
    first: Contender, second: Contender
) -> tuple[AucDifference | None, AucDifference | None, str]:
    """Return the differences of AUC and log loss, and what there is to say of the rows."""
    one, two = first.predictions, second.predictions
    if one is None or two is None:
        return None, None, ""
    why = unpaired(one, two)
    if not why:
        auc = auc_estimates(np.stack([one.logits, two.logits]), one.labels).difference(0, 1)
        return auc, _mean_difference(two.losses - one.losses, None), ""
    auc = independent_difference(
        auc_estimates(one.logits, one.labels), auc_estimates(two.logits, two.labels)
    )
    return (
        auc,
        _mean_difference(two.losses, one.losses),
        f"{second.name} was not tested on the rows of {first.name}: {why}. The difference is that of two "
        "samples, and partly one of the data.",
    )


def _mean_difference(values: Floats, minus: Floats | None) -> AucDifference:
    """Return a mean, less that of other samples, with its interval and two-sided p-value."""
    mean = float(values.mean()) - (0.0 if minus is None else float(minus.mean()))
    variance = _variance_of_mean(values) + (0.0 if minus is None else _variance_of_mean(minus))
    reach = 1.959964 * math.sqrt(variance)
    p = math.nan
    if variance > 0:
        p = math.erfc(abs(mean) / math.sqrt(2 * variance))
    elif variance == 0 and mean == 0:
        p = 1.0
    return AucDifference(Interval(mean, mean - reach, mean + reach), p)


def _variance_of_mean(values: Floats) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan


def unpaired(one: Predictions, two: Predictions) -> str:
    """Return why predictions are not of the same rows; empty where they are.

    Files with the same bytes and names are the same, wherever they lie: a split by chance goes by names.
    """
    if one.part != two.part:
        return f"its rows are those of {two.part}, not of {one.part}"
    sources = [found.trained.evaluated_part()[1] for found in (one, two)]
    if not _same_files(*sources):
        return "its files are others"
    for what, values in (
        ("`data.split`", [source.split for source in sources]),
        ("`data.drop`", [source.drop and source.drop.text for source in sources]),
    ):
        if values[0] != values[1]:
            return f"{what} is another"
    if not np.array_equal(one.labels, two.labels):
        return "its labels are others"
    return ""


def _same_files(one: TableSource, two: TableSource) -> bool:
    if len(one.files) != len(two.files):
        return False
    for first, second in zip(one.files, two.files, strict=True):
        if os.path.realpath(first.path) == os.path.realpath(second.path):
            continue
        if first.name != second.name or first.fingerprint() != second.fingerprint():
            return False
    return True


def _sentence(
    first: Contender,
    other: Contender,
    auc: AucDifference | None,
    logloss: AucDifference | None,
    p: float,
    part: str,
) -> str:
    if auc is None or not math.isfinite(auc.p):
        return _plain_sentence(first, other, logloss, part)
    gap = auc.difference
    if p < 0.05:
        how = "better" if gap.value > 0 else "worse"
        size = f"{abs(gap.value):.4f} AUC [{_ends(gap)}], {p_of(p)}"
        text = f"{other.name} is {how} than {first.name} by {size}"
    else:
        text = f"{other.name} and {first.name} do not differ clearly in AUC: {interval_of(gap)}, {p_of(p)}"
    if logloss is not None and math.isfinite(logloss.p):
        text += f"; its log loss is {_moved(logloss)}"
        opposed = (logloss.difference.value > 0) == (gap.value > 0)
        if opposed and logloss.p < 0.05 and p < 0.05:
            text += ", so the two disagree"
    return f"{text}."


def _plain_sentence(
    first: Contender, other: Contender, logloss: AucDifference | None, part: str
) -> str:
    """Say what can be said without an interval of the AUC."""
    if logloss is not None and math.isfinite(logloss.p):
        return f"The log loss of {other.name} is {_moved(logloss)}, against {first.name}."
    found = [one.metrics.get("auc") for one in (first, other)]
    if found[0] is None or found[1] is None:
        return f"There is nothing to compare {other.name} with {first.name} by."
    gap = found[1].value - found[0].value
    return (
        f"The AUC of {other.name} on its {part} data is {abs(gap):.4f} "
        f"{'below' if gap < 0 else 'above'} that of {first.name}; without the predictions of both "
        "nothing tells whether that is chance."
    )


def _moved(logloss: AucDifference) -> str:
    gap = logloss.difference
    if gap.low * gap.high < 0:
        return f"not clearly another: {interval_of(gap)}, {p_of(logloss.p)}"
    how = "higher" if gap.value > 0 else "lower"
    return f"{how} by {abs(gap.value):.4f} [{_ends(gap)}], {p_of(logloss.p)}"


def _ends(interval: Interval) -> str:
    """Write the ends of an interval of a difference as of its size."""
    low, high = interval.low, interval.high
    if interval.value < 0:
        low, high = -high, -low
    return f"{low:.4f}, {high:.4f}"


def interval_of(interval: Interval, digits: int = 4) -> str:
    """Write a difference with its interval.

    Example:
        >>> interval_of(Interval(0.0031, 0.0021, 0.0041))
        '+0.0031 [+0.0021, +0.0041]'
    """
    return f"{interval.value:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def p_of(p: float) -> str:
    """Write a p-value.

    Example:
        >>> p_of(0.0004), p_of(0.012), p_of(0.412)
        ('p < .001', 'p = .012', 'p = .41')
    """
    if p < 0.001:
        return "p < .001"
    return f"p = {p:.3f}".replace("0.", ".", 1) if p < 0.1 else f"p = {p:.2f}".replace("0.", ".", 1)
