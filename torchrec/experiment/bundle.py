"""The bundle: a trained model as a folder that can be copied, checked and loaded anywhere.

Configuration, feature transform and weights, each in a plain format (YAML, JSON, Arrow, safetensors),
with digests of all. Nothing is unpickled, so a bundle cannot run code.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError
from torch import Tensor, nn

from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment._readme import bundle_readme
from torchrec.experiment.build import build_model
from torchrec.experiment.files import check_experiment, dump_experiment, parse_experiment_yaml
from torchrec.experiment.schema import Experiment
from torchrec.files import open_to_others, sync

FORMAT = 1
"""The format that is written, and the newest that is read."""

_INDEX, _EXPERIMENT, _WEIGHTS, _TRANSFORM = (
    "bundle.json",
    "experiment.yaml",
    "weights.safetensors",
    "transform",
)
_PIECE = 1 << 25  # bytes of a tensor that are read at once
_README = "README.txt"  # for people, who may write into it: nothing reads it, so it has no digest


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        experiment: what was trained, and how.
        transform: from columns to the model's inputs.
        model: from these to logits.
    """

    experiment: Experiment
    transform: FeatureTransform
    model: nn.Module


class _Entry(BaseModel):
    """A file of a bundle."""

    bytes: NonNegativeInt
    sha256: str


class _Index(BaseModel):
    """What `bundle.json` says; whatever else a later version of this format adds is ignored."""

    format: NonNegativeInt
    library: str = "rowwise"
    library_version: str
    torch_version: str
    created: str
    files: dict[str, _Entry]


def save_bundle(
    folder: str | os.PathLike[str],
    experiment: Experiment,
    transform: FeatureTransform,
    model: nn.Module,
) -> None:
    """Write a bundle.

    It is written beside and renamed when it is whole, so a bundle that is there already stays as it
    is until then.

    Args:
        folder: new, or a bundle that is to be replaced.
        experiment: what was trained.
        transform: fitted.
        model: as `build_model` makes it; its ``state_dict`` is saved.

    Raises:
        FileExistsError: the folder is there and holds something else.
        OSError: it cannot be written, as on a full disk.
        TypeError: the model has state that is no tensor.
    """
    folder = Path(folder)
    taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if taken and not (folder / _INDEX).is_file():
        raise FileExistsError(
            f"The folder of a bundle should be new, or hold one. Received '{folder}', which holds "
            "something else."
        )
    with _written_beside(folder) as beside:
        (beside / _EXPERIMENT).write_text(dump_experiment(experiment), encoding="utf-8")
        transform.save(beside / _TRANSFORM)
        safetensors.torch.save_file(_weights(model), beside / _WEIGHTS)
        open_to_others(beside / _WEIGHTS)
        (beside / _README).write_text(
            bundle_readme(experiment, transform, _library_version()), encoding="utf-8"
        )
        index = _Index(
            format=FORMAT,
            library_version=_library_version(),
            torch_version=torch.__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            files={name: _entry(beside / name) for name in _files(beside) if name != _README},
        )
        (beside / _INDEX).write_text(index.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_bundle(folder: str | os.PathLike[str], *, trainable: bool = False) -> Bundle:
    """Read a bundle, after checking that it is whole.

    Args:
        folder: of the bundle.
        trainable: make the model as for training, with the optimizers of its tables and their
            (fresh) state. Default False: for predicting, in evaluation mode.

    Raises:
        FileNotFoundError: there is no bundle.
        ValueError: it is of a newer format, damaged, or its parts do not go together.
    """
    folder = Path(folder)
    index = _read_index(folder)
    for name, entry in index.files.items():
        if name != _README:  # bundles of earlier versions list it
            _check_file(folder, name, entry)
    for name in (_EXPERIMENT, _WEIGHTS):
        if name not in index.files:
            raise _damaged(folder, f"{_INDEX} does not list {name}")
    text = (folder / _EXPERIMENT).read_text(encoding="utf-8")
    name = str(folder / _EXPERIMENT)
    experiment = check_experiment(parse_experiment_yaml(text, name), name)
    transform = FeatureTransform.load(folder / _TRANSFORM)
    training = experiment.training
    if not trainable:  # rules without state: optimizers can be larger than the tables
        training = training.model_copy(update={"embedding_optimizer": "sgd"})
    model = build_model(experiment.model, training, transform)
    _load_weights(model, folder)
    if not trainable:
        model.eval().requires_grad_(False)
    return Bundle(experiment, transform, model)


@contextmanager
def _written_beside(folder: Path) -> Iterator[Path]:
    """Give a folder that takes the place of ``folder`` when all has been written to it."""
    beside = folder.with_name(f".{folder.name}.writing")
    former = folder.with_name(f".{folder.name}.former")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        beside.mkdir()
        yield beside
        for name in _files(beside):
            sync(beside / name)
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)
            folder.rename(former)
        beside.rename(folder)
        sync(folder.parent)
    except (OSError, safetensors.SafetensorError) as error:
        if former.exists() and not folder.exists():
            former.rename(folder)
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"The bundle should be written to '{folder}'. Received: {reason}. What was there before "
            "is whole",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()
    )


