"""Ranks have to shard the same model in the same way: they compare, before one of them waits for another in vain."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingEnv2D, ShardingPlan
from torchrec.distributed.wire import Wire
from torchrec.modules.collection import collections_in
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.mc_modules import ManagedCollisionCollection
from torchrec.optim.owners import owner_of
from torchrec.optim.table_update import TableUpdate
from torchrec.process_groups.lost_ranks import ranks_in_words

__all__ = ["check_alike", "description_of", "difference"]


def check_alike(env: ShardingEnv, describe: Callable[[], Mapping[str, str]]) -> None:
    """Raise on all ranks if they do not describe the same, or one fails to; all ranks call this.

    Args:
        env: the ranks. They exchange a digest, and what they have only if digests differ.
        describe: returns what is to be the same, by what it is: ``{"`lr` of table 'user'": "0.1"}``.

    Raises:
        ValueError: naming the first thing that differs, and what it is on which ranks.

    Example:
        >>> check_alike(ShardingEnv.from_local(1, 0), lambda: {"the number of tables": "3"})
    """
    group = env.sharding_pg if isinstance(env, ShardingEnv2D) else env.process_group
    if group is None or env.world_size == 1:
        describe()
        return
    wire, mine, error = Wire(group), dict[str, str](), None
    try:
        mine = dict(describe())
    except Exception as failed:
        error = failed
    digest = hashlib.sha256(repr(sorted(mine.items())).encode()).digest()
    head = [int(error is not None), *digest]
    meeting = wire.begin("a comparison of what they have", [head] * wire.world_size, len(head))
    of_ranks = meeting.numbers()
    if any(each[0] for each in of_ranks):
        wire.raise_together(error)
    if any(each != head for each in of_ranks):
        raise ValueError(difference(wire.gather(mine)))


def difference(of_ranks: list[dict[str, str]]) -> str:
    """Say what differs first between ranks, in the order of the first rank that has it.

    Args:
        of_ranks: what each has, by what it is; not all alike.

    Example:
        >>> difference([{"the number of tables": "3"}, {"the number of tables": "4"}])
        'All ranks should have the number of tables alike. Received 3 on rank 0, 4 on rank 1.'
    """
    names = dict.fromkeys(name for described in of_ranks for name in described)
    differing = [name for name in names if len({each.get(name) for each in of_ranks}) > 1]
    ranks_of: dict[str, list[int]] = {}
    for rank, described in enumerate(of_ranks):
        ranks_of.setdefault(described.get(differing[0], "nothing"), []).append(rank)
    received = ", ".join(f"{value} on {ranks_in_words(ranks)}" for value, ranks in ranks_of.items())
    others = f" Others that differ: {len(differing) - 1}." if len(differing) > 1 else ""
    return f"All ranks should have {differing[0]} alike. Received {received}.{others}"


def description_of(
    module: nn.Module, plan: ShardingPlan | None, sharders: Iterable[ModuleSharder[Any]]
) -> dict[str, str]:
    """Return what has to be the same on all ranks that share a model.

    Args:
        module: the model, before it is sharded.
        plan: where its tables go; None: that is not decided yet.
        sharders: who shards it.
    """
    found = {
        "the version of torchrec": str(sys.modules["torchrec"].__version__),
        "the version of PyTorch": torch.__version__,
    }
    tables: set[int] = set()
    for path, collection in collections_in(module):
        store, where = collection.table_store(), f" of module '{path}'" if path else ""
        configs = store.table_configs()
        found[f"the tables{where}"] = str([config.name for config in configs])
        for config in configs:
            weight = store.table_shards(config.name)[0].weight
            tables.add(id(weight))
            for option, value in _options(config, weight):
                found[f"`{option}` of table '{config.name}'{where}"] = value
    for path, child in module.named_modules():
        if isinstance(child, ManagedCollisionCollection):
            where = f" of module '{path}'" if path else ""
            for table, known in child.maps().items():
                found[f"the map of table '{table}'{where}"] = known.describe()
    for name, param in module.named_parameters():
        if id(param) not in tables:
            found[f"the parameter '{name}'"] = (
                f"{tuple(param.shape)} {param.dtype} requires_grad={param.requires_grad}"
            )
    found["the modules that a plan is given for"] = str(None if plan is None else [*plan.plan])
    for path, tables_of in ({} if plan is None else plan.plan).items():
        parts = tables_of.items() if isinstance(tables_of, dict) else [("", tables_of)]
        for name, sharding in parts:
            found[f"the plan of table '{name}' of module '{path}'"] = str(sharding)
    for sharder in sharders:
        name = f"{type(sharder).__name__} for {sharder.module_type.__name__}"
        for option in ("fused_params", "exact", "use_index_dedup", "qcomm_codecs_registry"):
            found[f"`{option}` of {name}"] = _text(getattr(sharder, option, None))
    return found


def _text(value: object) -> str:
    """Write a value so that the text is the same in every process: without addresses."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_text(each)}' for key, each in value.items())}}}"
    return re.sub(" at 0x[0-9a-f]+", "", str(getattr(value, "__qualname__", value)))


def _options(config: BaseEmbeddingConfig, weight: Tensor) -> Iterable[tuple[str, str]]:
    """Yield what there is to know of a table, but what may be a function of the rank's own."""
    for field in fields(config):
        value = getattr(config, field.name)
        if not callable(value):
            yield field.name, _text(value)
    yield "dtype", str(weight.dtype)
    yield "requires_grad", str(weight.requires_grad)
    owner = owner_of(weight)
    if isinstance(owner, TableUpdate) and owner.rule is not None:
        group = dict(owner.group or {})
        group.pop("params", None)
        yield "optimizer in the backward pass", f"{owner.rule.optimizer.name} {_text(group)}"
