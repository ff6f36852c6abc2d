"""The full check of a ``KeyedJaggedTensor``, on demand."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class TableConfig(Protocol):
    """What the check reads of an ``EmbeddingBagConfig`` or ``EmbeddingConfig``."""

    name: str
    num_embeddings: int
    feature_names: list[str]


def validate_keyed_jagged_tensor(
    kjt: KeyedJaggedTensor, configs: Sequence[TableConfig] | None = None
) -> bool:
    """Check all of a ``KeyedJaggedTensor``, and that the tables given have a row for each id.

    Its constructor checks what costs nothing; this reads every number, and on an accelerator waits
    for them. Use it on a batch that misbehaves, or while a data path is being written.

    Args:
        kjt: what to check.
        configs: tables that are to be looked up: their features should be keys, and the ids of
            these in ``[0, num_embeddings)``. A table with a ``hash_size`` takes any id. Default
            None.

    Returns:
        True.

    Raises:
        TypeError: lengths or offsets (with ``configs``: ids) are not int32 or int64.
        ValueError: keys repeat; lengths, offsets, values, weights, strides or inverse indices do
            not fit together; a feature is missing; an id has no row. The message names key, sample,
            table and id.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> validate_keyed_jagged_tensor(KeyedJaggedTensor.from_lists({"user": [[2, 3], [4]]}))
        True
    """
    _check_keys(kjt.keys())
    strides = kjt.stride_per_key()
    lengths = _check_bags(kjt, sum(strides))
    _check_each_length(kjt.keys(), strides, lengths)
    _check_values(kjt, lengths)
    _check_inverse_indices(kjt, strides)
    for config in configs or ():
        _check_ids(kjt, config, strides, lengths)
    return True


def _check_keys(keys: list[str]) -> None:
    for key in keys:
        if not isinstance(key, str):
            raise ValueError(f"Keys should be str. Received {key!r}.")
        if keys.count(key) > 1:
            raise ValueError(f"Keys should be unique. Received '{key}' {keys.count(key)} times.")


def _check_bags(kjt: KeyedJaggedTensor, bags: int) -> list[int]:
    """Check lengths and offsets, whichever there are, against the strides and each other."""
    lengths, offsets = kjt.lengths_or_none(), kjt.offsets_or_none()
    starts = None
    if offsets is not None:
        _check_index_tensor("offsets", offsets, bags + 1)
        starts = offsets.tolist()
        if starts[0] != 0:
            raise ValueError(f"`offsets` should start with 0. Received {starts[0]}.")
    if lengths is None:
        if starts is None:
            raise ValueError("Either `lengths` or `offsets` should be given. Received neither.")
        return [stop - start for start, stop in pairwise(starts)]
    _check_index_tensor("lengths", lengths, bags)
    counts: list[int] = lengths.tolist()
    if starts is not None and starts != list(accumulate(counts, initial=0)):
        raise ValueError(
            f"`offsets` should be the running sums of `lengths`, {[0, *accumulate(counts)]}. "
            f"Received {starts}."
        )
    return counts


def _check_index_tensor(name: str, tensor: torch.Tensor, size: int) -> None:
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"`{name}` should be int32 or int64. Received {tensor.dtype}.")
    if tensor.shape != (size,):
        raise ValueError(
            f"`{name}` should have shape ({size},), as the strides of the keys sum to. "
            f"Received {tuple(tensor.shape)}."
        )


def _check_each_length(keys: list[str], strides: list[int], lengths: list[int]) -> None:
    start = 0
    for key, stride in zip(keys, strides, strict=True):
        of_key = lengths[start : start + stride]
        if of_key and min(of_key) < 0:
            sample = next(i for i, length in enumerate(of_key) if length < 0)
            raise ValueError(
                f"`lengths` of key '{key}' should not be negative. "
                f"Received {of_key[sample]} in sample {sample}."
            )
        start += stride


def _check_values(kjt: KeyedJaggedTensor, lengths: list[int]) -> None:
    values, weights = kjt.values(), kjt.weights_or_none()
    if values.dim() == 0 or values.size(0) != sum(lengths):
        raise ValueError(
            f"`values` should hold as many entries as `lengths` sum to ({sum(lengths)}). "
            f"Received shape {tuple(values.shape)}."
        )
    if weights is not None and weights.shape[:1] != values.shape[:1]:
        raise ValueError(
            f"`weights` should hold as many entries as `values` ({values.size(0)}). "
            f"Received shape {tuple(weights.shape)}."
        )
    for name, tensor in {
        "lengths": kjt.lengths_or_none(),
        "offsets": kjt.offsets_or_none(),
        "weights": weights,
    }.items():
        if tensor is not None and tensor.device != values.device:
            raise ValueError(
                f"`{name}` should be on the device of `values`, {values.device}. "
                f"Received {tensor.device}."
            )


def _check_inverse_indices(kjt: KeyedJaggedTensor, strides: list[int]) -> None:
    inverse_indices = kjt.inverse_indices_or_none()
    if inverse_indices is None:
        return
    keys, inverse = inverse_indices
    # Rows of more keys are all right: a part of a KeyedJaggedTensor keeps the rows of the whole.
    if not set(kjt.keys()) <= set(keys) or inverse.dim() != 2 or inverse.size(0) != len(keys):
        raise ValueError(
            f"`inverse_indices` should have one row for each of the keys {kjt.keys()}. "
            f"Received keys {keys} and shape {tuple(inverse.shape)}."
        )
    if inverse.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"`inverse_indices` should be int32 or int64. Received {inverse.dtype}.")
    stride_of = dict(zip(kjt.keys(), strides, strict=True))
    for key, row in zip(keys, inverse.tolist(), strict=True):
        if key not in stride_of:
            continue
        for sample, place in enumerate(row):
            if not 0 <= place < stride_of[key]:
                raise ValueError(
                    f"`inverse_indices` of key '{key}' should be in [0, {stride_of[key]}). "
                    f"Received {place} for sample {sample}."
                )


def _check_ids(
    kjt: KeyedJaggedTensor, config: TableConfig, strides: list[int], lengths: list[int]
) -> None:
    keys = kjt.keys()
    for feature in config.feature_names:
        if feature not in keys:
            raise ValueError(
                f"Features of table '{config.name}' should be among the keys {keys}. "
                f"Received '{feature}'."
            )
        _check_ids_of(feature, kjt, config, strides, lengths)


def _check_ids_of(
    feature: str,
    kjt: KeyedJaggedTensor,
    config: TableConfig,
    strides: list[int],
    lengths: list[int],
) -> None:
    values = kjt.values()
    if values.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"The ids of feature '{feature}' should be int32 or int64. Received {values.dtype}."
        )
    if getattr(config, "hash_size", None):
        return
    at = kjt.keys().index(feature)
    first_bag = sum(strides[:at])
    of_key = lengths[first_bag : first_bag + strides[at]]
    start = sum(lengths[:first_bag])
    ids = values[start : start + sum(of_key)]
    outside = ((ids < 0) | (ids >= config.num_embeddings)).nonzero()
    if outside.numel():
        position = int(outside[0, 0])
        sample = bisect_right(list(accumulate(of_key)), position)
        raise ValueError(
            f"Ids of feature '{feature}' should be in [0, {config.num_embeddings}), the rows "
            f"of table '{config.name}'. Received {int(ids[position])} in sample {sample}."
        )


def _validate_feature_range(kjt: KeyedJaggedTensor, configs: Sequence[TableConfig]) -> bool:
    """Say whether all ids have a row: programs of the API ask for it under this name.

    As there, features that are no keys are passed over.
    """
    strides, lengths = kjt.stride_per_key(), kjt.lengths().tolist()
    try:
        for config in configs:
            for feature in set(config.feature_names).intersection(kjt.keys()):
                _check_ids_of(feature, kjt, config, strides, lengths)
    except ValueError:
        return False
    return True
