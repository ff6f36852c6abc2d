"""Plans that change while a model is trained: what can, and what all ranks should be given alike."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.shard import outermost
from torchrec.distributed.sharded_tables import ShardedTables
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardedModule, ShardingEnv

__all__ = ["described_changes", "moved_in_all", "resharded_modules"]

ShardedCollection = ShardedEmbeddingBagCollection | ShardedEmbeddingCollection


def resharded_modules(
    model: nn.Module, changes: Mapping[str, EmbeddingModuleShardingPlan]
) -> dict[str, ShardedCollection]:
    """Return the modules whose tables go elsewhere, by path.

    Args:
        model: sharded.
        changes: path of a module -> where its tables go.

    Raises:
        ValueError: for a module that there is not, or whose tables cannot go elsewhere.
    """
    modules, found = dict(model.named_modules()), dict[str, ShardedCollection]()
    whole = dict(outermost(model, ShardedModule))
    for path in changes:
        module = modules.get(path)
        around = next(
            (p for p in whole if p != path and f"{path}.".startswith(f"{p}." if p else "")), None
        )
        if around is not None:
            raise ValueError(
                "Paths of changes should be those of sharded modules, not of what is inside. "
                f"Received '{path}', inside the {type(whole[around]).__name__} '{around}'."
            )
        if not isinstance(module, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            kind = "nothing" if module is None else f"a {type(module).__name__}"
            raise ValueError(
                "Paths of changes should be those of sharded EmbeddingBagCollections and EmbeddingCollections. "
                f"Received '{path}', where there is {kind}."
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
        ValueError: as `resharded_modules` and `ShardedTableCollection.described_moves` do.
    """
    described = dict[str, str]()
    for path, module in resharded_modules(model, changes).items():
        described |= module.described_moves(changes[path])
    return described


def moved_in_all(
    modules: Mapping[str, ShardedCollection],
    changes: Mapping[str, EmbeddingModuleShardingPlan],
    env: ShardingEnv,
) -> dict[str, ShardedTables]:
    """Return the tables of all modules as they are to lie, beside those that there are; all ranks call this.

    Args:
        modules: by path.
        changes: where their tables go, which `described_changes` has found nothing wrong with.
        env: the ranks.

    Raises:
        Exception: on all ranks, if it fails on one; nothing has changed then, in any of the modules.
    """
    moved: dict[str, ShardedTables] = {}
    try:
        for path, module in modules.items():
            moved[path] = module.moved_tables(changes[path], env)
    except Exception:
        for path, tables in moved.items():
            tables.retire(modules[path].tables)
        raise
    return moved
