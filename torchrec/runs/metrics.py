"""What was measured while a run trained: ``metrics.jsonl``, an object a line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchrec.files import DamagedError, Json, json_with_checksum, parse_json
from torchrec.runs.outcome import numbers_of


@dataclass(frozen=True)
class MetricsLine:
    """One line: what was measured after so many samples.

    Attributes:
        split: ``"train"``, ``"valid"`` or ``"test"``.
        step: steps made.
        samples: training samples seen.
        seconds: of training so far.
        values: the metrics by name; what is not defined is missing.
        time: share of the time of a step by phase.
        ids: counts of unusual ids and values.
    """

    split: str
    step: float
    samples: float
    seconds: float
    values: Mapping[str, float]
    time: Mapping[str, float]
    ids: Mapping[str, float]


class MetricsFile:
    """The file of metrics: lines are added at its end, and cut off where a run is resumed.

    Args:
        path: of the file; it is made when the first line is written.

    Example:
        >>> import tempfile
        >>> file = MetricsFile(Path(tempfile.mkdtemp()) / "metrics.jsonl")
        >>> file.append({"split": "train", "step": 50, "auc": 0.7})
        >>> file.read()[0].values
        {'auc': 0.7}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, line: Mapping[str, Json]) -> None:
        """Write a line, with a checksum."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json_with_checksum(line) + "\n")
        except OSError as error:
            raise OSError(
                error.errno, f"'{self.path}' should take another line. Received: {error.strerror}"
            ) from error

    def sync(self) -> int:
        """Bring the file to the disk, and return its length in bytes."""
        if not self.path.exists():
            return 0
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def truncate(self, length: int) -> None:
        """Cut off what lies behind a number of bytes.

        Raises:
            ValueError: the file is shorter.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < length:
            raise ValueError(
                f"'{self.path}' should have the {length} bytes that it had at the checkpoint. "
                f"Received {size}."
            )
        if size:
            os.truncate(self.path, length)

    def read(self, ended: bool = False) -> list[MetricsLine]:
        """Return one line a split and step, in order of steps; a run that was resumed repeats some.

        Args:
            ended: no process writes any more, so the last line is complete, too. Default False.

        Raises:
            ValueError: a line is damaged.
        """
        found: dict[tuple[str, float], MetricsLine] = {}
        text = self.path.read_bytes() if self.path.is_file() else b""
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                read = _line(parse_json(line), number)
            except ValueError as error:
                if number == len(lines) and not ended and not line.endswith(b"\n"):
                    break  # it is being written
                raise DamagedError(self.path, f"line {number}: {error}") from None
            # The last of those of one step holds.
            found.pop((read.split, read.step), None)
            found[read.split, read.step] = read
        return sorted(found.values(), key=lambda line: line.step)


def _line(found: dict[str, Json], number: int) -> MetricsLine:
    values = numbers_of(found)
    step = values.pop("step", float(number))
    return MetricsLine(
        split=str(found.get("split", "train")),
        step=step,
        samples=values.pop("samples", step),
        seconds=values.pop("seconds", 0.0),
        values=values,
        time=numbers_of(found.get("time")),
        ids=numbers_of(found.get("ids")),
    )
