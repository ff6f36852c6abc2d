"""The parts of tables that a rank has, looked up by themselves.

Sharded collections look their parts up in one call, whatever groups they would be in. These classes are for code that
is written for groups: each group is a collection of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec.distributed.embedding_types import (
    BaseEmbeddingLookup,
    EmbeddingComputeKernel,
    GroupedEmbeddingConfig,
)
from torchrec.distributed.fused_params import optimizer_of
from torchrec.distributed.types import LazyAwaitable, ShardingEnv, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["GroupedEmbeddingsLookup", "GroupedPooledEmbeddingsLookup"]

_KERNELS = (EmbeddingComputeKernel.DENSE, EmbeddingComputeKernel.FUSED)


class _GroupedLookup(nn.Module):
    """Groups of parts of tables, whose weights are named ``<table>.weight``."""

    def _set_groups(
        self,
        configs: list[GroupedEmbeddingConfig],
        make: Callable[[GroupedEmbeddingConfig], EmbeddingBagCollection | EmbeddingCollection],
    ) -> None:
        self.grouped_configs = configs
        tables = [table.name for config in configs for table in config.embedding_tables]
        for number, name in enumerate(tables):
            if name in tables[:number]:
                raise ValueError(
                    f"`grouped_configs` should have one part of each table. Received two of table '{name}'."
                )
        # In a tuple they are no children, whose parameters would have other names.
        self._collections = tuple(make(config) for config in configs)
        for config, collection in zip(configs, self._collections, strict=True):
            _train(config, collection)
            for holder in collection.children():
                for name, part in holder.named_children():
                    self.add_module(name, part)
        self.register_load_state_dict_post_hook(_weights_loaded)  # type: ignore[no-untyped-call]

    def weights_loaded(self) -> None:
        """Meet weights that were loaded: what waits, such as gradients, was for the former ones."""
        for collection in self._collections:
            collection.weights_loaded()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for collection in self._collections:
            collection._apply(fn, recurse)
        return self

    def named_parameters_by_table(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the part of each table, by name of the table."""
        for name, param in self.named_parameters():
            yield name.removesuffix(".weight"), param

    def prefetch(
        self, sparse_features: KeyedJaggedTensor, forward_stream: torch.Stream | None = None
    ) -> None:
        """Do nothing: there is no cache that rows would be fetched to.

        Args:
            sparse_features: of a batch to come.
            forward_stream: that will look it up.
        """

    def flush(self) -> None:
        """Do nothing: there is no cache that rows would be written back from."""

    def purge(self) -> None:
        """Do nothing: there is no cache that would be emptied."""

    def create_rocksdb_hard_link_snapshot(self) -> None:
        """Do nothing: no table is in a RocksDB."""

    def get_named_split_embedding_weights_snapshot(self) -> Iterator[Any]:
        """Return nothing: no table is in a key-value store."""
        return iter(())

    def get_resize_awaitables(self) -> list[LazyAwaitable[Tensor]]:
        """Return nothing: no table changes its size."""
        return []

    def register_optim_state_tracker_fn(
        self, record_fn: Callable[[KeyedJaggedTensor, Tensor, nn.Module | None], None]
    ) -> None:
        """Not supported: there is no tracker of states.

        Args:
            record_fn: would be called after look-ups.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell a tracker of its states.")


def _weights_loaded(lookup: _GroupedLookup, _: object) -> None:
    lookup.weights_loaded()


def _train(
    config: GroupedEmbeddingConfig, collection: EmbeddingBagCollection | EmbeddingCollection
) -> None:
    """Have the backward pass update a group, if it should."""
    if config.compute_kernel not in _KERNELS:
        raise ValueError(
            f"`compute_kernel` of a group should be one of {[kernel.value for kernel in _KERNELS]}. "
            f"Received '{config.compute_kernel.value}'."
        )
    if config.compute_kernel is EmbeddingComputeKernel.FUSED:
        optimizer, options = optimizer_of(config.fused_params or {})
        apply_optimizer_in_backward(optimizer, collection.parameters(), options)


def _tables(config: GroupedEmbeddingConfig) -> Iterator[dict[str, Any]]:
    """Yield what each part is as a table."""
    for table in config.embedding_tables:
        yield {
            "num_embeddings": table.local_rows,
            "embedding_dim": table.local_cols,
            "name": table.name,
            "data_type": config.data_type,
            "feature_names": table.feature_names,
            "init_fn": table.init_fn,
        }


class GroupedEmbeddingsLookup(_GroupedLookup, BaseEmbeddingLookup[KeyedJaggedTensor, Tensor]):
    """Looks up groups of parts of tables, a vector an id.

    Args:
        grouped_configs: the groups.
        pg: without effect: nothing is exchanged.
        device: of the weights. Default: PyTorch's default device.
        env: without effect, likewise.

    Raises:
        ValueError: for two parts of one table, or a kernel that there is none of.
    """

    def __init__(
        self,
        grouped_configs: list[GroupedEmbeddingConfig],
        pg: dist.ProcessGroup | None = None,
        device: torch.device | None = None,
        env: ShardingEnv | None = None,
    ) -> None:
        super().__init__()
        self._set_groups(
            grouped_configs,
            lambda config: EmbeddingCollection(
                [EmbeddingConfig(**table) for table in _tables(config)], device
            ),
        )

    def forward(self, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Return the vectors of all ids, one behind the other, flat.

        Args:
            sparse_features: rows of the parts, for the features of all groups.
        """
        found = [
            jagged.values().flatten()
            for collection in self._collections
            for jagged in collection(sparse_features).values()
        ]
        return torch.cat(found) if found else torch.empty(0)


