"""Managed collections in which no two tables are alike, so that a wrong index shows.

table   rows  dim  trained by                 features  map
a       4     2    its own optimizer          f, g      shared with c
b       7     3    yours                      h         of its own
c       6     1    its own, with your rate    f         shared with a: two of its rows stay unused
d       5     4    yours, sparse gradients    k         with two rows as residual zone
e       6     2    its own optimizer          m         none: its ids are rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    OptimizerType,
)
from torchrec.modules.hash_mc_evictions import (
    HashZchEvictionConfig,
    HashZchEvictionPolicyName,
)
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)

Managed = ManagedCollisionEmbeddingBagCollection | ManagedCollisionEmbeddingCollection
FEATURES = {"a": ["f", "g"], "b": ["h"], "c": ["f"], "d": ["k"], "e": ["m"]}
ROWS = {"a": 4, "b": 7, "c": 6, "d": 5, "e": 6}
DIMS = {"a": 2, "b": 3, "c": 1, "d": 4, "e": 2}
KEYS = ["m", "h", "f", "k", "g"]  # of a batch, not in the order of the tables


def make(
    pooled: bool = True,
    policy: Callable[[], MCHEvictionPolicy] = DistanceLFU_EvictionPolicy,
    interval: int = 1,
    optimizer: OptimizerType = OptimizerType.SGD,
    lr: float = 1.0,
    remapped: bool = False,
    only: str = "abcde",
    more_rows: int = 0,
    device: str = "cpu",
    hashed: bool = False,
    **options,
) -> Managed:
    """Return a collection of the tables above, or of some; ``options`` are for all of them.

    With ``more_rows``, the maps and their tables have so many more rows that ids can hold. With
    ``hashed``, maps find rows by hashing: two with buckets, each with rows that ids share.
    """
    kind = EmbeddingBagConfig if pooled else EmbeddingConfig
    trained_by = {
        "a": {"optimizer": optimizer, "lr": lr},
        "b": {},
        "c": {"optimizer": optimizer},
        "d": {"sparse": True},
        "e": {"optimizer": optimizer, "lr": lr},
    }
    tables = [
        kind(
            ROWS[name] + (0 if name == "e" else more_rows),
            DIMS[name],
            name,
            feature_names=features,
            **trained_by[name],
            **options,
        )
        for name, features in FEATURES.items()
        if name in only
    ]
    shared, own, residual = (
        MCHManagedCollisionModule(
            rows + more_rows, device, policy(), interval, mch_size=mch_size, name=name
        )
        for name, rows, mch_size in (("a", 4, None), ("b", 7, None), ("d", 3, 2))
    )
    maps = {"a": shared, "b": own, "c": shared, "d": residual, "e": None}
    if hashed:
        maps = hash_maps(device)
    collisions = ManagedCollisionCollection({name: maps[name] for name in only}, tables)
    if pooled:
        return ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=tables, device=device), collisions, remapped
        )
    return ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=tables, device=device), collisions, remapped
    )


def hash_maps(device: str) -> dict[str, HashZchManagedCollisionModule | None]:
    """Return a map by multi-probe hashing for each table but the last."""
    policy = HashZchEvictionPolicyName

    def new(name: str, rows: int, buckets: int, **options) -> HashZchManagedCollisionModule:
        return HashZchManagedCollisionModule(
            rows, device, buckets, name=name, opt_in_prob=70, percent_reserved_slots=34, **options
        )

    config = HashZchEvictionConfig(["f", "g"], per_feature_ttl=[1, 0])
    ttl = policy.PER_FEATURE_TTL_EVICTION
    shared = new("a", 4, 1, eviction_policy_name=ttl, eviction_config=config, max_probe=2)
    own = new("b", 7, 2, eviction_policy_name=policy.LRU_EVICTION, output_segments=[0, 3, 7])
    config = HashZchEvictionConfig([], single_ttl=1)
    ttl = policy.SINGLE_TTL_EVICTION
    single = new("d", 5, 1, eviction_policy_name=ttl, eviction_config=config)
    return {"a": shared, "b": own, "c": shared, "d": single, "e": None}


def outer_optimizers(
    module: Managed, lr: float = 1.0, kind: type[torch.optim.Optimizer] = torch.optim.SGD
) -> list[torch.optim.Optimizer]:
    """Return optimizers of what does not train itself, `b` and `d`, and for the rate of `c`."""
    weights = weights_of(module)
    kinds = {"b": kind, "c": torch.optim.SGD, "d": torch.optim.SGD}
    return [kinds[name]([weights[name]], lr=lr) for name in kinds if name in weights]


def weights_of(module: Managed) -> dict[str, torch.nn.Parameter]:
    """Return the weight of each table."""
    parts = (name.split(".")[-2:] for name, _ in module.named_parameters())
    return {table: weight for (table, _), weight in zip(parts, module.parameters(), strict=True)}


def batch(ids: Mapping[str, Sequence[Sequence[int]]]) -> KeyedJaggedTensor:
    """Return a batch of bags by feature; features that are not there have empty bags."""
    size = max(len(bags) for bags in ids.values())
    return KeyedJaggedTensor.from_lists({key: ids.get(key, [[]] * size) for key in KEYS})


def random_batch(generator: torch.Generator, size: int = 3, end: int = 12) -> KeyedJaggedTensor:
    """Return bags of up to three ids up to ``end``, and of rows for table ``e``."""

    def bags(most: int) -> list[list[int]]:
        lengths = torch.randint(0, 4, (size,), generator=generator).tolist()
        return [torch.randint(0, most, (n,), generator=generator).tolist() for n in lengths]

    return batch({key: bags(ROWS["e"] if key == "m" else end) for key in KEYS})


def output_sum(module: Managed, features: KeyedJaggedTensor) -> torch.Tensor:
    """Look up, and add all outputs up: each id sends a gradient of 1 to each number of its vector."""
    output, _ = module(features)
    if isinstance(output, dict):
        return sum(jt.values().sum() for jt in output.values())
    return output.values().sum()
