"""Checkpoints: written beside, then renamed, so that there is a whole one at any moment."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from torchrec.files import open_to_others, sync, write_file
from torchrec.training._tree import Json, join_state, split_state

_VERSION = 1
_STATE, _TENSORS = "state.json", "tensors.safetensors"
_CHUNK = 1 << 24
_FULL, _BEST, _BESIDE = "step", "best", ".writing-"


class Checkpoints:
    """The checkpoints of a run in a folder: ``step-XXXXXXXX``, the last few of them.

    Each is a folder with tensors as safetensors and the rest as JSON; nothing is unpickled. It is
    written under another name, brought to the disk, and renamed. So what is there under its name is
    whole, whenever the process is killed and whether or not the disk is full.

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
        kept = self.steps()[-self.keep :]
        needed = {self._read_json(self._path(_FULL, number))["best"] for number in kept}
        gone = [self._path(_FULL, number) for number in self.steps() if number not in kept]
        gone += [
            self._path(_BEST, number) for number in self._numbers(_BEST) if number not in needed
        ]
        for path in gone:
            # The name goes first, so that nobody takes what is left for whole.
            path.rename(self.folder / f"{_BESIDE}{path.name}")
        for left in self.folder.glob(f"{_BESIDE}*"):
            shutil.rmtree(left)

    def load(self, step: int) -> dict[str, Any]:
        """Return the state of a checkpoint, tensors on the CPU.

        Raises:
            ValueError: if it is not there, or damaged; it names the folder.
        """
        return self._read(_FULL, step)

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Write the best weights so far; former ones stay until a checkpoint supersedes them."""
        self._write(_BEST, step, weights, None)

    def load_best(self, step: int) -> dict[str, Tensor]:
        """Return the best weights.

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
        beside = self.folder / f"{_BESIDE}{path.name}"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            rest, tensors = split_state(state)
            digest = _write_tensors(beside / _TENSORS, tensors)
            content: dict[str, Json] = {
                "version": _VERSION, "best": best, "tensors": digest, "state": rest
            }  # fmt: skip
            write_file(beside / _STATE, json.dumps(content, allow_nan=False), durable=True)
            if path.exists():  # a run that was taken up before this step comes by again
                path.rename(self.folder / f"{_BESIDE}former-{path.name}")
            beside.rename(path)
            sync(self.folder)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise OSError(
                error.errno,
                f"The checkpoint of step {step} should fit into '{self.folder}'. Received: "
                f"{error.strerror or error}. Checkpoints written before are whole",
            ) from error
        return path

    def _read(self, kind: str, step: int) -> dict[str, Any]:
        path = self._path(kind, step)
        if not path.is_dir():
            raise ValueError(
                f"`step` should be one of {self._numbers(kind)}, of which '{self.folder}' has a "
                f"checkpoint. Received {step}."
            )
        content = self._read_json(path)
        tensors = _read_tensors(path / _TENSORS, content["tensors"])
        try:
            state = join_state(content["state"], tensors)
        except KeyError as error:
            raise _damaged(path / _STATE, f"tensor {error} is missing") from None
        assert isinstance(state, dict)
        return state

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads((path / _STATE).read_text("utf-8"))
            version = content["version"]
            missing = {"best", "tensors", "state"} - content.keys()
            if version == _VERSION and missing:
                raise ValueError(f"{sorted(missing)} is missing")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path / _STATE, str(error)) from None
        if version != _VERSION:
            raise ValueError(
                f"Checkpoint '{path}' should be of version {_VERSION}. Received version {version}: "
                "go on with the version of this library that wrote it."
            )
        return dict(content)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Json]:
    """Write safetensors and bring them to the disk; return their size and checksum."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path)
        open_to_others(path)
    except SafetensorError as error:
        # The library gives errors of the system as text, with their number in it.
        number = re.search(r"(?:os error |code: )(\d+)", str(error))
        if number is None:
            raise OSError(None, str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    sync(path)
    return _digest(path)


def _read_tensors(path: Path, digest: dict[str, Json]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        received = _digest(path)
        if received != digest:
            raise _damaged(path, f"it should be {digest}, and is {received}")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None


def _digest(path: Path) -> dict[str, Json]:
    checksum = 0
    with open(path, "rb") as file:
        read: Callable[[], bytes] = lambda: file.read(_CHUNK)  # noqa: E731
        for chunk in iter(read, b""):
            checksum = zlib.crc32(chunk, checksum)
        size = file.tell()
    return {"bytes": size, "crc32": checksum}


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(
        f"Checkpoint file '{path}' should be as it was written. It is damaged ({why}): remove its "
        "folder to go on from the checkpoint before."
    )
