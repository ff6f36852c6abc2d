"""Towers: embeddings and the interaction that reads them, kept together so that they can be sharded together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
)
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["EmbeddingTower", "EmbeddingTowerCollection", "tower_input_params"]


def tower_input_params(module: nn.Module) -> tuple[bool, bool]:
    """Say which features an embedding module takes: those without weights, those with.

    Args:
        module: the embedding module of a tower.

    Returns:
        Whether it takes ``features``, and whether ``weighted_features``. Tables take one of them, as
        their ``is_weighted`` says; feature processors before them make the weights. Any other
        module is taken to want both.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> tables = [EmbeddingBagConfig(10, 4, "t", feature_names=["f"])]
        >>> tower_input_params(EmbeddingBagCollection(tables=tables))
        (True, False)
        >>> tower_input_params(EmbeddingBagCollection(tables=tables, is_weighted=True))
        (False, True)
        >>> tower_input_params(nn.Identity())
        (True, True)
    """
    if isinstance(module, EmbeddingBagCollectionInterface):
        weighted = module.is_weighted()
        return not weighted, weighted
    if isinstance(module, EmbeddingCollectionInterface | FeatureProcessedEmbeddingBagCollection):
        return True, False
    return True, True


class EmbeddingTower(nn.Module, LeafModule):
    """An embedding module and the interaction module that takes its output.

    ``forward(*args) = interaction_module(embedding_module(*args))``. That they belong together lets
    sharding put both on the same ranks, so that only the output of the interaction is exchanged.

    Args:
        embedding_module: from features to embeddings, such as `EmbeddingBagCollection`.
        interaction_module: from what that returns to a tensor, ``(B, D)``.
        device: to move both to. Default: where they are.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> class Sum(nn.Module):
        ...     def forward(self, pooled):
        ...         return pooled.values().sum(dim=1, keepdim=True)
        >>> tables = [EmbeddingBagConfig(
        ...     10, 4, "t", feature_names=["f"], init_fn=torch.nn.init.ones_
        ... )]
        >>> tower = EmbeddingTower(EmbeddingBagCollection(tables=tables), Sum())
        >>> tower(KeyedJaggedTensor.from_lists({"f": [[7, 8], [9]]})).tolist()
        [[8.0], [4.0]]
    """

    def __init__(
        self,
        embedding_module: nn.Module,
        interaction_module: nn.Module,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding_module
        self.interaction = interaction_module
        if device is not None:
            self.to(device)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the interaction of the embeddings.

        Args:
            *args: what the embedding module takes.
            **kwargs: likewise.
        """
        output: Tensor
        if is_proxy(args):
            output = self.recorded_with(args, kwargs)
        else:
            output = self.interaction(self.embedding(*args, **kwargs))
        return output


class EmbeddingTowerCollection(nn.Module):
    """Several towers over one batch, their outputs side by side.

    Each tower is given the features that its embedding module takes, see `tower_input_params`.

    Args:
        towers: the towers.
        device: to move them to. Default: where they are.

    Raises:
        TypeError: for what is no `EmbeddingTower`.
        ValueError: for no towers.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> class Values(nn.Module):
        ...     def forward(self, pooled):
        ...         return pooled.values()
        >>> def tower(name, dim):
        ...     table = EmbeddingBagConfig(
        ...         10, dim, name, feature_names=["f"], init_fn=torch.nn.init.ones_
        ...     )
        ...     return EmbeddingTower(EmbeddingBagCollection(tables=[table]), Values())
        >>> towers = EmbeddingTowerCollection([tower("t", 1), tower("u", 2)])
        >>> towers(KeyedJaggedTensor.from_lists({"f": [[7, 8], [9]]})).tolist()
        [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]
    """

    def __init__(
        self, towers: list[EmbeddingTower], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if not towers:
            raise ValueError("`towers` should hold at least one tower. Received none.")
        for tower in towers:
            if not isinstance(tower, EmbeddingTower):
                raise TypeError(
                    f"`towers` should hold EmbeddingTowers. Received {type(tower).__name__}."
                )
        self.towers = nn.ModuleList(towers)
        self._takes = [tower_input_params(tower.embedding) for tower in towers]
        if device is not None:
            self.to(device)

    def forward(
        self,
        features: KeyedJaggedTensor | None = None,
        weighted_features: KeyedJaggedTensor | None = None,
    ) -> Tensor:
        """Return the outputs of all towers, side by side.

        Args:
            features: ids by feature; needed if a tower takes them.
            weighted_features: likewise, ids with weights.

        Returns:
            ``(B, sum of D)``.

        Raises:
            ValueError: if a tower takes what is not given.
        """
        outputs = []
        for number, (tower, takes) in enumerate(zip(self.towers, self._takes, strict=True)):
            inputs = []
            for name, given, taken in (
                ("features", features, takes[0]),
                ("weighted_features", weighted_features, takes[1]),
            ):
                if taken and given is None:
                    raise ValueError(
                        f"`{name}` should be given, as tower number {number} takes them. "
                        "Received None."
                    )
                if taken:
                    inputs.append(given)
            outputs.append(tower(*inputs))
        return torch.cat(outputs, dim=1)
