"""What modules were before they were sharded, without their memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from torchrec.optim.owners import owner_of
from torchrec.optim.table_update import TableUpdate

__all__ = ["skeleton_of"]


def skeleton_of(module: nn.Module) -> nn.Module:
    """Return a copy of a module on ``meta``: its structure, and how its tables are trained.

    Args:
        module: stays as it is; its tensors are not copied.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"], optimizer="adam", lr=0.1)
        >>> skeleton = skeleton_of(EmbeddingBagCollection([table]))
        >>> skeleton.embedding_bags["t"].weight.device, skeleton.fused_optimizer.param_groups[0]["lr"]
        (device(type='meta'), 0.1)
    """
    # What `copy.deepcopy` finds in its memo it takes instead of a copy.
    memo: dict[int, object] = {id(tensor): _on_meta(tensor) for tensor in _tensors_of(module)}
    return copy.deepcopy(module, memo)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.buffers()
    for param in module.parameters():
        yield param
        owner = owner_of(param)
        if isinstance(owner, TableUpdate):
            yield from owner.states.values()