class GroupedPooledEmbeddingsLookup(_GroupedLookup, BaseEmbeddingLookup[KeyedJaggedTensor, Tensor]):
    """Looks up groups of parts of tables, and pools the vectors of each bag.

    Args:
        grouped_configs: the groups.
        device: of the weights. Default: PyTorch's default device.
        pg: whose ranks a gradient of weights of ids is multiplied by, see ``scale_weight_gradients``.
        feature_processor: not supported, as feature processors run before ids are sent; must be None.
        scale_weight_gradients: multiply gradients of weights of ids by the number of ranks, which divide those that
            they send by it. Default True; without effect without a process group.
        sharding_type: without effect.
        env: the ranks, instead of ``pg``.

    Raises:
        ValueError: for two parts of one table, or a kernel that there is none of.
    """

    def __init__(
        self,
        grouped_configs: list[GroupedEmbeddingConfig],
        device: torch.device | None = None,
        pg: dist.ProcessGroup | None = None,
        feature_processor: nn.Module | None = None,
        scale_weight_gradients: bool = True,
        sharding_type: ShardingType | None = None,
        env: ShardingEnv | None = None,
    ) -> None:
        if feature_processor is not None:
            raise ValueError(
                "`feature_processor` should be None: features are processed before ids are sent. "
                f"Received a {type(feature_processor).__name__}."
            )
        super().__init__()
        ranks = env.world_size if env is not None else dist.get_world_size(pg) if pg else 1
        self._factor = ranks if scale_weight_gradients else 1
        self._set_groups(
            grouped_configs,
            lambda config: EmbeddingBagCollection(
                [EmbeddingBagConfig(**table, pooling=config.pooling) for table in _tables(config)],
                config.is_weighted or config.has_feature_processor,
                device,
            ),
        )

    def forward(self, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Return pooled vectors, look-up beside look-up, ``(B, sum of columns)``.

        Args:
            sparse_features: rows of the parts, for the features of all groups.
        """
        weights = sparse_features.weights_or_none()
        if weights is not None and weights.requires_grad and self._factor != 1:
            weights = weights.view_as(weights)
            weights.register_hook(lambda grad: grad * self._factor)
            sparse_features = sparse_features.with_weights(weights)
        found = [collection(sparse_features).values() for collection in self._collections]
        return torch.cat(found, 1) if found else torch.empty(sparse_features.stride(), 0)

    def wait_for_forward(self) -> None:
        """Do nothing: a look-up is over when it returns."""
