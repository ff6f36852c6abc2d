"""Outputs of collections that come in parts, each from an exchange of its own.

Ours come in one: these are for code of one's own that puts a collection together of several exchanges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.distributed._awaitable import Awaitable, LazyAwaitable, LazyGetItemMixin
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = ["EmbeddingBagCollectionAwaitable", "EmbeddingCollectionAwaitable"]


class EmbeddingBagCollectionAwaitable(LazyGetItemMixin[str, Tensor], LazyAwaitable[KeyedTensor]):
    """Pooled vectors whose columns come in parts.

    Args:
        awaitables: the parts, ``(B, columns)``, from left to right.
        embedding_dims: columns of each output.
        embedding_names: name of each output.
        module_fqn: path of the collection, for errors.
        sharding_types: of the parts; without effect.
        resize_awaitables: what else to wait for, first.

    Raises:
        ValueError: when it is waited for, if the parts have other columns in all than the outputs.

    Example:
        >>> from torchrec.distributed.types import NoWait
        >>> parts = [NoWait(torch.ones(2, 1)), NoWait(torch.zeros(2, 2))]
        >>> output = EmbeddingBagCollectionAwaitable(parts, [2, 1], ["a", "b"])
        >>> output["a"].tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """

    stands_for = KeyedTensor

    def __init__(
        self,
        awaitables: Sequence[Awaitable[Tensor]],
        embedding_dims: list[int],
        embedding_names: list[str],
        module_fqn: str | None = None,
        sharding_types: list[str] | None = None,
        resize_awaitables: list[Awaitable[Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self._parts, self._first = list(awaitables), list(resize_awaitables or ())
        self._dims, self._names, self._path = embedding_dims, embedding_names, module_fqn or ""

    def _wait_impl(self) -> KeyedTensor:
        for each in self._first:
            each.wait()
        values = torch.cat([part.wait() for part in self._parts], 1)
        if values.shape[1] != sum(self._dims):
            raise ValueError(
                f"The parts of the output of '{self._path}' should have {sum(self._dims)} columns in all. "
                f"Received {values.shape[1]}."
            )
        return KeyedTensor(self._names, self._dims, values)


class EmbeddingCollectionAwaitable(LazyAwaitable[dict[str, JaggedTensor]]):
    """Vectors of ids that come in parts.

    Args:
        awaitables_per_sharding: the parts, ``(N, D)``: vectors of the ids of some features, one behind the other.
        features_per_sharding: of each part, the features.
        embedding_names_per_sharding: of each part, the names of their outputs. Of one that comes twice, columns are
            put side by side.
        ctx: without effect.
        need_indices: pass ids on as weights of the output.
        features_to_permute_indices: not supported; must be None.
        module_fqn: path of the collection, for errors.
        sharding_types: of the parts; without effect.
        use_gather_select: without effect, as is ``use_gather_select_per_sharding``.
        use_gather_select_per_sharding: see there.
        resize_awaitables: what else to wait for, first.

    Raises:
        ValueError: for ``features_to_permute_indices``; when it is waited for, if a part has not a vector for each id.

    Example:
        >>> from torchrec.distributed.types import NoWait
        >>> features = KeyedJaggedTensor.from_lists({"f": [[7, 8], []]})
        >>> output = EmbeddingCollectionAwaitable([NoWait(torch.ones(2, 3))], [features], [["f"]], None)
        >>> output["f"].lengths().tolist(), output["f"].values().shape
        ([2, 0], torch.Size([2, 3]))
    """

    stands_for = dict

    def __init__(
        self,
        awaitables_per_sharding: Sequence[Awaitable[Tensor]],
        features_per_sharding: Sequence[KeyedJaggedTensor],
        embedding_names_per_sharding: Sequence[list[str]],
        ctx: Any,
        need_indices: bool = False,
        features_to_permute_indices: dict[str, list[int]] | None = None,
        module_fqn: str | None = None,
        sharding_types: list[str] | None = None,
        use_gather_select: bool = False,
        use_gather_select_per_sharding: dict[str, bool] | None = None,
        resize_awaitables: list[Awaitable[Tensor]] | None = None,
    ) -> None:
        super().__init__()
        if features_to_permute_indices is not None:
            raise ValueError(
                "`features_to_permute_indices` should be None: columns of an output come from left to right. "
                f"Received {features_to_permute_indices}."
            )
        self._parts = list(
            zip(
                awaitables_per_sharding,
                features_per_sharding,
                embedding_names_per_sharding,
                strict=True,
            )
        )
        self._first, self._need_indices = list(resize_awaitables or ()), need_indices
        self._path = module_fqn or ""

    def _wait_impl(self) -> dict[str, JaggedTensor]:
        for each in self._first:
            each.wait()
        found: dict[str, JaggedTensor] = {}
        for part, features, names in self._parts:
            values, sizes = part.wait(), features.length_per_key()
            if len(values) != sum(sizes):
                raise ValueError(
                    f"A part of the output of '{self._path}' should have a vector for each of {sum(sizes)} ids. "
                    f"Received {len(values)}."
                )
            inputs = features.to_dict()
            for key, name, mine in zip(features.keys(), names, values.split(sizes), strict=True):
                if name in found:
                    mine = torch.cat([found[name].values(), mine], 1)
                ids = inputs[key].values() if self._need_indices else None
                found[name] = JaggedTensor(mine, weights=ids, lengths=inputs[key].lengths())
        return found
