"""Checkpoints of several ranks: whole or not there, for any plan and number of ranks, and never unpickled."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from torchrec.distributed.wire import Wire
from torchrec.files import (
    check_files,
    clear_remains,
    read_index,
    read_json,
    remove_folder,
    write_folder,
)
from torchrec.process_groups import timeout_of
from torchrec.state_tree import join_state, split_state, tensor_names

__all__ = ["SafetensorsWriter", "ShardedCheckpoints"]

T = TypeVar("T")

_FORMAT = 2  # that of `torchrec.training.Checkpoints`, whose tensors are in one file
_STATE = "state.json"
_FULL, _BEST = "step", "best"
# What ranks are at, for errors of those that wait.
_READING, _WRITING = "reading a checkpoint", "writing a checkpoint"
# Files become larger only if a part is: they are put together, and read, in memory.
_FILE_BYTES = 1 << 24


class SafetensorsWriter(HuggingFaceStorageWriter):
    """Has `torch.distributed.checkpoint` write safetensors, each rank its own parts.

    PyTorch's writer puts all that a rank has into one file, by name: of several parts of one tensor
    only the last would be there. This one begins a new file where a name comes again, or where a file
    becomes large.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(str(path), save_distributed=True)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give the files of each rank numbers of their own: every so-many-th."""
        return [
            replace(plan, storage_data={**plan.storage_data, "stride": len(plans)})
            for plan in super().prepare_global_plan(plans)
        ]

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        """Write what a rank has to write."""
        written: list[WriteResult] = []
        first, stride = plan.storage_data["shard_index"], plan.storage_data["stride"]
        for number, items in enumerate(_files(plan.items)):
            at = {**plan.storage_data, "shard_index": first + number * stride}
            written += (
                super().write_data(replace(plan, items=items, storage_data=at), planner).wait()
            )
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(written)
        return done


def _files(items: list[WriteItem]) -> list[list[WriteItem]]:
    """Return what goes into one file each: no name twice, and not much more than the largest part."""
    sizes = [item.tensor_storage_size() or 0 for item in items]
    most = max([_FILE_BYTES, *sizes])
    files: list[list[WriteItem]] = []
    names: set[str] = set()
    filled = 0
    for item, size in zip(items, sizes, strict=True):
        if not files or item.index.fqn in names or filled + size > most:
            files.append([])
            names, filled = set(), 0
        files[-1].append(item)
        names.add(item.index.fqn)
        filled += size
    return files


class ShardedCheckpoints:
    """The checkpoints of a run on several ranks in a folder: ``step-XXXXXXXX``, the last few of them.

    Each rank writes its parts of the tensors, as safetensors; the rest is JSON, and nothing is
    unpickled. A checkpoint gets its name when all ranks are done, and all of it is on the disk: what
    is there under its name is whole, whichever rank is killed, and a bit that changed since is
    noticed. It loads under any plan, on any number of ranks.

    All ranks make one, and call its methods, alike; the folder is one that all of them see. Without
    `torch.distributed` this process is the only rank.

    Args:
        folder: is made when the first checkpoint is written.
        keep: how many of the last ones are kept. Default 2.
        process_group: the ranks. Default: all. They get a group of their own, so that a checkpoint can
            be written while training goes on. A rank that gives no sign of life for longer than the `timeout` of this
            one, while others wait, is named by them.

    Raises:
        ValueError: if ``keep`` is below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = ShardedCheckpoints(folder)
        ...     for step in (10, 20, 30):
        ...         _ = checkpoints.save(step, {"weight": torch.full((2,), float(step)), "lr": 0.1})
        ...     checkpoints.steps(), checkpoints.load(30, {"weight": torch.empty(2), "lr": 0.0})
        ([20, 30], {'weight': tensor([30., 30.]), 'lr': 0.1})
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 2,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"`keep` should be at least 1. Received {keep}.")
        self.folder, self.keep = Path(folder), keep
        self._wire: Wire | None = None
        if dist.is_available() and dist.is_initialized():
            beside = process_group or dist.group.WORLD
            assert beside is not None
            ranks = dist.get_process_group_ranks(beside)
            self._wire = Wire(dist.new_group(ranks, timeout_of(beside), "gloo"))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def steps(self) -> list[int]:
        """Return the steps that there are checkpoints of, in order."""
        return self._on_first(self._steps, "listing checkpoints")

    def latest(self) -> int | None:
        """Return the step of the last checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Mapping[str, Any], best: int | None = None) -> Path:
        """Write a checkpoint, then remove those beyond ``keep``.

        Args:
            step: steps taken.
            state: nested dictionaries of tensors, sharded or the same on all ranks, numbers and strings.
                Of what is not sharded, one rank's is written.
            best: the step of the best weights so far; these stay while a checkpoint needs them. Default:
                it needs none.

        Returns:
            The folder of the checkpoint.

        Raises:
            OSError: if a rank cannot write, as on a full disk; on all ranks. Those there were are whole.
            ValueError, TypeError: for tensors of one name that differ in shape between ranks, and what JSON does not
                know; on all ranks.
        """
        self.wait()
        return self._save(step, state, best)

    def save_best(self, step: int, weights: Mapping[str, Any]) -> None:
        """Write the best weights so far; former ones stay until a checkpoint supersedes them.

        Args:
            step: steps taken.
            weights: see `save`.
        """
        self.wait()
        self._write(_BEST, step, weights, None)

    def load_best(self, step: int, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Read the best weights into others; see `load`.

        Args:
            step: of `save_best`.
            weights: that there are now.
        """
        return self._load(_BEST, step, weights, with_rest=True)

    def tidy(self) -> None:
        """Remove checkpoints beyond ``keep``, weights that none of the others needs, and remains."""
        self.wait()
        self._on_first(self._tidy, "tidying checkpoints")

    def save_later(self, step: int, state: Mapping[str, Any]) -> Future[Path]:
        """Copy a state, and write the copy while training goes on; one at a time.

        Args:
            step: steps taken.
            state: see `save`.

        Returns:
            What gives the folder, or the error, when it is written.
        """
        self.wait()
        self._pending = self._thread.submit(self._save, step, copy.deepcopy(dict(state)), None)
        return self._pending

    def wait(self) -> None:
        """Wait for what `save_later` writes, and raise its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(self, step: int, state: Mapping[str, Any], with_rest: bool = False) -> dict[str, Any]:
        """Read a checkpoint into a state.

        Tensors are written in place, so that a state dict reads into the memory of its model; beside
        them, no more is in memory than a part of one.

        Args:
            step: of the checkpoint.
            state: what is wanted: it may leave out some of what was saved.
            with_rest: return what it leaves out at the top as well, tensors in memory of their own. Default
                False.

        Returns:
            The state, with those tensors and what was saved beside them.

        Raises:
            ValueError: if the checkpoint is not there, is damaged, or lacks some of what is wanted.
        """
        return self._load(_FULL, step, state, with_rest)

    def _load(
        self, kind: str, step: int, state: Mapping[str, Any], with_rest: bool
    ) -> dict[str, Any]:
        self.wait()
        path = self._path(kind, step)
        saved = self._on_first(lambda: self._read(kind, step), _READING)
        known = tensor_names(saved)
        tensors = self._together(lambda: _wanted(state, known, path), _READING)
        if with_rest:
            unasked = tensor_names([saved[name] for name in saved if name not in state])
            tensors = self._together(lambda: _as_saved(tensors, unasked, path), _READING)
            resized: Any = join_state(split_state(state, copy_views=False)[0], tensors)
            state = resized
        with self._plainly(ValueError, f"Checkpoint '{path}' should be readable. Received: "):
            self._read_tensors(tensors, path)
        unread = torch.empty(0, device="meta")
        rest: Any = join_state(saved, {**dict.fromkeys(known, unread), **tensors})
        joined = self._together(lambda: _joined(state, rest, path), _READING)
        return {**rest, **joined} if with_rest else joined

    def _save(self, step: int, state: Mapping[str, Any], best: int | None) -> Path:
        path = self._write(_FULL, step, state, best)
        self._on_first(self._tidy, "tidying checkpoints")
        return path

    def _write(self, kind: str, step: int, state: Mapping[str, Any], best: int | None) -> Path:
        path, what = self._path(kind, step), f"The checkpoint of step {step}"
        tensors, text = self._together(lambda: _written(state), _WRITING)
        self._check_alike(tensors)
        with ExitStack() as stack:
            folder = write_folder(path, format=_FORMAT, facts={"best": best}, what=what)
            beside = self._on_first(lambda: stack.enter_context(folder), _WRITING)
            # The folder, which the first rank writes, says so by itself.
            prefix = f"{what} should be written to '{path}'. Received: " if self._rank else ""
            with self._plainly(OSError, prefix):
                self._write_tensors(tensors, beside)
            self._on_first(lambda: (beside / _STATE).write_text(text, "utf-8"), _WRITING)
            self._on_first(stack.close, _WRITING)  # all ranks have written: it gets its name
        return path

    def _check_alike(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse parts under one name, of which only one would be written: those of a rank's optimizer, say."""
        if self._wire is None:
            return
        of_ranks: list[dict[str, tuple[int, ...]]]
        shapes_of = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        of_ranks = self._wire.tell(shapes_of, "what they save in a checkpoint")
        for name in sorted(set[str]().union(*of_ranks)):
            found = [shapes.get(name) for shapes in of_ranks]
            if len({*found} - {None}) > 1:
                raise ValueError(
                    f"'{name}' should be sharded, or the same on all ranks; `ShardedOptimizer` shows the states "
                    f"of an optimizer so. Received tensors of the shapes {found}, by rank."
                )

    def _read(self, kind: str, step: int) -> Any:
        path = self._path(kind, step)
        if not path.is_dir():
            raise ValueError(
                f"`step` should be one of {self._steps(kind)}, of which '{self.folder}' has a checkpoint. "
                f"Received {step}."
            )
        index = read_index(path)
        if index.format != _FORMAT:
            raise ValueError(
                f"Checkpoint '{path}' should be of format {_FORMAT}. Received format {index.format}, "
                f"which {index.written_by} wrote."
            )
        check_files(path, index)
        return read_json((path / _STATE).read_bytes())

    def _tidy(self) -> None:
        clear_remains(self.folder)
        for step in self._steps()[: -self.keep]:
            remove_folder(self._path(_FULL, step))
        kept = [read_index(self._path(_FULL, step)).facts["best"] for step in self._steps()]
        for step in self._steps(_BEST):
            if step not in kept:
                remove_folder(self._path(_BEST, step))

    def _path(self, kind: str, step: int) -> Path:
        return self.folder / f"{kind}-{step:08d}"

    def _steps(self, kind: str = _FULL) -> list[int]:
        found = self.folder.iterdir() if self.folder.is_dir() else iter(())
        matches = (re.fullmatch(rf"{kind}-(\d{{8,}})", path.name) for path in found)
        return sorted(int(match[1]) for match in matches if match)

    @contextmanager
    def _plainly(self, kind: type[Exception], prefix: str) -> Iterator[None]:
        """Say of what fails while tensors are written or read, on all ranks, what it is that fails."""
        try:
            yield
        except Exception as error:
            raise kind(f"{prefix}{str(error).removesuffix('.')}") from error

    def _write_tensors(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Do what `torch.distributed.checkpoint.save` does; ranks that wait for one another know how long to."""
        planner, writer = DefaultSavePlanner(), SafetensorsWriter(folder)

        def plan() -> SavePlan:
            planner.set_up_planner(dict(tensors), writer.storage_meta(), self._rank == 0)
            writer.set_up_storage_writer(self._rank == 0)
            return writer.prepare_local_plan(planner.create_local_plan())

        def plan_all() -> list[SavePlan]:
            return writer.prepare_global_plan(planner.create_global_plan(plans)[0])

        def write() -> None:
            writer.write_data(planner.finish_plan(planned[self._rank]), planner).wait()

        plans = self._tell(self._together(plan, _WRITING))
        planned = self._on_first(plan_all, _WRITING)
        self._together(write, _WRITING)

    def _read_tensors(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Do what `torch.distributed.checkpoint.load` does, likewise."""
        planner, reader = DefaultLoadPlanner(), HuggingFaceStorageReader(str(folder))

        def read() -> None:
            metadata = reader.read_metadata()
            planner.set_up_planner(dict(tensors), metadata, self._rank == 0)
            reader.set_up_storage_reader(metadata, self._rank == 0)
            # Each rank reads what it needs: what others read makes no difference to it.
            plan = reader.prepare_local_plan(planner.create_local_plan())
            (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
            reader.read_data(planner.finish_plan(plan), planner).wait()

        self._together(read, _READING)

    @property
    def _rank(self) -> int:
        return 0 if self._wire is None else self._wire.rank

    def _tell(self, value: T) -> list[T]:
        return (
            [value] if self._wire is None else self._wire.tell(value, "the parts of a checkpoint")
        )

    def _together(self, act: Callable[[], T], doing: str) -> T:
        """Return what a rank has done, or raise on all ranks what has failed on one: none then waits for another."""
        return act() if self._wire is None else self._wire.together(act, doing)

    def _on_first(self, act: Callable[[], T], doing: str) -> T:
        """Do something on the first rank, and return on all ranks what came of it, or raise its error."""
        return act() if self._wire is None else self._wire.on_one(act, doing)


def _written(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a state, and the rest of it as JSON."""
    rest, tensors = split_state(state, copy_views=False)
    return tensors, json.dumps(rest, allow_nan=False)


def _wanted(state: Mapping[str, Any], known: Container[str], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state, all of which should be among those that were saved."""
    _, tensors = split_state(state, copy_views=False)
    for name in tensors:
        if name not in known:
            raise ValueError(
                f"Checkpoint '{path}' should have '{name}', which is wanted. Received none."
            )
    return tensors


def _as_saved(
    tensors: Mapping[str, Tensor], unasked: Container[str], path: Path
) -> dict[str, Tensor]:
    """Return tensors to read into: new ones for what is not wanted by name, or was saved in another size.

    That is so with maps of ids: what a map of one process shows depends on how many ids wait, and each rank needs all
    of these to find those that belong to it.
    """
    known = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    found = dict(tensors)
    for name, saved in known.items():
        if not isinstance(saved, TensorStorageMetadata):
            continue
        mine = tensors.get(name)
        if name in unasked if mine is None else mine.shape != saved.size:
            found[name] = torch.empty(saved.size, dtype=saved.properties.dtype)
    return found


def _joined(state: Mapping[str, Any], rest: Any, path: Path) -> dict[str, Any]:
    """Return a state with its tensors, which were read, and what else was saved."""
    try:
        return dict(_merged(state, rest, ""))
    except KeyError as lacking:
        raise ValueError(
            f"Checkpoint '{path}' should have {lacking.args[0]}, which is wanted. Received none."
        ) from None


def _merged(wanted: Any, saved: Any, path: str) -> Any:
    """Return a state that has the tensors of one, which were read, and what else was saved.

    Parameter groups go by the names of their parameters: another plan may have other ones.

    Raises:
        KeyError: with what was not saved.
    """
    if isinstance(wanted, Tensor):
        return wanted
    if isinstance(wanted, Mapping):
        for name in wanted:
            if not isinstance(saved, Mapping) or name not in saved:
                raise KeyError(f"'{path}.{name}'".replace("'.", "'"))
        return {
            name: _merged(value, saved[name], f"{path}.{name}") for name, value in wanted.items()
        }
    if not isinstance(wanted, list) or not all(isinstance(each, Mapping) for each in wanted):
        return saved
    if not all("params" in group for group in [*wanted, *saved]):
        return saved
    groups = {frozenset(group["params"]): group for group in saved}
    merged = []
    for group in wanted:
        names = frozenset(group["params"])
        if names not in groups:
            raise KeyError(f"a parameter group of {sorted(names)} in '{path}'")
        merged.append(_merged(group, groups[names], path))
    return merged
