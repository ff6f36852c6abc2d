"""The trials of a search: what was tried, and what came of it; a line each in a file that only grows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from torchrec.files import DamagedError, json_with_checksum, parse_json
from torchrec.tuning.space import Value

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One training with other options.

    Attributes:
        number: from 1; the first is the experiment as it is.
        state: complete; pruned, as others did better at the same evaluation; or failed.
        values: what was tried, by key; empty for the experiment as it is.
        value: what is maximised; of a pruned trial its last; None of a failed one.
        metrics: of the validation data, with the weights that the value is of.
        curve: the value at each evaluation.
        steps: updates made.
        seconds: how long it took.
        reason: why it failed.
    """

    number: int
    state: State
    values: Mapping[str, Value]
    value: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[float] = ()
    steps: int = 0
    seconds: float = 0.0
    reason: str = ""


class TrialsFile:
    """``trials.jsonl``: a trial a line, each with a checksum.

    A line that was being written when the process was killed is dropped, and its trial made again.

    Args:
        path: of the file; made with the first line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, trial: Trial) -> None:
        """Write a trial, and bring it to the disk."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json_with_checksum(asdict(trial)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Trial]:
        """Return the trials in order; what is left of half a line is cut off.

        Raises:
            ValueError: a line is damaged.
        """
        text = self.path.read_bytes() if self.path.is_file() else b""
        whole, _, rest = text.rpartition(b"\n")
        if rest:
            os.truncate(self.path, len(text) - len(rest))
        return [self._trial(line, number) for number, line in enumerate(whole.splitlines(), 1)]

    def _trial(self, line: bytes, number: int) -> Trial:
        try:
            return Trial(**parse_json(line))  # type: ignore[arg-type]
        except (ValueError, TypeError) as error:
            raise DamagedError(self.path, f"line {number}: {error}") from None


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the complete trial with the largest value, the first of several; None without any."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    return max(complete, key=lambda trial: trial.value or 0.0, default=None)
