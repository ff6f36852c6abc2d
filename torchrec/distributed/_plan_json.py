"""Plans as JSON: a text that reads back to an equal plan, and a digest by which ranks can compare theirs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torchrec.distributed._plan import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan
from torchrec.distributed._private import EnumerableShardingSpec, ShardMetadata
from torchrec.types import BoundsCheckMode, DataType

_VERSION = 1
_KEYS = {
    "sharding_type",
    "compute_kernel",
    "ranks",
    "shards",
    "enforce_hbm",
    "stochastic_rounding",
    "bounds_check_mode",
    "output_dtype",
}


def plan_to_json(plan: ShardingPlan) -> str:
    """Write a plan as JSON, with its `plan_digest`, and if a planner made it, for how many ranks, and of what a digest.

    Args:
        plan: of embedding collections.

    Returns:
        the text, which `plan_from_json` reads back to an equal plan.

    Raises:
        ValueError: if a table has a cache or is in a key-value store, which is not written.

    Example:
        >>> sharding = ParameterSharding("data_parallel", "dense", [0, 1])
        >>> plan = ShardingPlan({"sparse": EmbeddingModuleShardingPlan(user=sharding)})
        >>> plan_from_json(plan_to_json(plan)) == plan
        True
    """
    ranks = {} if plan.world_size is None else {"world_size": plan.world_size}
    made_from = {} if plan.report is None else {"made_from": plan.report.made_from}
    return json.dumps(
        {**_data_of(plan), "digest": plan_digest(plan), **ranks, **made_from}, indent=2
    )


def plan_from_json(text: str) -> ShardingPlan:
    """Read a plan that `plan_to_json` has written.

    Args:
        text: JSON.

    Raises:
        ValueError: if it is not such a plan, or was changed since: without ``digest``, it may be.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"A plan should be JSON. {error}.") from error
    version = data.get("version") if isinstance(data, dict) else None
    modules = data.get("modules") if isinstance(data, dict) else None
    if version != _VERSION or not isinstance(modules, dict):
        raise ValueError(
            f"A plan should be of version {_VERSION}, with `modules`. Received version {version!r}."
        )
    for path, tables in modules.items():
        if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
            raise ValueError(
                f"Module {path!r} should have an object for each of its tables, by name. Received {tables!r}."
            )
    world_size = data.get("world_size")
    if world_size is not None and (type(world_size) is not int or world_size < 1):
        raise ValueError(f"A plan should have `world_size` of 1 or more. Received {world_size!r}.")
    plan = ShardingPlan(
        {
            path: EmbeddingModuleShardingPlan(
                {table: _from_data(path, table, entry) for table, entry in tables.items()}
            )
            for path, tables in modules.items()
        },
        world_size=world_size,
    )
    digest = data.get("digest")
    if digest is not None and digest != plan_digest(plan):
        raise ValueError(
            f"A plan should have `digest` {plan_digest(plan)}; leave it out of one that you change by hand. "
            f"Received {digest!r}."
        )
    return plan


def plan_digest(plan: ShardingPlan) -> str:
    """Return 64 hexadecimal digits that are the same for equal plans, whatever the order of modules and tables.

    Args:
        plan: of embedding collections.

    Example:
        >>> sharding = ParameterSharding("data_parallel", "dense", [0, 1])
        >>> plan_digest(ShardingPlan({"sparse": EmbeddingModuleShardingPlan(user=sharding)}))[:8]
        '6fca8333'
    """
    data = json.dumps(_data_of(plan), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(data.encode()).hexdigest()


def _data_of(plan: ShardingPlan) -> dict[str, object]:
    modules = {
        path: {table: _to_data(path, table, sharding) for table, sharding in module.items()}
        for path, module in _collections(plan).items()
    }
    return {"version": _VERSION, "modules": modules}


def _collections(plan: ShardingPlan) -> dict[str, EmbeddingModuleShardingPlan]:
    found = {}
    for path, module in plan.plan.items():
        if not isinstance(module, EmbeddingModuleShardingPlan):
            raise ValueError(
                f"The plan of module {path!r} should be an EmbeddingModuleShardingPlan. "
                f"Received {type(module).__name__}."
            )
        found[path] = module
    return found


def _to_data(path: str, table: str, sharding: ParameterSharding) -> dict[str, object]:
    name = f"Table {table!r} of module {path!r}"
    spec = sharding.sharding_spec
    if sharding.cache_params is not None or sharding.key_value_params is not None:
        raise ValueError(
            f"{name} should have no `cache_params` and `key_value_params`: they are not written as JSON."
        )
    if spec is not None and not isinstance(spec, EnumerableShardingSpec):
        raise ValueError(
            f"{name} should have an EnumerableShardingSpec. Received {type(spec).__name__}."
        )
    mode, dtype = sharding.bounds_check_mode, sharding.output_dtype
    data: dict[str, object] = {
        "sharding_type": sharding.sharding_type,
        "compute_kernel": sharding.compute_kernel,
        "ranks": sharding.ranks,
        "shards": None
        if spec is None
        else [
            {
                "offsets": list(shard.shard_offsets),
                "sizes": list(shard.shard_sizes),
                "placement": None if shard.placement is None else str(shard.placement),
            }
            for shard in spec.shards
        ],
    }
    options = {
        "enforce_hbm": sharding.enforce_hbm,
        "stochastic_rounding": sharding.stochastic_rounding,
        "bounds_check_mode": None if mode is None else mode.name,
        "output_dtype": None if dtype is None else dtype.name,
    }
    return data | {key: value for key, value in options.items() if value is not None}


def _from_data(path: str, table: str, entry: dict[str, Any]) -> ParameterSharding:
    name = f"Table {table!r} of module {path!r}"
    unknown = sorted(entry.keys() - _KEYS)
    if unknown:
        raise ValueError(f"{name} should have only {', '.join(sorted(_KEYS))}. Received {unknown}.")
    data = dict(entry)
    try:
        shards = data.pop("shards")
        mode, dtype = data.pop("bounds_check_mode", None), data.pop("output_dtype", None)
        spec = None if shards is None else _spec(shards)
        return ParameterSharding(
            **data,
            sharding_spec=spec,
            bounds_check_mode=None if mode is None else BoundsCheckMode[mode],
            output_dtype=None if dtype is None else DataType[dtype],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} should be as `plan_to_json` writes one. {error!r}.") from error


def _spec(shards: list[dict[str, Any]]) -> EnumerableShardingSpec:
    return EnumerableShardingSpec(
        [ShardMetadata(shard["offsets"], shard["sizes"], shard["placement"]) for shard in shards]
    )
