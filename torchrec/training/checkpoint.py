"""Checkpoints: written beside, then renamed, so that there is a whole one at any moment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from torchrec.files import (
    INDEX,
    DamagedError,
    FolderIndex,
    check_files,
    clear_remains,
    parse_json,
    read_index,
    read_json,
    remove_folder,
    write_folder,
    write_tensors,
)
from torchrec.state_tree import join_state, split_state

FORMAT = 2
"""The format that is written. 1: without an index, and only the tensors had a digest."""

_STATE, _TENSORS = "state.json", "tensors.safetensors"
_FULL, _BEST = "step", "best"


class Checkpoints:
    """The checkpoints of a run in a folder: ``step-XXXXXXXX``, the last few of them.

    Each is a folder with tensors as safetensors, the rest as JSON, and an index with digests of both;
    nothing is unpickled. It is written whole (`torchrec.files.write_folder`): what is there under its
    name is complete, whenever the process is killed and whether or not the disk is full, and a bit
    that changed since is noticed.

    ``best-XXXXXXXX`` holds the weights that early stopping returns to.

    Args:
        folder: is made when the first checkpoint is written.
        keep: how many of the last ones are kept. Default 2.

    Raises:
        ValueError: if ``keep`` is below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     for step in (10, 20, 30):
        ...         _ = checkpoints.save(step, {"weight": torch.full((2,), float(step))})
        ...     checkpoints.steps(), checkpoints.load(checkpoints.latest())["weight"]
        ([20, 30], tensor([30., 30.]))
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"`keep` should be at least 1. Received {keep}.")
        self.folder = Path(folder)
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps that there are checkpoints of, in order."""
        return self._numbers(_FULL)

    def latest(self) -> int | None:
        """Return the step of the last checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def is_of_one_process(self, step: int) -> bool:
        """Return whether a checkpoint is one that this writes; ranks write tensors in many files.

        Args:
            step: of the checkpoint.
        """
        index = self._index(self._path(_FULL, step))
        return _TENSORS in index.files

    def save(self, step: int, state: Mapping[str, Any], best: int | None = None) -> Path:
        """Write a checkpoint, then remove those beyond ``keep``.

        Args:
            step: steps taken.
            state: nested dictionaries of tensors, numbers and strings.
            best: the step of the best weights so far; these stay while a checkpoint needs them.

        Raises:
            OSError: if it cannot be written, as on a full disk. Those there were are whole.
        """
        path = self._write(_FULL, step, state, best)
        self.tidy()
        return path

    def tidy(self) -> None:
        """Remove checkpoints beyond ``keep``, weights that none of the others needs, and remains."""
        clear_remains(self.folder)
        kept = self.steps()[-self.keep :]
        gone = [self._path(_FULL, number) for number in self.steps() if number not in kept]
        needed = set[object]().union(*(self._needed(one, one == kept[-1]) for one in kept))
        gone += [
            self._path(_BEST, number) for number in self._numbers(_BEST) if number not in needed
        ]
        for path in gone:
            remove_folder(path)

    def _needed(self, step: int, is_last: bool) -> set[object]:
        """Return the steps of the best weights that a checkpoint needs."""
        try:
            return {self._index(self._path(_FULL, step)).facts["best"]}
        except ValueError:
            if is_last:
                raise
            # One goes on from the last, whatever became of those before. As long as it is not known
            # what they need, all weights stay.
            return set(self._numbers(_BEST))

    def load(self, step: int, into: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the state of a checkpoint, tensors on the CPU.

        Args:
            step: of the checkpoint.
            into: without effect: what is read has memory of its own.

        Raises:
            ValueError: if it is not there, or damaged; it names the folder.
        """
        return self._read(_FULL, step)

    def load_rest(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint has beside tensors, of which there are only names; one of ranks as well.

        Args:
            step: of the checkpoint.

        Raises:
            ValueError: if it is not there, or damaged; it names the folder.
        """
        return self._read_rest(_FULL, step)

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Write the best weights so far; former ones stay until a checkpoint supersedes them."""
        self._write(_BEST, step, weights, None)

    def load_best(self, step: int, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the best weights.

        Args:
            step: of the weights.
            into: without effect: what is read has memory of its own.

        Raises:
            ValueError: if they are not there, or damaged; it names the folder.
        """
        return self._read(_BEST, step)

    def _path(self, kind: str, step: int) -> Path:
        return self.folder / f"{kind}-{step:08d}"

    def _numbers(self, kind: str) -> list[int]:
        found = self.folder.iterdir() if self.folder.is_dir() else iter(())
        matches = (re.fullmatch(rf"{kind}-(\d{{8,}})", path.name) for path in found)
        return sorted(int(match[1]) for match in matches if match)

    def _write(self, kind: str, step: int, state: Mapping[str, Any], best: int | None) -> Path:
        path = self._path(kind, step)
        rest, tensors = split_state(state)
        what = f"The checkpoint of step {step}"
        with write_folder(path, format=FORMAT, facts={"best": best}, what=what) as beside:
            write_tensors(beside / _TENSORS, tensors)
            (beside / _STATE).write_text(json.dumps(rest, allow_nan=False), "utf-8")
        return path

    def _read(self, kind: str, step: int) -> dict[str, Any]:
        from safetensors.torch import load_file

        rest = self._read_rest(kind, step)
        state = join_state(rest, load_file(self._path(kind, step) / _TENSORS))
        assert isinstance(state, dict)
        return state

    def _read_rest(self, kind: str, step: int) -> dict[str, Any]:
        path = self._path(kind, step)
        if not path.is_dir():
            raise ValueError(
                f"`step` should be one of {self._numbers(kind)}, of which '{self.folder}' has a "
                f"checkpoint. Received {step}."
            )
        index = self._index(path)
        try:
            check_files(path, index)
        except DamagedError as error:
            raise _damaged(error) from None
        try:
            rest: dict[str, Any] = read_json((path / _STATE).read_bytes())
        except ValueError as error:
            raise _damaged(DamagedError(path / _STATE, str(error))) from None
        return rest

    def _index(self, path: Path) -> FolderIndex:
        """Return what a checkpoint says of itself; refuse one that this version does not read."""
        try:
            index = read_index(path)
        except DamagedError as error:
            raise _damaged(error) from None
        except FileNotFoundError:
            if _is_of_format_1(path / _STATE):
                raise _other_format(path, 1, "earlier builds of rowwise 0.1.0") from None
            raise _damaged(DamagedError(path / INDEX, "it is missing")) from None
        if index.format != FORMAT:
            raise _other_format(path, index.format, index.written_by)
        return index


def _is_of_format_1(state: Path) -> bool:
    try:
        return "version" in parse_json(state.read_bytes())
    except (OSError, ValueError):
        return False


def _damaged(error: DamagedError) -> ValueError:
    folder = error.path.parent
    kind, _, step = folder.name.partition("-")
    remedy = f"To go on from the checkpoint before, remove '{folder}'."
    if kind == _BEST:
        remedy = (
            f"Checkpoints from step {int(step)} on need it: to go on from one before, remove them."
        )
    return ValueError(f"Checkpoint file {error} {remedy}")


def _other_format(path: Path, format: int, written_by: str) -> ValueError:
    return ValueError(
        f"Checkpoint '{path}' should be of format {FORMAT}. Received format {format}, which "
        f"{written_by} wrote: go on with the version that wrote it, or start a new run."
    )