def _entry(path: Path) -> _Entry:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return _Entry(bytes=path.stat().st_size, sha256=digest.hexdigest())


def _library_version() -> str:
    return str(vars(sys.modules["torchrec"])["__version__"])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model as tensors that safetensors takes: on the CPU, each by itself."""
    weights: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"The state of a model should be tensors. Received {type(value).__name__} for '{name}'."
            )
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        weights[name] = tensor.clone() if address in memory or not whole else tensor
        memory.add(address)
    return weights


def _read_index(folder: Path) -> _Index:
    path = folder / _INDEX
    if not path.is_file():
        what = "has none" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"A bundle should be a folder with {_INDEX}. Received '{folder}', which {what}."
        )
    try:
        index = _Index.model_validate_json(path.read_bytes())
    except ValidationError:
        raise _damaged(folder, f"{_INDEX} cannot be read") from None
    if index.format > FORMAT:
        raise ValueError(
            f"Bundle '{folder}' should be of format {FORMAT} or older, as rowwise {_library_version()} "
            f"reads. Received format {index.format}, written by {index.library} "
            f"{index.library_version}: pip install --upgrade '{index.library}>={index.library_version}'."
        )
    return index


def _check_file(folder: Path, name: str, entry: _Entry) -> None:
    path = folder / name
    if not path.is_file():
        raise _damaged(folder, f"{name} is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise _damaged(folder, f"{name} has {size:,} bytes instead of {entry.bytes:,}")
    if _entry(path) != entry:
        raise _damaged(folder, f"{name} has other contents than when it was written")


def _damaged(folder: Path, what: str) -> ValueError:
    return ValueError(f"Bundle '{folder}' should be whole. Received a damaged one: {what}.")


def _load_weights(model: nn.Module, folder: Path) -> None:
    """Load parameters piece by piece into the model's own memory, so that it is not needed twice."""
    path = folder / _WEIGHTS
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # Buffers may take the shape of what is loaded, as id maps do: those check themselves.
    fixed = {name: tuple(value.shape) for name, value in parameters.items()}
    expected = {name: fixed.get(name) for name in model.state_dict()}
    with safetensors.safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        buffers = {name: file.get_tensor(name) for name in shapes if name not in parameters}
    for name in [*expected, *shapes]:
        found = shapes.get(name)
        if name not in expected or found is None or fixed.get(name, found) != found:
            raise _other_model(folder, f"'{name}' of shape {expected.get(name)}", f"shape {found}")
    for name, parameter in parameters.items():
        _read_into(parameter.detach(), path, name)
    try:
        model.load_state_dict({**parameters, **buffers})  # a parameter from itself: nothing to do
    except (RuntimeError, ValueError) as error:
        raise _other_model(folder, "whole", " ".join(str(error).split())) from None


def _read_into(tensor: Tensor, path: Path, name: str) -> None:
    rows = len(tensor) if tensor.dim() else 1
    step = max(_PIECE * rows // max(tensor.nbytes, 1), 1)
    for start in range(0, rows, step):
        # Opened anew: what has been read of an open file stays in memory.
        with safetensors.safe_open(path, "pt") as file:
            if rows <= step:
                tensor.copy_(file.get_tensor(name))
            else:
                tensor[start : start + step] = file.get_slice(name)[start : start + step]


def _other_model(folder: Path, expected: str, found: str) -> ValueError:
    return ValueError(
        f"Bundle '{folder}' should hold the weights of the model that {_EXPERIMENT} describes, "
        f"{expected}. Received {found}."
    )
