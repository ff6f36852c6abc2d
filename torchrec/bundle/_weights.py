"""The state of a model to tensors that files take, and from files back into a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from torchrec.modules.collection import Collection
from torchrec.ops.embedding import new_table

_PIECE = 1 << 25  # bytes of a tensor that are read at once


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model as tensors that safetensors takes: on the CPU, each by itself.

    Raises:
        TypeError: there is state that is no tensor.
    """
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


def load_weights(model: nn.Module, folder: Path, files: Sequence[str]) -> None:
    """Load the state of a model, piece by piece into its own memory, so that it is not needed twice.

    Parameters on the meta device get memory first, which nothing is written to but what is read.

    Args:
        model: of the shapes of the files; a buffer may take that of its file, as id maps do, which
            check it themselves.
        folder: of the bundle.
        files: names of its files of weights.

    Raises:
        ValueError: the files hold the weights of another model.
    """
    paths, shapes = _listed(folder, files)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    fixed = {name: tuple(value.shape) for name, value in parameters.items()}
    expected = {name: fixed.get(name) for name in model.state_dict()}
    for name in [*expected, *shapes]:
        found = shapes.get(name)
        if name not in expected or found is None or fixed.get(name, found) != found:
            raise _other_model(folder, f"'{name}' of shape {expected.get(name)}", f"shape {found}")
    _give_memory(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        _read_into(parameter.detach(), paths[name], name)
    buffers = {name: _read(paths[name], name) for name in shapes if name not in parameters}
    try:
        model.load_state_dict({**parameters, **buffers})  # a parameter from itself: nothing to do
    except (RuntimeError, ValueError) as error:
        raise _other_model(folder, "whole", " ".join(str(error).split())) from None


def _listed(
    folder: Path, files: Sequence[str]
) -> tuple[dict[str, Path], dict[str, tuple[int, ...]]]:
    """Return the file and the shape of each tensor."""
    paths: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safetensors.safe_open(folder / file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                if name in paths:
                    raise _other_model(
                        folder, f"'{name}' once", f"it in {paths[name].name} and {file}"
                    )
                paths[name] = folder / file
                shapes[name] = tuple(opened.get_slice(name).get_shape())
    return paths, shapes


def _give_memory(model: nn.Module) -> None:
    """Give what is on the meta device memory, and keep parameters that are one under two names so."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.is_meta:
                if id(parameter) not in made:
                    memory = _memory_for(parameter)
                    made[id(parameter)] = nn.Parameter(memory, parameter.requires_grad)
                setattr(module, name, made[id(parameter)])
        left = {n: b for n, b in module.named_buffers(recurse=False) if b.is_meta}
        saved = module.state_dict() if left else {}
        for name, buffer in left.items():
            if name not in saved and not isinstance(module, Collection):
                raise ValueError(
                    f"A model that is built on the meta device should save all its buffers. Received "
                    f"'{name}' of {type(module).__name__}, which is not saved: build the model on the "
                    "CPU, or register the buffer with persistent=True."
                )
            # Saved ones are read later; what collections do not save are counts, which begin at 0.
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))


def _memory_for(parameter: Tensor) -> Tensor:
    if parameter.dim() == 2:  # a table, or as good as one
        rows, dim = parameter.shape
        return new_table(rows, dim, parameter.dtype, "cpu")
    return torch.empty(parameter.shape, dtype=parameter.dtype)


def _read(path: Path, name: str) -> Tensor:
    with safetensors.safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


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
        f"Bundle '{folder}' should hold the weights of the model that is built for it, {expected}. "
        f"Received {found}."
    )
