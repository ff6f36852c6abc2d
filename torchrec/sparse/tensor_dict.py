"""TensorDicts as KeyedJaggedTensors, without depending on the tensordict package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeGuard

import torch

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class TensorMapping(Protocol):
    """What is read of a TensorDict; a dict of tensors has it too."""

    def keys(self) -> Iterable[str]:
        """Return the names of the tensors."""

    def __getitem__(self, key: str, /) -> torch.Tensor:
        """Return the tensor of this name."""


def maybe_td_to_kjt(
    features: KeyedJaggedTensor | TensorMapping, keys: list[str] | None = None
) -> KeyedJaggedTensor:
    """Return the features as a ``KeyedJaggedTensor``, whichever of the two they are.

    Modules call this on their input, so that they take both. A nested tensor (of the jagged or of
    the strided layout) has one row for each sample. A plain tensor of shape ``[B]`` holds one id a
    sample, one of shape ``[B, L]`` has L.

    Args:
        features: a ``KeyedJaggedTensor``, or a TensorDict or dict of tensors of B samples each.
        keys: which tensors to take, in this order. Default: all, in the order of ``features``. A
            ``KeyedJaggedTensor`` is returned as it is.

    Returns:
        ``features`` itself, or a ``KeyedJaggedTensor`` without weights.

    Raises:
        TypeError: ``features`` is neither, or does not hold tensors.
        ValueError: a key is missing, a tensor has another shape, or batches differ in size.

    Example:
        >>> values, offsets = torch.tensor([2, 3, 4]), torch.tensor([0, 2, 3])
        >>> user = torch.nested.nested_tensor_from_jagged(values, offsets)
        >>> print(maybe_td_to_kjt({"user": user, "item": torch.tensor([7, 8])}))
        KeyedJaggedTensor({
            "user": [[2, 3], [4]],
            "item": [[7], [8]]
        })
        <BLANKLINE>
    """
    if isinstance(features, KeyedJaggedTensor):
        return features
    if not _is_tensor_mapping(features):
        raise TypeError(
            "`features` should be a KeyedJaggedTensor or a TensorDict. "
            f"Received {type(features).__name__}."
        )
    available = list(features.keys())
    keys = available if keys is None else list(keys)
    values: list[torch.Tensor] = []
    lengths: list[torch.Tensor] = []
    for key in keys:
        if key not in available:
            raise ValueError(
                f"`keys` should be among those of the TensorDict, {available}. Received '{key}'."
            )
        of_key, bags = _bags(key, features[key])
        if lengths and bags.numel() != lengths[0].numel():
            raise ValueError(
                f"Every key should have as many samples as key '{keys[0]}' ({lengths[0].numel()}). "
                f"Received {bags.numel()} for key '{key}'."
            )
        values.append(of_key)
        lengths.append(bags)
    if not keys:
        return KeyedJaggedTensor.empty()
    return KeyedJaggedTensor(keys, torch.cat(values), lengths=torch.cat(lengths))


def _is_tensor_mapping(features: object) -> TypeGuard[TensorMapping]:
    return hasattr(features, "keys") and hasattr(features, "__getitem__")


def _bags(key: str, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values and lengths of one key."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"Key '{key}' should hold a tensor. Received {type(tensor).__name__}.")
    if tensor.is_nested:
        return _nested_bags(key, tensor)
    if tensor.dim() not in (1, 2):
        raise ValueError(
            f"Key '{key}' should have shape [B] or [B, L]. Received {tuple(tensor.shape)}."
        )
    length = tensor.size(1) if tensor.dim() == 2 else 1
    lengths = torch.full((tensor.size(0),), length, dtype=torch.int64, device=tensor.device)
    return tensor.reshape(-1), lengths


def _nested_bags(key: str, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if tensor.dim() != 2:
        raise ValueError(
            f"Key '{key}' should have one dimension a sample. Received {tensor.dim() - 1}."
        )
    jagged: Any = tensor if tensor.layout == torch.jagged else None
    if jagged is not None and jagged.lengths() is None:
        return jagged.values(), jagged.offsets().diff()
    # Rows that do not lie side by side: another layout, or bags cut from longer rows.
    rows = tensor.unbind()
    sizes = torch.tensor([row.numel() for row in rows], dtype=torch.int64, device=tensor.device)
    return torch.cat(rows), sizes
