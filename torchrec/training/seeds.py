"""A run with several seeds: a run for each, in a folder of its own, and what came of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import fmean, stdev

from torchrec.bundle import load_bundle, save_bundle
from torchrec.datasets.loader import Loader
from torchrec.experiment.build import table_optimizer
from torchrec.experiment.files import FILE_NAME, dump_experiment
from torchrec.experiment.schema import Experiment
from torchrec.models.ensemble import Ensemble
from torchrec.runs import SPLITS, RunFolder, RunResult, Scores, lock
from torchrec.training.checkpoint import Checkpoints
from torchrec.training.evaluation import evaluate
from torchrec.training.observers import Observer, Observers
from torchrec.training.run_data import RunData, learned
from torchrec.training.run_tasks import tasks_of
from torchrec.training.single_run import train_run
from torchrec.training.task import Task
from torchrec.training.world import ALONE, World


def train_seeds(
    experiment: Experiment, run: RunFolder, given: Sequence[Observer], world: World = ALONE
) -> RunResult:
    """Train an experiment with ``training.seeds`` seeds one after the other, from ``training.seed`` on.

    Each is a run like any other, ``seed-0/`` and so on, equal to that of the experiment with this
    seed alone; they share the transform, which is fitted once. Those that have ended are left alone,
    and one that broke off goes on from its last checkpoint. With ``training.ensemble`` the mean of
    their models' logits is a model, too.

    Args:
        experiment: what to do.
        run: the folder of all, locked.
        given: are told how each goes.
        world: the ranks that train each of them together. Default: this process alone.
    """
    tell = Observers(given)
    for notice in world.first(lambda: _begin(experiment, run, tell), "reading the data"):
        tell.said(notice)
    seeds = [experiment.training.seed + number for number in range(experiment.training.seeds)]
    results = []
    for number, seed in enumerate(seeds):
        member = run.member(seed)
        has_ended = world.first(member.has_ended, f"the run of seed {seed}")
        ended = ": ended before" if has_ended else ""
        tell.said(f"seed {seed}, {number + 1} of {len(seeds)}{ended}")
        if not has_ended:
            with lock(member.path) if world.rank == 0 else nullcontext():
                # Read anew, so that each counts odd values for itself.
                train_run(_with_seed(experiment, seed), member, given, run.read_fitted(), world)
        results.append(world.first(member.read_result, f"the result of seed {seed}"))

    def finish() -> RunResult:
        result = joined(seeds, results)
        if experiment.training.ensemble:
            tell.began(f"averaging the logits of {len(seeds)} models")
            members = [run.member(seed) for seed in seeds]
            result = dataclasses.replace(result, ensemble=_save_ensemble(experiment, run, members))
        run.write_result(result)
        return run.read_result()

    return world.first(finish, "the result of all seeds")


def _begin(experiment: Experiment, run: RunFolder, tell: Observers) -> list[str]:
    """Fill the folder of all with what its seeds share, unless it is there; return notices."""
    begun = [member for member in run.members() if _checkpoints_of(member).latest() is not None]
    if begun:
        _check_data(experiment, run, begun[0])
        return []
    if run.fitted.is_dir() and any(member.has_ended() for member in run.members()):
        return []
    tell.began("reading the data")
    resolved = learned(experiment)
    run.write_experiment(dump_experiment(resolved.experiment))
    run.write_fitted(resolved.fitted)
    return resolved.notices


def _checkpoints_of(member: RunFolder) -> Checkpoints:
    return Checkpoints(member.checkpoints)


def _check_data(experiment: Experiment, run: RunFolder, member: RunFolder) -> None:
    """Refuse data that have changed since a seed was trained on them: the next would be on others."""
    seed = int(member.path.name.rpartition("-")[2])
    checkpoints = _checkpoints_of(member)
    step = checkpoints.latest()
    assert step is not None
    state = checkpoints.load_rest(step)["data"]
    RunData(_with_seed(experiment, seed), run.read_fitted()).train.check_state_dict(state)


def _save_ensemble(
    experiment: Experiment, run: RunFolder, members: Sequence[RunFolder]
) -> dict[str, Scores | None]:
    """Save the models of some runs as one, and return its metrics for validation and test."""
    bundles = [load_bundle(member.model) for member in members]
    model = Ensemble([bundle.model for bundle in bundles]).eval()
    data = RunData(experiment, run.read_fitted())
    save_bundle(
        run.model,
        model,
        bundles[0].transform,
        bundles[0].section,
        table_optimizer(experiment.training),
        {FILE_NAME: dump_experiment(data.experiment)},
    )
    tasks = tasks_of(experiment)
    return {
        split: None if batches is None else _measured(model, tasks, batches)
        for split, batches in (("valid", data.valid), ("test", data.test))
    }


def _measured(model: Ensemble, tasks: Sequence[Task], batches: Loader) -> Scores:
    return evaluate(model, tasks, batches, lambda batch: batch).report.to_json()


def _with_seed(experiment: Experiment, seed: int) -> Experiment:
    """Return the experiment of one seed; the baselines stand beside the first, and so beside all."""
    options = experiment.training
    changes: dict[str, object] = {"seed": seed, "seeds": 1, "ensemble": False}
    if seed != options.seed:
        changes["baselines"] = False
    return experiment.model_copy(update={"training": options.model_copy(update=changes)})


def joined(seeds: Sequence[int], results: Sequence[RunResult]) -> RunResult:
    """Return the result of several runs: means of their metrics, with sample standard deviations.

    Args:
        seeds: of the runs; two or more.
        results: of the runs, likewise.
    """
    means: dict[str, Scores | None] = {}
    deviations: dict[str, Scores | None] = {}
    for split in SPLITS:
        found = [getattr(result, split) for result in results]
        means[split] = _of_each(found, fmean)
        deviations[split] = _of_each(found, stdev)
    first, threads = results[0], {result.threads for result in results}
    return RunResult(
        train=means["train"] or {},
        valid=means["valid"],
        test=means["test"],
        samples_per_second=round(fmean(result.samples_per_second for result in results), 1),
        seconds=round(sum(result.seconds for result in results), 3),
        peak_rss_bytes=max(result.peak_rss_bytes or 0 for result in results) or None,
        steps=_sum([result.steps for result in results]),
        epochs=_sum([result.epochs for result in results]),
        samples=_sum([result.samples for result in results]),
        threads=threads.pop() if len(threads) == 1 else None,
        notes=tuple(
            f"seed {seed}: {note}"
            for seed, result in zip(seeds, results, strict=True)
            for note in result.notes
        ),
        baselines=first.baselines,
        seeds=tuple(seeds),
        deviation=deviations,
    )


def _of_each(
    found: Sequence[Scores | None], combine: Callable[[list[float]], float]
) -> Scores | None:
    """Combine the values of each metric; one that some run could not measure is None."""
    scores = [one for one in found if one is not None]
    if len(scores) < len(found):
        return None
    combined: Scores = {}
    for name in scores[0]:
        values = [one[name] for one in scores if one.get(name) is not None]
        numbers = [value for value in values if value is not None]
        combined[name] = combine(numbers) if len(numbers) == len(scores) else None
    return combined


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
