"""The search: one trial after another, each a training judged by the validation data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

from torchrec.checks import did_you_mean, require_integer
from torchrec.experiment.advice import advised
from torchrec.experiment.files import dump_experiment
from torchrec.experiment.schema import Experiment
from torchrec.files import read_json, write_file
from torchrec.metrics import BinaryMetrics, Report
from torchrec.runs import lock
from torchrec.training.observers import Observer, Record
from torchrec.training.progress import duration
from torchrec.tuning.data import TuningData
from torchrec.tuning.results import BEST, Tuning, label_of, score
from torchrec.tuning.sampler import Proposal, PrunerName, Sampler
from torchrec.tuning.space import (
    SearchSpace,
    Value,
    Values,
    base_values,
    default_space,
    nearest_values,
    space_from_json,
    space_to_json,
)
from torchrec.tuning.trials import State, Trial, TrialsFile, best_of

STUDY, TRIALS = "study.json", "trials.jsonl"
"""What the search keeps in its folder, beside its results."""


@dataclass(frozen=True)
class TuningOptions:
    """How is searched.

    Args:
        trials: how many in all, with those of a search that is resumed. Default 20.
        metric: of the validation data, or several, as in early stopping. Default: those of
            ``training.early_stopping``, else AUC.
        pruner: when a trial is given up, see `torchrec.tuning.sampler.Sampler`. Default ``"median"``.
        timeout: seconds; a trial that is not over then is dropped. Default: no limit.
        seed: of the proposals. Default 0.

    Raises:
        TypeError, ValueError: a value is not what it should be; names the option.
    """

    trials: int = 20
    metric: str | Sequence[str] | None = None
    pruner: PrunerName = "median"
    timeout: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_integer(self.trials, "`trials`", least=1)
        require_integer(self.seed, "`seed`", least=0)
        if self.pruner not in ("median", "halving", "none"):
            raise ValueError(
                f"`pruner` should be one of median, halving, none. Received {self.pruner!r}."
            )
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"`timeout` should be above 0 seconds. Received {self.timeout}.")
        better = BinaryMetrics().compute().better
        for metric in _names(self.metric):
            if metric not in better:
                raise ValueError(
                    f"`metric` should be one of {', '.join(better)}. Received {metric!r}"
                    f"{did_you_mean(metric, better) or '.'}"
                )


class _Stop(Exception):  # noqa: N818 - no error
    """The trial is given up."""


class _OutOfTime(Exception):  # noqa: N818 - no error
    """There is no time left."""


def tune(
    experiment: Experiment,
    folder: str | Path,
    options: TuningOptions | None = None,
    *,
    space: SearchSpace | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Tuning:
    """Search for the options with which an experiment does best on its validation data.

    The rows of the test are never read. The data are split and the transform is fitted once; each trial then
    starts from the weights and takes the rows in the order that `torchrec train` does, so that this gives
    the same numbers with the best options. The first trial is the experiment as it is.

    Args:
        experiment: where to start.
        folder: of the search; new, unless ``resume``. It gets ``trials.jsonl``, and ``best.yaml``.
        options: how many trials, and how long. Default: 20, without a limit.
        space: what may vary. Default: see `default_space`.
        resume: go on with the search in the folder, as it would have if it had not been stopped.
        say: is given a line for each trial.

    Raises:
        ValueError: the folder has a search already, or one of another experiment; there are no validation
            data; or the experiment as it is cannot be trained.
        ImportError: Optuna is not installed.
    """
    options, path = options or TuningOptions(), Path(folder)
    file = TrialsFile(path / TRIALS)
    if not resume and path.is_dir() and any(path.iterdir()):
        raise ValueError(
            f"The folder of a search should be new. Received '{path}', which exists: go on with its "
            "search with --resume, or choose another folder with --output."
        )
    with lock(path), advised():
        before = _read_study(path) if resume else None
        if before is not None:
            _require_same(
                before.get("experiment"), experiment.model_dump(mode="json"), "experiment", path
            )
        data = TuningData(experiment, say)
        space = default_space(data.experiment, data.rows) if space is None else space
        metrics = _names(options.metric) or _default_metrics(experiment)
        base = base_values(data.experiment, list(space))
        study = _study(experiment, space, base, metrics, options)
        if before is None:
            write_file(path / STUDY, json.dumps(study, indent=1) + "\n")
        else:
            for name, value in study.items():
                _require_same(before.get(name), value, name, path)
        sampler = Sampler(space, options.seed, options.pruner)
        search = _Search(data, path, sampler, nearest_values(space, base), metrics, say)
        search.trials = file.read()
        search.run(options, file)
    found = read_tuning(path)
    assert found is not None
    return found


class _Search:
    """A search under way."""

    def __init__(
        self,
        data: TuningData,
        folder: Path,
        sampler: Sampler,
        start: Mapping[str, Value] | None,
        metrics: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self.data, self.folder, self.sampler = data, folder, sampler
        self.start, self.metrics, self.say = start, metrics, say
        self.trials: list[Trial] = []

    def run(self, options: TuningOptions, file: TrialsFile) -> None:
        """Make the trials that are missing."""
        if self.trials:
            self.say(f"{len(self.trials)} of {options.trials} trials were made before.")
        end = math.inf if options.timeout is None else monotonic() + options.timeout
        self._write_best()
        while len(self.trials) < options.trials:
            try:
                trial = self._trial(end)
            except _OutOfTime:
                self.say(
                    f"{options.timeout:g} s are over: {len(self.trials)} of {options.trials} trials were made."
                )
                break
            file.append(trial)
            self.trials.append(trial)
            self._write_best()
            self.say(self._line(trial, options.trials))

    def _trial(self, end: float) -> Trial:
        """Make the next trial."""
        number, began = len(self.trials) + 1, perf_counter()
        proposal = self.sampler.propose(self.trials, self.start) if number > 1 else None
        values = {} if proposal is None else proposal.values
        watch = _Watch(self.metrics, proposal, end)
        state: State = "complete"
        report, steps, reason = None, 0, ""
        try:
            fitted = self.data.fit(self.data.with_values(values), watch)
            report, steps = fitted.valid, fitted.steps
        except _Stop:
            state, report, steps = "pruned", watch.report, watch.step
        except ValueError as error:  # the loss is no number, or two options do not go together
            if number == 1:
                raise
            state, reason = "failed", str(error)
        return Trial(
            number=number,
            state=state,
            values=values,
            value=None if report is None else score(report, self.metrics),
            metrics={} if report is None else _finite(report),
            curve=tuple(watch.curve),
            steps=steps,
            seconds=round(perf_counter() - began, 3),
            reason=reason,
        )

    def _write_best(self) -> None:
        best = best_of(self.trials)
        if best is not None:
            found = self.data.with_values(best.values)
            found = found.model_copy(update={"output": f"{found.output}-tuned"})
            write_file(self.folder / BEST, dump_experiment(found))

    def _line(self, trial: Trial, most: int) -> str:
        """Return a trial in a line."""
        best = best_of(self.trials)
        what = {"complete": "", "pruned": " given up", "failed": f" failed: {trial.reason}"}[
            trial.state
        ]
        number = "" if trial.value is None else f"  {label_of(self.metrics)} {trial.value:.4f}"
        beside = f" (best {best.value:.4f}, trial {best.number})" if best is not None else ""
        values = ", ".join(
            f"{key.partition('.')[2]} {value}" for key, value in trial.values.items()
        )
        return (
            f"trial {trial.number}/{most}{what}{number}{beside}  {duration(trial.seconds)}  "
            f"{values or 'the experiment as it is'}"
        )


class _Watch(Observer):
    """Notes the evaluations of a trial, and gives it up where others did better.

    Args:
        metrics: what is maximised.
        proposal: says what is hopeless; None: nothing is.
        end: when time is over, as `time.monotonic` counts.
    """

    def __init__(self, metrics: Sequence[str], proposal: Proposal | None, end: float) -> None:
        self._metrics, self._proposal, self._end = metrics, proposal, end
        self.curve: list[float] = []
        self.report: Report | None = None
        self.step = 0

    def stepped(self, step: int, samples: int) -> None:
        """Look at the clock."""
        self.step = step
        if monotonic() > self._end:
            raise _OutOfTime

    def recorded(self, record: Record) -> None:
        """Note an evaluation."""
        if record.split != "valid":
            return
        self.report = record.report
        self.curve.append(score(record.report, self._metrics))
        hopeless = self._proposal is not None and self._proposal.is_hopeless(
            len(self.curve), self.curve[-1]
        )
        if hopeless:
            raise _Stop


def _names(metric: str | Sequence[str] | None) -> tuple[str, ...]:
    if metric is None:
        return ()
    return (metric,) if isinstance(metric, str) else tuple(metric)


def _default_metrics(experiment: Experiment) -> tuple[str, ...]:
    stopping = experiment.training.early_stopping
    return ("auc",) if stopping is None else stopping.metrics


def _finite(report: Report) -> dict[str, float]:
    return {name: value for name, value in report.items() if math.isfinite(value)}


def _study(
    experiment: Experiment,
    space: SearchSpace,
    base: Values,
    metrics: Sequence[str],
    options: TuningOptions,
) -> dict[str, object]:
    return {
        "experiment": experiment.model_dump(mode="json"),
        "space": space_to_json(space),
        "metrics": list(metrics),
        "pruner": options.pruner,
        "seed": options.seed,
        "base": base,
    }


def read_tuning(folder: str | Path) -> Tuning | None:
    """Return a search as far as its folder tells; None where there is none.

    Args:
        folder: as given to `tune`.

    Raises:
        ValueError: a file is damaged.
        ImportError: Optuna is not installed.
    """
    path = Path(folder)
    if not (path / STUDY).is_file():
        return None
    study = _read_study(path)
    space, metrics = space_from_json(study["space"]), tuple(study["metrics"])
    trials = tuple(TrialsFile(path / TRIALS).read())
    sampler = Sampler(space, study["seed"], study["pruner"])
    importances = sampler.importances(trials, nearest_values(space, study["base"]))
    return Tuning(path, metrics, space, study["base"], trials, importances)


def _read_study(folder: Path) -> Mapping[str, Any]:
    try:
        found = read_json((folder / STUDY).read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"--resume should be given for the folder of a search. Received '{folder}', which has no {STUDY}."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"'{folder / STUDY}' should be what a search wrote. Received other JSON.")
    return found


def _require_same(before: object, now: object, name: str, folder: Path) -> None:
    """Refuse to go on with a search of something else; names the first key that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            _require_same(before.get(key), now.get(key), f"{name}.{key}", folder)
        return
    if json.dumps(before) != json.dumps(now):
        key = name.removeprefix("experiment.")
        raise ValueError(
            f"`{key}` should be {json.dumps(before)}, as when the search in '{folder}' began. "
            f"Received {json.dumps(now)}: to change it, start a new one."
        )
