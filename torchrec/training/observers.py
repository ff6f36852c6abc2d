"""Who is told how training goes: the log of a run, TensorBoard, and whoever implements `Observer`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torchrec.metrics import Report
from torchrec.runs import MetricsFile


@dataclass(frozen=True)
class Extent:
    """How much training there is to do.

    Attributes:
        steps: in all; None if not known before the data is read.
        samples: in all; None if not known.
        epochs: passes over the data, at most.
        step: steps taken before, by a run that is taken up.
        resumed_samples: samples seen before.
    """

    steps: int | None
    samples: int | None
    epochs: int
    step: int = 0
    resumed_samples: int = 0


@dataclass(frozen=True)
class Record:
    """What was measured: of training since the record before, of other splits over all of their data.

    Attributes:
        split: ``"train"``, ``"valid"`` or ``"test"``.
        step: steps taken.
        epoch: passes over the data, with the fraction of this one where its length is known.
        samples: training samples seen.
        seconds: of training so far, with evaluations and checkpoints.
        loss: mean of the training loss; of other splits the mean over their samples.
        report: the metrics.
        learning_rate: of the dense parameters.
        samples_per_second: of this split.
        time: share of reading, lookup, dense, optimizer in the time of the steps.
        ids: counts of ids and values that were not as they should be, as of the other measures.
    """

    split: str
    step: int
    epoch: float
    samples: int
    seconds: float
    loss: float
    report: Report
    learning_rate: float
    samples_per_second: float
    time: Mapping[str, float] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as a line of ``metrics.jsonl`` has it."""
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.epoch, 4),
            "samples": self.samples,
            "seconds": round(self.seconds, 3),
            "split": self.split,
            "loss": self.loss if math.isfinite(self.loss) else None,
            **{
                name: value if math.isfinite(value) else None for name, value in self.report.items()
            },
            "learning_rate": self.learning_rate,
            "samples_per_second": round(self.samples_per_second, 1),
        }
        if self.time:
            line["time"] = {phase: round(share, 4) for phase, share in self.time.items()}
        if self.ids:
            line["ids"] = dict(self.ids)
        return line


def check_metric_names(report: Report) -> None:
    """Refuse metrics whose names a line of the log has for something else.

    Args:
        report: any with these names, as of no data.

    Raises:
        ValueError: if there is one.
    """
    own = {each.name for each in fields(Record)} | {"checksum"}
    for name in report:
        if name in own:
            raise ValueError(
                f"Metrics should have other names than the fields of a record ({', '.join(sorted(own))})."
                f" Received '{name}'."
            )


class Observer:
    """Is told how training goes; a subclass implements what it wants to know.

    ``ended`` comes once, after everything else of training, to each that ``started`` came to. ``state_dict`` goes
    into checkpoints, so that an observer can go on where it was.
    """

    def started(self, extent: Extent) -> None:
        """Training begins, or goes on."""

    def stepped(self, step: int, samples: int) -> None:
        """A step has been taken; called every time, so it should be quick."""

    def began(self, activity: str) -> None:
        """Something else than steps begins that can take its time, such as "evaluating on valid".

        What comes before ``started`` and after ``ended`` is of a run, not of training: "reading the
        data", "saving the model".
        """

    def recorded(self, record: Record) -> None:
        """Something has been measured."""

    def said(self, message: str) -> None:
        """Something happened that a person wants to know."""

    def ended(self) -> None:
        """Training is over, or broke off."""

    def state_dict(self) -> dict[str, Any]:
        """Return what to go on from."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where a checkpoint was written; empty: to the beginning."""


class Observers(Observer):
    """Several observers as one.

    Args:
        observers: each is told everything, in this order.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)
        self._started: list[Observer] = []

    def started(self, extent: Extent) -> None:
        """Training begins, or goes on."""
        for observer in self._observers:
            self._started.append(observer)
            observer.started(extent)

    def stepped(self, step: int, samples: int) -> None:
        """A step has been taken."""
        for observer in self._observers:
            observer.stepped(step, samples)

    def began(self, activity: str) -> None:
        """Something begins that can take its time."""
        for observer in self._observers:
            observer.began(activity)

    def recorded(self, record: Record) -> None:
        """Something has been measured."""
        for observer in self._observers:
            observer.recorded(record)

    def said(self, message: str) -> None:
        """Something happened that a person wants to know."""
        for observer in self._observers:
            observer.said(message)

    def ended(self) -> None:
        """Training is over, or broke off; each that was started is told, whatever happens in another."""
        started, self._started = self._started, []
        with ExitStack() as stack:
            for observer in reversed(started):
                stack.callback(observer.ended)

    def state_dict(self) -> dict[str, Any]:
        """Return what each goes on from, with its type."""
        return {
            "observers": [
                {"type": type(each).__name__, "state": each.state_dict()}
                for each in self._observers
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each the first state of its type that none before it took; empty: to the beginning.

        There may be other observers than when the state was saved.
        """
        saved = list(state.get("observers", ()))
        for observer in self._observers:
            own = next((one for one in saved if one["type"] == type(observer).__name__), None)
            observer.load_state_dict({} if own is None else own["state"])
            if own is not None:
                saved.remove(own)


class MetricsLog(Observer):
    """Appends a line to a `torchrec.runs.MetricsFile` for each record.

    A run that is taken up drops the lines after its checkpoint.

    Args:
        path: of the file; it is made when the first line is written.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = MetricsFile(path)
        self.path = self._file.path

    def recorded(self, record: Record) -> None:
        """Append a line."""
        self._file.append(record.to_json())

    def state_dict(self) -> dict[str, Any]:
        """Return how long the file is, with all of it on the disk."""
        return {"bytes": self._file.sync()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut off what was written after the checkpoint.

        Raises:
            ValueError: if the file is shorter than it was then.
        """
        self._file.truncate(state.get("bytes", 0))


class TensorBoard(Observer):
    """Writes what is measured as TensorBoard events.

    Args:
        folder: of the events.

    Raises:
        ValueError: if TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "TensorBoard should be installed to write its events. Received none: "
                "pip install tensorboard."
            ) from None
        self._make: Any = SummaryWriter
        self._folder = str(folder)
        self._writer: Any = None

    def started(self, extent: Extent) -> None:
        """Begin a file of events; what other files have after the checkpoint does not count."""
        self._writer = self._make(self._folder, purge_step=extent.step + 1 if extent.step else None)

    def recorded(self, record: Record) -> None:
        """Write all numbers."""
        for name, value in record.to_json().items():
            values = value if isinstance(value, dict) else {"": value}
            for part, number in values.items():
                if isinstance(number, int | float) and name not in ("step", "samples"):
                    tag = f"{record.split}/{name}{'/' if part else ''}{part}"
                    self._writer.add_scalar(tag, number, record.step)

    def ended(self) -> None:
        """Bring everything to the file."""
        if self._writer is not None:
            self._writer.flush()
