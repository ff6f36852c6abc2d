"""Look-ups in all tables of a collection at once, their gradients, and updates fused into the backward pass."""

from torchrec.ops.embedding.gradients import (
    BagGradient,
    Bags,
    Ids,
    LookupGradient,
    SequenceGradient,
    Updater,
)
from torchrec.ops.embedding.hyper import new_hyper, write_hyper
from torchrec.ops.embedding.lookup import Group, choose_rows, lookup_bags, lookup_sequences
from torchrec.ops.embedding.spec import (
    NO_ROW,
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
)
from torchrec.ops.embedding.split_update import SplitUpdate
from torchrec.ops.embedding.table import new_table
from torchrec.ops.hashing import hash_ids

__all__ = [
    "NO_ROW",
    "BagGradient",
    "Bags",
    "Group",
    "Ids",
    "LookupGradient",
    "LookupSpec",
    "PolicyCode",
    "PoolingCode",
    "SequenceGradient",
    "SlotSpec",
    "SplitUpdate",
    "TableSpec",
    "Updater",
    "choose_rows",
    "hash_ids",
    "lookup_bags",
    "lookup_sequences",
    "new_hyper",
    "new_table",
    "write_hyper",
]
