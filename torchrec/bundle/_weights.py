"""The state of a model to tensors that files take, and from files back into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from torchrec.files import DamagedError
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

    What is on the meta device is assigned, in memory that nothing is written to but what is read.

    Args:
        model: of the shapes of the files; a buffer may take that of its file, as id maps do, which
            check it themselves.
        folder: of the bundle.
        files: names of its files of weights.

    Raises:
        DamagedError: a file is none of weights.
        ValueError: the files hold the weights of another model.
    """
    paths, found = _listed(folder, files)
    if different := difference(model, found):
        raise _other_model(folder, *different)
    _check_tied(model, folder, paths)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}  # a parameter with several names stays one
    for name, parameter in parameters.items():
        if id(parameter) not in made:
            made[id(parameter)] = _with_memory(parameter)
            _read_into(made[id(parameter)].detach(), paths[name], name)
        state[name] = made[id(parameter)]
    state |= {name: _read(paths[name], name) for name in found if name not in parameters}
    on_meta = any(value.is_meta for value in [*parameters.values(), *model.buffers()])
    try:
        # Without it, a parameter is copied to itself: nothing to do.
        model.load_state_dict(state, assign=on_meta)
    except (RuntimeError, ValueError) as error:
        raise _other_model(folder, "whole", " ".join(str(error).split())) from None
    if on_meta:
        _check_buffers(model)


def difference(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return what a model has and what weights have instead, in words; None if they go together.

    A buffer may have any shape, as id maps do, which check it themselves.

    Args:
        model: on any device.
        weights: by the names of its state; on the meta device, they have only shape and type.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = model.state_dict()
    for name in [*state, *weights]:
        shape = tuple(parameters[name].shape) if name in parameters else None
        found = tuple(weights[name].shape) if name in weights else None
        if name not in state or found is None or shape not in (None, found):
            return f"'{name}' of shape {shape}", f"shape {found}"
        dtype = getattr(state[name], "dtype", None)  # None of extra state that is no tensor
        if dtype != weights[name].dtype:
            return f"'{name}' of {dtype}", f"{weights[name].dtype}"
    return None


def _listed(folder: Path, files: Sequence[str]) -> tuple[dict[str, Path], dict[str, Tensor]]:
    """Return the file of each tensor, and the tensor without its memory."""
    paths: dict[str, Path] = {}
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safetensors.safe_open(folder / file, "pt") as opened:
                # Tensors are views of the file: nothing is read but its header.
                new = {name: opened.get_tensor(name).to("meta") for name in opened.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise DamagedError(folder / file, f"it holds no safetensors ({error})") from None
        for name in new:
            if name in paths:
                raise _other_model(folder, f"'{name}' once", f"it in {paths[name].name} and {file}")
            paths[name] = folder / file
        found |= new
    return paths, found


def _check_tied(model: nn.Module, folder: Path, paths: Mapping[str, Path]) -> None:
    """Refuse different weights for what is one tensor in the model: it could keep only one of them."""
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), name)
        if other != name and not _is_same(_read(paths[other], other), _read(paths[name], name)):
            raise _other_model(folder, f"where '{other}' and '{name}' are one tensor", "two values")


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same values, NaN included."""
    return one.shape == other.shape and bool(
        ((one == other) | ((one != one) & (other != other))).all()
    )


def _with_memory(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter, or on the CPU what shall take the place of one on the meta device."""
    if not parameter.is_meta:
        return parameter
    if parameter.dim() == 2:  # a table, or as good as one
        rows, dim = parameter.shape
        memory = new_table(rows, dim, parameter.dtype, "cpu")
    else:
        memory = torch.empty(parameter.shape, dtype=parameter.dtype)
    return nn.Parameter(memory, parameter.requires_grad)


def _check_buffers(model: nn.Module) -> None:
    """Refuse buffers that are still on the meta device, as no file has them.

    Those of a collection are counts, which it makes anew.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and not isinstance(module, Collection):
                raise ValueError(
                    f"A model that is built on the meta device should save all its buffers. Received "
                    f"'{name}' of {type(module).__name__}, which is not saved: build the model on the "
                    "CPU, or register the buffer with persistent=True."
                )


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
