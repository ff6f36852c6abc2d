"""Plans that change while a model is trained: what can, and what all ranks should be given alike."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import EmbeddingModuleShardingPlan
from torchrec.modules.embedding_configs import ShardingType

__all__ = ["described_changes", "resharded_modules"]

_Collection = ShardedEmbeddingBagCollection | ShardedEmbeddingCollection


def resharded_modules(
    model: nn.Module, changes: Mapping[str, EmbeddingModuleShardingPlan]
) -> dict[str, _Collection]:
    """Return the modules whose tables go elsewhere, by path.

    Args:
        model: sharded.
        changes: path of a module -> where its tables go.

    Raises:
        ValueError: for a module or table that there is not, or that cannot change.
    """
    modules, found = dict(model.named_modules()), dict[str, _Collection]()
    for path, plan in changes.items():
        module = modules.get(path)
        if not isinstance(module, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            kind = "nothing" if module is None else f"a {type(module).__name__}"
            raise ValueError(
                "Paths of changes should be those of sharded EmbeddingBagCollections and EmbeddingCollections. "
                f"Received '{path}', where there is {kind}."
            )
        tables = module.tables
        tables.check_movable()
        for name, sharding in plan.items():
            if name not in tables.sharding:
                raise ValueError(
                    f"Changes should be of tables of {tables.named}. Received '{name}', which it does not have."
                )
            kinds = tables.sharding[name].sharding_type, sharding.sharding_type
            if ShardingType.DATA_PARALLEL.value in kinds:
                raise ValueError(
                    f"Table '{name}' of {tables.named} should be spread over ranks before and after. "
                    f"Received a change from {kinds[0]} to {kinds[1]}."
                )
        found[path] = module
    return found


def described_changes(
    model: nn.Module, changes: Mapping[str, EmbeddingModuleShardingPlan]
) -> dict[str, str]:
    """Return where tables go, as all ranks should be given it.

    Args:
        model: sharded.
        changes: path of a module -> where its tables go.

    Raises:
        ValueError: as `resharded_modules` does.
    """
    return {
        f"the new sharding of table '{name}' of module '{path}'": str(sharding)
        for path in resharded_modules(model, changes)
        for name, sharding in changes[path].items()
    }
