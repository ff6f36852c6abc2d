"""Nested state to tensors and JSON, and back: what a checkpoint holds is data, never code."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchrec.files import Json

# What JSON does not have is an object with one of these keys.
_TENSOR, _TUPLE, _ITEMS, _FLOAT = "$tensor", "$tuple", "$items", "$float"
_MARKS = {_TENSOR, _TUPLE, _ITEMS, _FLOAT}


def split_state(state: object, copy_views: bool = True) -> tuple[Json, dict[str, Tensor]]:
    """Take the tensors out of nested dictionaries, lists and tuples.

    Args:
        state: with strings, numbers, None and tensors inside; keys are strings or integers.
        copy_views: copy tensors that are part of a larger one, as files need it. Default True.

    Returns:
        The rest, as JSON, and the tensors by name; a tensor that comes twice is there once.

    Raises:
        TypeError: for anything else inside, naming where.

    Example:
        >>> rest, tensors = split_state({"step": 3, "weights": [torch.ones(2)], "betas": (0.9, 1)})
        >>> rest["weights"], list(tensors)
        ([{'$tensor': 'weights.0'}], ['weights.0'])
        >>> join_state(rest, tensors)["betas"]
        (0.9, 1)
    """
    tensors: dict[str, Tensor] = {}
    rest = _encode(state, "", tensors, {})
    if copy_views:
        tensors = {name: _alone(tensor) for name, tensor in tensors.items()}
    return rest, tensors


def join_state(rest: Json, tensors: Mapping[str, Tensor]) -> object:
    """Return the state that `split_state` was given.

    Raises:
        KeyError: for a tensor that is not there.
    """
    if isinstance(rest, list):
        return [join_state(item, tensors) for item in rest]
    if not isinstance(rest, dict):
        return rest
    if _TENSOR in rest:
        return tensors[str(rest[_TENSOR])]
    if _FLOAT in rest:
        return float(str(rest[_FLOAT]))
    for mark in (_TUPLE, _ITEMS):
        if mark in rest:
            items = join_state(rest[mark], tensors)
            assert isinstance(items, list)
            return tuple(items) if mark == _TUPLE else dict(items)
    return {key: join_state(value, tensors) for key, value in rest.items()}


def tensor_names(rest: Json) -> set[str]:
    """Return the names of the tensors of a state, from what `split_state` gives beside them."""
    if isinstance(rest, list):
        return set[str]().union(*map(tensor_names, rest))
    if not isinstance(rest, dict):
        return set()
    if _TENSOR in rest:
        return {str(rest[_TENSOR])}
    return tensor_names(list(rest.values()))


def _encode(
    value: object, path: str, tensors: dict[str, Tensor], names: dict[tuple[object, ...], str]
) -> Json:
    if isinstance(value, Tensor):
        return {_TENSOR: _put(value.detach(), path or "tensor", tensors, names)}
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return {_FLOAT: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items: list[Json] = [
            _encode(item, f"{path}.{i}".lstrip("."), tensors, names) for i, item in enumerate(value)
        ]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, Mapping):
        pairs = {
            key: _encode(item, f"{path}.{key}".lstrip("."), tensors, names)
            for key, item in value.items()
        }
        if all(isinstance(key, str) for key in pairs) and not _MARKS & pairs.keys():
            return pairs
        if all(isinstance(key, str | int) for key in pairs):
            return {_ITEMS: [{_TUPLE: [key, item]} for key, item in pairs.items()]}
    raise TypeError(
        f"State should be of tensors, numbers, strings, lists and dictionaries. "
        f"Received {type(value).__name__} at '{path}'."
    )


def _put(
    tensor: Tensor, name: str, tensors: dict[str, Tensor], names: dict[tuple[object, ...], str]
) -> str:
    """Name a tensor; the same memory seen the same way has one name."""
    address = tensor.data_ptr()  # 0 of what has no memory of its own, as sharded tables have not
    same = (address, tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
    if address and tensor.numel() and same in names:
        return names[same]
    while name in tensors:  # {"a": {"b": ...}, "a.b": ...}
        name += "'"
    names[same] = name
    tensors[name] = tensor
    return name


def _alone(tensor: Tensor) -> Tensor:
    """Return a tensor that is all of its memory, in order: a view would not be written alone."""
    if tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes():
        return tensor.contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)
