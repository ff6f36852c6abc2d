"""Embedding collections whose tables are all updated in the backward pass by one optimizer.

An ordinary collection does that as well, table by table: by ``optimizer`` in the configuration of a
table, or by `torchrec.optim.apply_optimizer_in_backward`. These classes are for code that is written
for them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchrec.checks import checked_device, require_type
from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules._private import children_by_name
from torchrec.modules.collection import TableStore
from torchrec.modules.embedding_configs import (
    EmbeddingBagConfig,
    EmbeddingConfig,
    OptimizerType,
)
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
    EmbeddingCollection,
    EmbeddingCollectionInterface,
)
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.embedding_optimizer import EmbeddingFusedOptimizer
from torchrec.optim.fusable import fused_rule, optimizer_class_of
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = [
    "EmbeddingFusedOptimizer",
    "EmbeddingLocation",
    "FusedEmbeddingBagCollection",
    "FusedEmbeddingCollection",
    "convert_optimizer_type_and_kwargs",
    "fuse_embedding_optimizer",
]

F = TypeVar("F", bound="_FusedCollection")


class EmbeddingLocation(Enum):
    """Which memory tables are kept in, in the words of kernels. Ours are where their device is."""

    DEVICE = 0
    MANAGED = 1
    MANAGED_CACHING = 2
    HOST = 3
    MTIA = 4


def convert_optimizer_type_and_kwargs(
    optimizer_type: type[torch.optim.Optimizer], optimizer_kwargs: dict[str, Any]
) -> tuple[OptimizerType, dict[str, Any]] | None:
    """Return the update rule and its options that an optimizer stands for, in the words of kernels.

    Args:
        optimizer_type: the class of the optimizer.
        optimizer_kwargs: its arguments.

    Returns:
        The rule and those of its options that are given, ``lr`` under the name ``learning_rate``.
        None for an optimizer that cannot be fused.

    Raises:
        TypeError: for an argument that the optimizer does not have.

    Example:
        >>> convert_optimizer_type_and_kwargs(torch.optim.Adam, {"lr": 0.1, "eps": 1e-6})
        (<OptimizerType.ADAM: 'adam'>, {'learning_rate': 0.1, 'eps': 1e-06})
        >>> convert_optimizer_type_and_kwargs(torch.optim.RMSprop, {"lr": 0.1}) is None
        True
    """
    require_type(optimizer_kwargs, "`optimizer_kwargs`", dict)
    try:
        kind, _ = fused_rule(optimizer_type, optimizer_kwargs)
    except ValueError:
        return None
    options = RULES[kind].options
    given = {name: value for name, value in optimizer_kwargs.items() if name in options}
    return kind, {"learning_rate" if n == "lr" else n: value for n, value in given.items()}


class _FusedCollection(nn.Module):
    """Holds an ordinary collection, whose tables it shows as its own."""

    _collection: EmbeddingBagCollection | EmbeddingCollection

    def _hold(
        self,
        collection: EmbeddingBagCollection | EmbeddingCollection,
        optimizer_type: type[torch.optim.Optimizer],
        optimizer_kwargs: dict[str, Any],
    ) -> None:
        require_type(optimizer_kwargs, "`optimizer_kwargs`", dict)
        _check_free(collection)
        self._optimizer_type = optimizer_class_of(optimizer_type)
        self._optimizer_kwargs = optimizer_kwargs
        apply_optimizer_in_backward(optimizer_type, collection.parameters(), optimizer_kwargs)
        # No child: its parameters have the names here that they have there.
        object.__setattr__(self, "_collection", collection)
        for name, child in collection.named_children():
            self.add_module(name, child)
        # The names are loaded here, so the collection would not hear of it.
        self.register_load_state_dict_post_hook(_weights_loaded)  # type: ignore[no-untyped-call]

    @classmethod
    def _around(
        cls: type[F],
        collection: EmbeddingBagCollection | EmbeddingCollection,
        optimizer_type: type[torch.optim.Optimizer],
        optimizer_kwargs: dict[str, Any],
    ) -> F:
        """Make one of a collection that there is, with its very tables."""
        fused = cls.__new__(cls)
        nn.Module.__init__(fused)
        fused._hold(collection, optimizer_type, optimizer_kwargs)
        return fused

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._collection._apply(fn, recurse)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients, also those that were accumulated and not applied.

        Args:
            set_to_none: set gradients to None instead of zeros.
        """
        self._collection.zero_grad(set_to_none)

    @property
    def device(self) -> torch.device:
        """The device of the tables."""
        return self._collection.device

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of the tables: its state, and learning rates to be changed."""
        return self._collection.fused_optimizer

    def table_store(self) -> TableStore:
        """Return the tables."""
        return self._collection

    def optimizer_type(self) -> type[torch.optim.Optimizer]:
        """Return the class of the optimizer."""
        return self._optimizer_type

    def optimizer_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the optimizer."""
        return self._optimizer_kwargs


