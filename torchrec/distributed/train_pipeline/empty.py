"""Batches without samples, for ranks that have run out of data while others have not."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["without_samples"]


def without_samples(batch: Any) -> Any:
    """Return a batch like this one, but of no samples.

    Args:
        batch: a tensor, features, or a dataclass, tuple, list or dictionary of such.

    Raises:
        TypeError: for something else.

    Example:
        >>> import torch
        >>> without_samples({"x": torch.ones(3, 2)})["x"].shape
        torch.Size([0, 2])
    """
    if isinstance(batch, Tensor):
        return batch[:0] if batch.dim() else batch
    if isinstance(batch, KeyedJaggedTensor):
        weights = batch.weights_or_none()
        return KeyedJaggedTensor(
            batch.keys(),
            batch.values()[:0],
            None if weights is None else weights[:0],
            lengths=batch.lengths()[:0],
        )
    if batch is None or isinstance(batch, (str, int, float)):
        return batch
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(
            batch,
            **{f.name: without_samples(getattr(batch, f.name)) for f in fields(batch) if f.init},
        )
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(without_samples, batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(without_samples, batch))
    if isinstance(batch, dict):
        return {name: without_samples(value) for name, value in batch.items()}
    raise TypeError(
        "A batch should be made of tensors, features, dataclasses, tuples, lists and dictionaries, where "
        f"ranks may have different numbers of them. Received a {type(batch).__name__}."
    )
