"""Random batches: to try a model's shapes and speed without any data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_HASH_SIZE = 100
_IDS_PER_FEATURE = 2


def _per_key(
    name: str, one: int | None, several: Sequence[int] | None, keys: Sequence[str], default: int
) -> list[int]:
    """Return one number a key, given for all keys at once or for each."""
    if several is None:
        several = [default if one is None else one] * len(keys)
    elif one is not None:
        raise ValueError(f"`{name}` should be given for all keys or for each. Received both.")
    if len(several) != len(keys):
        raise ValueError(
            f"`{name}s` should have one entry a key ({len(keys)}). Received {len(several)}."
        )
    return list(several)


class RandomRecDataset(IterableDataset[Batch]):
    """Batches of random numbers, ids and labels.

    A few batches are generated when it is constructed and then given again and again, so that a
    benchmark measures what comes after. Dense features are normal, labels 0 or 1, ids uniform.

    Args:
        keys: names of the sparse features.
        batch_size: samples a batch, B.
        hash_size: ids are in ``[0, hash_size)``, for all keys. Default 100.
        hash_sizes: the same for each key.
        ids_per_feature: ids a sample, for all keys. Default: their number is random, from 0 to 2.
        ids_per_features: the most ids a sample of each key; their number is random, from 0 on.
        num_dense: number of dense features. Default 50.
        manual_seed: the same batches for the same seed: of each batch the lengths and ids, key by
            key, then dense features, then labels are drawn. Default: from PyTorch's generator.
        num_batches: batches in all. Default: there is no end.
        num_generated_batches: how many different ones there are; 0 or less: every batch is new.
            Default 10.
        min_ids_per_feature: with it the number of ids of a sample is random, from this to the most
            there are, both included; for all keys. Default: ``ids_per_feature``, else 0.
        min_ids_per_features: the same for each key.

    Raises:
        ValueError: a size is too small, or a list has not one entry a key.

    Example:
        >>> from torchrec.datasets.random import RandomRecDataset
        >>> dataset = RandomRecDataset(
        ...     keys=["f1", "f2"], batch_size=4, hash_size=10, ids_per_feature=3, num_dense=13,
        ...     manual_seed=0, num_batches=2)
        >>> batch = next(iter(dataset))
        >>> batch.dense_features.shape, batch.sparse_features.values().shape, batch.labels.shape
        (torch.Size([4, 13]), torch.Size([24]), torch.Size([4]))
        >>> len(dataset)
        2
    """

    def __init__(
        self,
        keys: list[str],
        batch_size: int,
        hash_size: int | None = None,
        hash_sizes: list[int] | None = None,
        ids_per_feature: int | None = None,
        ids_per_features: list[int] | None = None,
        num_dense: int = 50,
        manual_seed: int | None = None,
        num_batches: int | None = None,
        num_generated_batches: int = 10,
        min_ids_per_feature: int | None = None,
        min_ids_per_features: list[int] | None = None,
    ) -> None:
        super().__init__()
        self._keys = list(keys)
        self._batch_size = batch_size
        self._num_dense = num_dense
        self._num_batches = num_batches
        self._hash_sizes = _per_key("hash_size", hash_size, hash_sizes, keys, _HASH_SIZE)
        self._most = _per_key(
            "ids_per_feature", ids_per_feature, ids_per_features, keys, _IDS_PER_FEATURE
        )
        if min_ids_per_features is None and min_ids_per_feature is None:
            min_ids_per_feature = ids_per_feature
        self._least = _per_key(
            "min_ids_per_feature", min_ids_per_feature, min_ids_per_features, keys, 0
        )
        self._check()
        # A generator of its own leaves PyTorch's alone where a seed is given.
        self._generator: torch.Generator | None = None
        if manual_seed is not None:
            self._generator = torch.Generator().manual_seed(manual_seed)
        self._generated = [self._generate() for _ in range(max(num_generated_batches, 0))]

    def _check(self) -> None:
        sizes = {"batch_size": self._batch_size, "num_dense": self._num_dense}
        if self._num_batches is not None:
            sizes["num_batches"] = self._num_batches
        for name, size in sizes.items():
            if size < 0:
                raise ValueError(f"`{name}` should be at least 0. Received {size}.")
        for key, rows, least, most in zip(
            self._keys, self._hash_sizes, self._least, self._most, strict=True
        ):
            if rows < 1:
                raise ValueError(
                    f"`hash_size` of key '{key}' should be at least 1. Received {rows}."
                )
            if not 0 <= least <= most:
                raise ValueError(
                    f"`min_ids_per_feature` of key '{key}' should be from 0 to ids_per_feature "
                    f"({most}). Received {least}."
                )

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        while self._num_batches is None or number < self._num_batches:
            if self._generated:
                yield self._generated[number % len(self._generated)]
            else:
                yield self._generate()
            number += 1

    def __len__(self) -> int:
        """Return the number of batches.

        Raises:
            TypeError: there is no end.
        """
        if self._num_batches is None:
            raise TypeError("`len()` of RandomRecDataset is not known: `num_batches` is None.")
        return self._num_batches

    def _generate(self) -> Batch:
        lengths, values = [], []
        for rows, least, most in zip(self._hash_sizes, self._least, self._most, strict=True):
            lengths.append(self._integers(least, most + 1, self._batch_size).int())
            values.append(self._integers(0, rows, int(lengths[-1].sum())))
        none = torch.empty(0, dtype=torch.int64)
        return Batch(
            dense_features=torch.randn(
                self._batch_size, self._num_dense, generator=self._generator
            ),
            sparse_features=KeyedJaggedTensor(
                keys=self._keys,
                values=torch.cat([none, *values]),
                lengths=torch.cat([none.int(), *lengths]),
                stride=self._batch_size,
            ),
            labels=self._integers(0, 2, self._batch_size),
        )

    def _integers(self, low: int, high: int, number: int) -> Tensor:
        return torch.randint(low, high, (number,), generator=self._generator)