def _weights_loaded(fused: _FusedCollection, _: object) -> None:
    fused._collection.weights_loaded()


class FusedEmbeddingBagCollection(
    _FusedCollection, EmbeddingBagCollectionInterface, FusedOptimizerModule, LeafModule
):
    """An `EmbeddingBagCollection` whose tables are all updated in the backward pass by one optimizer.

    Parameters have the names that they have in an `EmbeddingBagCollection`, and no gradient.

    Args:
        tables: the tables; none has an ``optimizer`` of its own.
        optimizer_type: the class of the optimizer, one that can be fused, see
            `torchrec.optim.apply_optimizer_in_backward`.
        optimizer_kwargs: its arguments.
        is_weighted: whether each id comes with a weight.
        device: of the tables. Default: PyTorch's default device.
        location: without effect: tables are where their device is.

    Raises:
        ValueError: for an optimizer that cannot be fused, or a table that has one.

    Example:
        >>> tables = [EmbeddingBagConfig(
        ...     2, 1, "t", feature_names=["f"], init_fn=torch.nn.init.zeros_
        ... )]
        >>> ebc = FusedEmbeddingBagCollection(tables, torch.optim.SGD, {"lr": 0.5})
        >>> ebc(KeyedJaggedTensor.from_lists({"f": [[0], [0, 1]]})).values().sum().backward()
        >>> ebc.embedding_bags["t"].weight.tolist()
        [[-1.0], [-0.5]]
    """

    _collection: EmbeddingBagCollection

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        optimizer_type: type[torch.optim.Optimizer],
        optimizer_kwargs: dict[str, Any],
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        location: EmbeddingLocation | None = None,
    ) -> None:
        super().__init__()
        collection = EmbeddingBagCollection(tables, is_weighted, device)
        self._hold(collection, optimizer_type, optimizer_kwargs)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool, see ``EmbeddingBagCollection.forward``.

        Args:
            features: ids by feature.
        """
        if is_proxy(features):
            traced: KeyedTensor = self.recorded(features)
            return traced
        return self._collection.forward(features)

    def table_store(self) -> EmbeddingBagCollection:
        """Return the tables."""
        return self._collection

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables."""
        return self._collection.embedding_bag_configs()

    def is_weighted(self) -> bool:
        """Return whether each id comes with a weight."""
        return self._collection.is_weighted()


