"""Read what a run left in its folder, as far as it has come."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torchrec.runs.folder import RunFolder
from torchrec.runs.metrics import MetricsFile, MetricsLine
from torchrec.runs.outcome import SPLITS, RunResult, TableFacts, numbers_of


@dataclass(frozen=True)
class Run:
    """A run as far as its folder tells; one that is young or broke off lacks some of it.

    Attributes:
        name: of the folder.
        lines: what was measured, by step.
        scores: at the end, by split and metric.
        facts: other figures at the end: ``seconds``, ``samples_per_second``, ``peak_rss_bytes``…
        tables: the embedding tables at the end.
        curves: how scores and labels go together at the end, by name.
        ranks: figures of each process, of a run of several.
        plan: where each table was, of a run of several processes.
        configuration: the experiment file.
        notes: what is missing, or not as it was.
        result: all figures at the end; None before.
    """

    name: str
    lines: list[MetricsLine]
    scores: dict[str, dict[str, float]]
    facts: dict[str, float]
    tables: list[TableFacts]
    curves: Mapping[str, list[float]]
    configuration: str
    notes: list[str] = field(default_factory=list)
    result: RunResult | None = None
    ranks: Sequence[Mapping[str, float]] = ()
    plan: Mapping[str, str] = field(default_factory=dict)

    def series(self, split: str, metric: str) -> tuple[list[float], list[float]]:
        """Return the numbers of samples seen, and the metric there."""
        found = [line for line in self.lines if line.split == split and metric in line.values]
        return [line.samples for line in found], [line.values[metric] for line in found]


def _of_ensemble(result: RunResult) -> list[str]:
    """Say what the mean of the members' logits reached, where there is one."""
    found = result.ensemble
    split = next((name for name in reversed(SPLITS) if found.get(name)), "")
    scores = numbers_of(found.get(split))
    if not scores:
        return []
    shown = ", ".join(
        f"{key} {scores[key]:.4f}" for key in ("auc", "logloss", "ne") if key in scores
    )
    return [f"The model is the mean of their logits, with {shown} on {split}."]


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read the folder of a run; files that are not there (yet) are left out and noted.

    Args:
        path: of the folder.

    Raises:
        ValueError: it is not that of a run, or one of its files is damaged.
    """
    folder = RunFolder(path)
    if not folder.metrics.is_file() and not folder.has_ended():
        if folder.members():
            raise ValueError(
                f"The run in '{path}' should have ended. Received one that has not: {folder.single()}."
            )
        raise ValueError(
            f"'{path}' should be the folder of a run, with {folder.metrics.name} or "
            f"{folder.result.name}. Received a folder without them."
            if folder.path.is_dir()
            else f"'{path}' should be the folder of a run. Received no such folder."
        )
    notes: list[str] = []
    result = folder.read_result() if folder.has_ended() else None
    if result is not None:
        if not folder.is_experiment_unchanged():
            notes.append("The configuration was changed after the run: it may be of another one.")
        if folder.members():
            seeds = ", ".join(member.path.name for member in folder.members())
            notes.append(
                f"Metrics are means over seeds, each of which is a run of its own: {seeds}."
            )
            notes += _of_ensemble(result)
    else:
        notes.append("This run has not ended: there is no result yet.")
    report = folder.read_report()
    figures = {} if result is None else asdict(result)
    scores = {split: numbers_of(figures.get(split)) for split in SPLITS}
    shown = folder.experiment
    return Run(
        name=folder.path.resolve().name,
        lines=MetricsFile(folder.metrics).read(ended=folder.has_ended()),
        scores={split: values for split, values in scores.items() if values},
        facts=numbers_of(figures),
        tables=report.tables,
        curves=report.curves,
        configuration=shown.read_text("utf-8", "replace") if shown.is_file() else "",
        notes=notes,
        result=result,
        ranks=report.ranks,
        plan=report.plan,
    )
