"""The progress line: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, TextIO

from torchrec.checks import printable
from torchrec.metrics import Report
from torchrec.metrics.interval import metric_text
from torchrec.training.observers import Extent, Observer, Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_REFRESH = 0.1  # seconds
_SHORT = {"ne": "NE", "auc": "AUC"}


def progress_observer(stream: TextIO | None = None) -> Observer:
    """Return the observer that suits a stream: a live line for a terminal, else plain lines.

    Args:
        stream: Default: standard output.
    """
    from rich.console import Console

    console = Console(file=stream or sys.stdout, highlight=False)
    return LiveLine(console) if console.is_terminal else PlainLines(stream or sys.stdout)


def describe(record: Record) -> str:
    """Return the metrics of a record in a line."""
    parts = [f"loss {metric_text(record.loss)}"]
    for name, value in _headline(record.report).items():
        task, _, metric = name.rpartition(".")
        parts.append(f"{task} {_SHORT.get(metric, metric)} {metric_text(value)}".lstrip())
    if record.split == "train":
        parts.insert(0, f"{record.samples_per_second:,.0f} samples/s")
    ids = dict(record.ids)
    hits, collided = ids.pop("hits", 0), ids.get("collided", 0)
    if hits + collided:
        parts.append(f"hit rate {hits / (hits + collided):.1%}")
    parts += [f"{name.replace('_', ' ')} {count:,}" for name, count in ids.items() if count]
    return "  ".join(parts)


def _headline(report: Report) -> dict[str, float]:
    """Return the metrics that a line has room for: NE and AUC where there are any, else all."""
    short = {name: value for name, value in report.items() if name.rpartition(".")[2] in _SHORT}
    return short or dict(report)


def duration(seconds: float) -> str:
    """Return a time in words of clocks.

    Example:
        >>> duration(59), duration(3601)
        ('0:59', '1:00:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainLines(Observer):
    """Writes a line for each record, and one when training starts.

    Args:
        stream: to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._extent = Extent(None, None, 1)
        self._began = (0.0, 0)
        self._trains = False

    def started(self, extent: Extent) -> None:
        """Say what is about to happen."""
        self._extent, self._trains = extent, True
        self._began = (monotonic(), extent.step)
        steps = "an unknown number of" if extent.steps is None else f"{extent.steps:,}"
        after = f", {extent.step:,} of them done" if extent.step else ""
        self.said(f"training for {steps} steps{after}")

    def began(self, activity: str) -> None:
        """Say what is done before and after training; in between, lines come often enough."""
        if not self._trains:
            self.said(f"{activity} ...")

    def ended(self) -> None:
        """Lines come no more of themselves."""
        self._trains = False

    def recorded(self, record: Record) -> None:
        """Write a line."""
        left = ""
        began, step = self._began
        if record.split == "train" and self._extent.steps and record.step > step:
            pace = (monotonic() - began) / (record.step - step)
            left = f"  {duration(pace * (self._extent.steps - record.step))} left"
        of = f"/{self._extent.steps:,}" if self._extent.steps else ""
        self.said(f"step {record.step:,}{of}  {record.split:5}  {describe(record)}{left}")

    def said(self, message: str) -> None:
        """Write a message, as one line."""
        print(printable(message), file=self._stream, flush=True)


class LiveLine(Observer):
    """Keeps one line up to date; evaluations and messages scroll by above it.

    Args:
        console: of rich, on a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._shown = 0.0
        self._metrics = ""  # of training, as last recorded

    def started(self, extent: Extent) -> None:
        """Show the line."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(
            "", total=extent.steps, completed=extent.step, metrics=""
        )
        self._progress.start()

    def stepped(self, step: int, samples: int) -> None:
        """Move on, at most ten times a second."""
        now = monotonic()
        if now - self._shown > _REFRESH and self._progress and self._task is not None:
            self._shown = now
            self._progress.update(self._task, completed=step, metrics=self._metrics)

    def began(self, activity: str) -> None:
        """Say in the line what the steps wait for, until they go on; without one, write it."""
        if self._progress is None:
            self.said(f"{activity} ...")
        if self._progress and self._task is not None:
            self._shown = 0.0
            self._progress.update(self._task, metrics=f"{activity} ...", refresh=True)

    def recorded(self, record: Record) -> None:
        """Show the metrics of training in the line, those of evaluations above it."""
        if record.split == "train" and self._progress and self._task is not None:
            self._metrics = printable(describe(record))
            self._progress.update(self._task, completed=record.step, metrics=self._metrics)
        else:
            self.said(f"{record.split} after step {record.step:,}  {describe(record)}")

    def said(self, message: str) -> None:
        """Write a message above the line."""
        self._console.print(printable(message), highlight=False, markup=False)

    def ended(self) -> None:
        """Take the line away."""
        if self._progress is not None:
            if self._task is not None:
                self._progress.update(self._task, metrics=self._metrics)
            with suppress(ValueError):
                self._progress.stop()
            self._progress = None