class FusedEmbeddingCollection(
    _FusedCollection, EmbeddingCollectionInterface, FusedOptimizerModule, LeafModule
):
    """An `EmbeddingCollection` whose tables are all updated in the backward pass by one optimizer.

    Parameters have the names that they have in an `EmbeddingCollection`, and no gradient.

    Args:
        tables: the tables; none has an ``optimizer`` of its own.
        optimizer_type: the class of the optimizer, one that can be fused, see
            `torchrec.optim.apply_optimizer_in_backward`.
        optimizer_kwargs: its arguments.
        device: of the tables. Default: PyTorch's default device.
        need_indices: pass the ids on as the weights of the result.
        location: without effect: tables are where their device is.

    Raises:
        ValueError: for an optimizer that cannot be fused, or a table that has one.

    Example:
        >>> tables = [EmbeddingConfig(2, 1, "t", feature_names=["f"], init_fn=torch.nn.init.zeros_)]
        >>> ec = FusedEmbeddingCollection(tables, torch.optim.SGD, {"lr": 0.5})
        >>> features = KeyedJaggedTensor.from_lists({"f": [[0], [0, 1]]})
        >>> ec(features)["f"].values().sum().backward()
        >>> ec.embeddings["t"].weight.tolist()
        [[-1.0], [-0.5]]
    """

    _collection: EmbeddingCollection

    def __init__(
        self,
        tables: list[EmbeddingConfig],
        optimizer_type: type[torch.optim.Optimizer],
        optimizer_kwargs: dict[str, Any],
        device: torch.device | str | None = None,
        need_indices: bool = False,
        location: EmbeddingLocation | None = None,
    ) -> None:
        super().__init__()
        collection = EmbeddingCollection(tables, device, need_indices)
        self._hold(collection, optimizer_type, optimizer_kwargs)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Look up, see ``EmbeddingCollection.forward``.

        Args:
            features: ids by feature.
        """
        if is_proxy(features):
            traced: dict[str, JaggedTensor] = self.recorded(features)
            return traced
        return self._collection.forward(features)

    def table_store(self) -> EmbeddingCollection:
        """Return the tables."""
        return self._collection

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """Return the tables."""
        return self._collection.embedding_configs()

    def need_indices(self) -> bool:
        """Return whether the ids are passed on with their embeddings."""
        return self._collection.need_indices()

    def embedding_dim(self) -> int:
        """Return D, which all tables have."""
        return self._collection.embedding_dim()

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return, for each table, the names of the outputs of its features."""
        return self._collection.embedding_names_by_table()


def fuse_embedding_optimizer(
    model: nn.Module,
    optimizer_type: type[torch.optim.Optimizer],
    optimizer_kwargs: dict[str, Any],
    device: torch.device | str,
    location: EmbeddingLocation | None = None,
) -> nn.Module:
    """Have all tables of a model updated in the backward pass by one optimizer.

    Every `EmbeddingBagCollection` and `EmbeddingCollection` in the model is replaced by a fused one
    with the same tables: they are not copied, and their parameters keep their names.

    Args:
        model: the model; changed in place.
        optimizer_type: the class of the optimizer, one that can be fused.
        optimizer_kwargs: its arguments.
        device: to move the tables to.
        location: without effect: tables are where their device is.

    Returns:
        The model; if it is a collection itself, the fused one.

    Raises:
        ValueError: for an optimizer that cannot be fused, or a table that has one. Then the model is
            left as it was.

    Example:
        >>> tables = [EmbeddingBagConfig(10, 4, "t", feature_names=["f"])]
        >>> model = nn.Sequential(EmbeddingBagCollection(tables=tables))
        >>> model = fuse_embedding_optimizer(model, torch.optim.SGD, {"lr": 0.5}, "cpu")
        >>> type(model[0]).__name__, list(model.state_dict())
        ('FusedEmbeddingBagCollection', ['0.embedding_bags.t.weight'])
    """
    require_type(model, "`model`", nn.Module)
    require_type(optimizer_kwargs, "`optimizer_kwargs`", dict)
    device = checked_device(device)
    fused_rule(optimizer_type, optimizer_kwargs)
    parents = list(model.modules())
    found = [m for m in parents if isinstance(m, EmbeddingBagCollection | EmbeddingCollection)]
    for collection in found:
        _check_free(collection)
    fused: dict[nn.Module, nn.Module] = {}
    for collection in found:
        collection.to(device)
        bags = isinstance(collection, EmbeddingBagCollection)
        made = FusedEmbeddingBagCollection if bags else FusedEmbeddingCollection
        fused[collection] = made._around(collection, optimizer_type, optimizer_kwargs)
    for parent in parents:
        # Not named_children(), which names a module once that stands in two places.
        for name, child in list(children_by_name(parent).items()):
            if child in fused:
                parent.register_module(name, fused[child])
    return fused.get(model, model)


def _check_free(tables: TableStore) -> None:
    for config in tables.table_configs():
        if config.optimizer is not None:
            raise ValueError(
                f"`optimizer` of table '{config.name}' should be None, as the collection has one for "
                f"all tables. Received {config.optimizer.name}."
            )
