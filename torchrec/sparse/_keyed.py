"""KeyedTensor: one dense tensor for each key, side by side in one."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.sparse._text import keyed_text
from torchrec.streamable import Pipelineable


class KeyedTensor(Pipelineable):
    """Dense tensors by key, joined along one dimension: the pooled embeddings of a batch.

    Args:
        keys: F distinct keys.
        length_per_key: size of each key's tensor along ``key_dim``.
        values: the tensors, joined along ``key_dim``; as a rule ``[B, sum of length_per_key]``.
        key_dim: the dimension along which they are joined. Default 1.
        offset_per_key: where each key starts along ``key_dim``, and the end of the last; computed if not given.
        index_per_key: position of each key; computed if not given.

    Example:
        >>> kt = KeyedTensor(["user", "item"], [1, 2], torch.tensor([[1.0, 2.0, 3.0]]))
        >>> kt["item"]
        tensor([[2., 3.]])
        >>> kt.offset_per_key()
        [0, 1, 3]
    """

    _keys: list[str]
    _length_per_key: list[int]
    _values: Tensor
    _key_dim: int
    _offset_per_key: list[int] | None
    _index_per_key: dict[str, int] | None

    def __init__(
        self,
        keys: list[str],
        length_per_key: list[int],
        values: Tensor,
        key_dim: int = 1,
        offset_per_key: list[int] | None = None,
        index_per_key: dict[str, int] | None = None,
    ) -> None:
        self._keys = keys
        self._length_per_key = length_per_key
        self._values = values
        self._key_dim = key_dim
        self._offset_per_key = offset_per_key
        self._index_per_key = index_per_key

    @staticmethod
    def from_tensor_list(
        keys: list[str], tensors: list[Tensor], key_dim: int = 1, cat_dim: int = 1
    ) -> KeyedTensor:
        """Join one tensor a key."""
        return KeyedTensor(
            keys, [t.size(key_dim) for t in tensors], torch.cat(tensors, cat_dim), key_dim
        )

    def keys(self) -> list[str]:
        """Return the keys."""
        return self._keys

    def values(self) -> Tensor:
        """Return the joined tensors."""
        return self._values

    def key_dim(self) -> int:
        """Return the dimension along which the tensors are joined."""
        return self._key_dim

    def device(self) -> torch.device:
        """Return the device of the values."""
        return self._values.device

    def length_per_key(self) -> list[int]:
        """Return the size of each key's tensor along ``key_dim``."""
        return self._length_per_key

    def offset_per_key(self) -> list[int]:
        """Return where each key starts along ``key_dim``, and the end of the last."""
        offsets = self._offset_per_key
        if offsets is None:
            offsets = [0]
            for length in self._length_per_key:
                offsets.append(offsets[-1] + length)
            self._offset_per_key = offsets
        return offsets

    def index_per_key(self) -> dict[str, int]:
        """Return the position of each key."""
        index = self._index_per_key
        if index is None:
            index = self._index_per_key = {key: i for i, key in enumerate(self._keys)}
        return index

    def to_dict(self) -> dict[str, Tensor]:
        """Return each key's tensor: views of the values."""
        parts = torch.split_with_sizes(self._values, self._length_per_key, self._key_dim)
        return dict(zip(self._keys, parts, strict=True))

    def __getitem__(self, key: str) -> Tensor:
        i = self.index_per_key().get(key)
        if i is None:
            raise KeyError(f"Key should be one of {self._keys}. Received '{key}'.")
        return self._values.narrow(
            self._key_dim, self.offset_per_key()[i], self._length_per_key[i]
        )

    @staticmethod
    def regroup(keyed_tensors: list[KeyedTensor], groups: list[list[str]]) -> list[Tensor]:
        """Join the tensors of each group of keys, wherever they are."""
        tensors: dict[str, Tensor] = {}
        for kt in keyed_tensors:
            tensors.update(kt.to_dict())
        return [torch.cat([tensors[key] for key in group], 1) for group in groups]

    @staticmethod
    def regroup_as_dict(
        keyed_tensors: list[KeyedTensor], groups: list[list[str]], keys: list[str]
    ) -> dict[str, Tensor]:
        """Join the tensors of each group of keys, and give each group a name."""
        return dict(zip(keys, KeyedTensor.regroup(keyed_tensors, groups), strict=True))

    def to(self, device: torch.device, non_blocking: bool = False) -> KeyedTensor:
        """Return this keyed tensor on ``device``."""
        return KeyedTensor(
            self._keys,
            self._length_per_key,
            self._values.to(device, non_blocking=non_blocking),
            self._key_dim,
            self._offset_per_key,
            self._index_per_key,
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until the work queued on ``stream`` is done."""
        self._values.record_stream(stream)

    def size_in_bytes(self) -> int:
        """Return the size of the values, in bytes."""
        return self._values.numel() * self._values.element_size()

    def __str__(self) -> str:
        return keyed_text(self._keys, list(self.to_dict().values()))


def regroup_kts(keyed_tensors: list[KeyedTensor], groups: list[list[str]]) -> list[Tensor]:
    """Join the tensors of each group of keys; see ``KeyedTensor.regroup``."""
    return KeyedTensor.regroup(keyed_tensors, groups)


def permute_multi_embedding(
    keyed_tensors: list[KeyedTensor], groups: list[list[str]]
) -> list[Tensor]:
    """Join the tensors of each group of keys; see ``KeyedTensor.regroup``."""
    return KeyedTensor.regroup(keyed_tensors, groups)


KeyedTensor.__module__ = "torchrec.sparse.jagged_tensor"
