"""What a rank checks of its batch while all others can still be told."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.tables import slots_of, table_spec_of
from torchrec.ops.embedding import Ids, LookupSpec, PoolingCode, choose_rows
from torchrec.ops.embedding.failure import raise_bad_bag
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["check_batch", "check_single_ids", "named_collection"]


def named_collection(path: str, tables: Sequence[str]) -> str:
    """Return what errors call a collection.

    Args:
        path: of its module in the model; empty where it is not told.
        tables: their names.

    Example:
        >>> named_collection("over.tables", ["user"]), named_collection("", ["user", "item"])
        ("module 'over.tables'", "the collection of tables ['user', 'item']")
    """
    return f"module '{path}'" if path else f"the collection of tables {list(tables)}"


def check_batch(configs: Sequence[BaseEmbeddingConfig], features: KeyedJaggedTensor) -> None:
    """Refuse what the look-up of some tables will refuse: ids without a row, bags that are not of one id.

    Args:
        configs: the tables.
        features: all of one batch size, or with batches of their own where nobody asks for bags.
    """
    slots, width = slots_of(configs, features.keys())
    starts, sizes = features.offset_per_key(), features.length_per_key()
    spec = LookupSpec([table_spec_of(config) for config in configs], slots, len(sizes), width)
    ids = Ids(
        features.values(),
        [starts[slot.key] for slot in slots],
        [sizes[slot.key] for slot in slots],
    )
    choose_rows(spec, ids, features.offsets())
    check_single_ids(spec, features)


def check_single_ids(spec: LookupSpec, features: KeyedJaggedTensor) -> None:
    """Refuse bags of pooling NONE that do not hold exactly one id: who has the rows sees sums only.

    Args:
        spec: what is looked up.
        features: all of one batch size, if there is such a slot.

    Raises:
        ValueError: naming table, feature and sample.
    """
    single = [s for s, slot in enumerate(spec.slots) if slot.pooling == PoolingCode.NONE]
    if not single:
        return
    lengths = features.lengths().view(len(features.keys()), features.stride())
    for s in single:
        mine = lengths[spec.slots[s].key]
        others = (mine != 1).nonzero()
        if len(others):
            sample = int(others[0])
            raise_bad_bag(spec.names, s, sample, int(mine[sample]))
