"""States as the original TorchRec names and orders them, for whoever goes back or reads them there.

The other way needs no function: ``load_state_dict`` understands that form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from torchrec.modules.collision.module import MCHManagedCollisionModule
from torchrec.optim.kernel_names import to_kernel_names
from torchrec.optim.keyed import KeyedOptimizer


def original_state_dict(
    of: nn.Module | KeyedOptimizer, column_shards: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return the state of a model or an optimizer in the form that the original TorchRec loads.

    Most modules have the same form. Maps of ids are sorted by id there; the state of fused tables goes
    by the names of kernels; and parameter groups are not saved. The names are those of a sharded model:
    ``FusedEmbeddingBagCollection`` there leaves out what stands before the table, and has
    ``t.weight`` and ``t.weight.momentum_1`` for the names below. It loads no others; here both do.

    A checkpoint of a sharded model holds pieces of tensors. ``torch.distributed.checkpoint.load`` puts
    them together, into what this function returns, which ``load_state_dict`` then takes.

    Args:
        of: a module, or an optimizer with named parameters.
        column_shards: of an optimizer: into how many parts the original has split the columns of a table, by its name.
            Rules such as row-wise Adagrad have a number a row there for each of these parts; here each row has one,
            their mean when such a state is loaded. Default: no table's are split.

    Returns:
        What ``load_state_dict`` takes here, and there but for those names.

    Raises:
        ValueError: for a map with a residual zone, which that form has no place for.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(
        ...     num_embeddings=5, embedding_dim=2, name="t", feature_names=["f"], optimizer="adagrad", lr=0.1
        ... )
        >>> optimizer = EmbeddingBagCollection(tables=[table]).fused_optimizer
        >>> state = original_state_dict(optimizer)["state"]
        >>> {name: list(values) for name, values in state.items()}
        {'embedding_bags.t.weight': ['t.momentum1']}
    """
    if isinstance(of, KeyedOptimizer):
        return {"state": to_kernel_names(of.state_dict()["state"], column_shards)}
    state: dict[str, Any] = dict(of.state_dict())
    for name, module in of.named_modules():
        if isinstance(module, MCHManagedCollisionModule):
            module.sort_saved(state, f"{name}." if name else "")
    return state
