"""The files of a run's folder by name."""

from __future__ import annotations

import os
from pathlib import Path

from torchrec.files import FileDigest, digest_of, write_file
from torchrec.runs.fitted import Fitted, read_fitted, write_fitted
from torchrec.runs.outcome import (
    RunReport,
    RunResult,
    parse_report,
    parse_result,
    report_json,
    result_json,
)

_MEMBER = "seed-"


class RunFolder:
    """Where things are in the folder of a run, and what writes and reads them.

    Nothing else spells these names. ``result.json`` is written last: a run that has it is complete.

    Args:
        path: of the folder.

    Attributes:
        path: of the folder.
        experiment: the experiment with every default written out.
        metrics: what was measured while training, an object a line.
        checkpoints: where they are.
        fitted: what was learned of the data before training.
        model: the bundle.
        report: what the page shows beside metrics and result.
        page: the report for people.
        result: the figures in the end.
        tensorboard: events, if they were asked for.

    Example:
        >>> RunFolder("runs/first").result.as_posix()
        'runs/first/result.json'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.experiment = self.path / "experiment.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.fitted = self.checkpoints / "transform"
        self.model = self.path / "model"
        self.report = self.path / "report.json"
        self.page = self.path / "report.html"
        self.result = self.path / "result.json"
        self.tensorboard = self.path / "tensorboard"

    def member(self, seed: int) -> RunFolder:
        """Return the folder of one seed, in that of a run with several."""
        return RunFolder(self.path / f"{_MEMBER}{seed}")

    def members(self) -> list[RunFolder]:
        """Return the folders of the seeds of a run with several, by seed; none of a single one."""
        found = self.path.glob(f"{_MEMBER}*") if self.path.is_dir() else ()
        seeds = [path.name.removeprefix(_MEMBER) for path in found if path.is_dir()]
        return [self.member(seed) for seed in sorted(int(seed) for seed in seeds if seed.isdigit())]

    def single(self) -> str:
        """Say which run to take where one with several seeds cannot be; empty for a single one."""
        members = self.members()
        if not members:
            return ""
        return (
            f"it is of {len(members)} seed{'s' if len(members) > 1 else ''}, each of which is a run: "
            f"take one, as '{members[0].path}'"
        )

    def has_begun(self) -> bool:
        """Return whether a run has left anything here."""
        return self.experiment.exists() or self.checkpoints.exists()

    def has_ended(self) -> bool:
        """Return whether the run here is complete."""
        return self.result.exists()

    def write_experiment(self, text: str) -> None:
        """Write the experiment, unless it is there: a run that is resumed keeps it as it was."""
        if not self.experiment.exists():
            write_file(self.experiment, text, durable=True)

    def write_fitted(self, fitted: Fitted) -> None:
        """Write what was learned of the data."""
        write_fitted(self.fitted, fitted)

    def read_fitted(self) -> Fitted:
        """Return what was learned of the data.

        Raises:
            ValueError: it is not there, damaged, or of another version.
        """
        return read_fitted(self.fitted)

    def write_report(self, report: RunReport) -> None:
        """Write what the page shows beside metrics and result."""
        write_file(self.report, report_json(report), durable=True)

    def read_report(self) -> RunReport:
        """Return what the page shows beside metrics and result; empty before the run has ended.

        Raises:
            ValueError: the file is damaged.
        """
        return parse_report(self.report) if self.report.is_file() else RunReport()

    def write_result(self, result: RunResult) -> None:
        """Write the figures in the end, with the digest that `is_experiment_unchanged` goes by."""
        write_file(self.result, result_json(result, digest_of(self.experiment)), durable=True)

    def read_result(self) -> RunResult:
        """Return the figures in the end.

        Raises:
            FileNotFoundError: the run has not ended.
            ValueError: the file is damaged.
        """
        return parse_result(self.result)[0]

    def is_experiment_unchanged(self) -> bool:
        """Return whether the experiment reads as it did when the run ended; True where nothing tells."""
        written: FileDigest | None = parse_result(self.result)[1]
        return written is None or (
            self.experiment.is_file() and digest_of(self.experiment) == written
        )
