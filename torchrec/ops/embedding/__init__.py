"""Look-ups in all tables of a collection at once, their gradients, and updates fused into the backward pass."""

from torchrec.ops.embedding.hyper import new_hyper, write_hyper
from torchrec.ops.embedding.lookup import (
    Bags,
    Group,
    Ids,
    KernelUpdater,
    Updater,
    bag_row_grads,
    choose_rows,
    lookup_bags,
    lookup_sequences,
    sequence_row_grads,
)
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
    "Bags",
    "Group",
    "Ids",
    "KernelUpdater",
    "LookupSpec",
    "PolicyCode",
    "PoolingCode",
    "SlotSpec",
    "SplitUpdate",
    "TableSpec",
    "Updater",
    "bag_row_grads",
    "choose_rows",
    "hash_ids",
    "lookup_bags",
    "lookup_sequences",
    "new_hyper",
    "new_table",
    "sequence_row_grads",
    "write_hyper",
]
