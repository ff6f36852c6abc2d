"""The layout of the two tensors that kernels read: the spec (int64) and the hyper-parameters (float64).

The spec holds, one behind the other, ``HEADER``, then ``TABLE`` for each table, then ``SLOT`` for each slot;
the hyper-parameters are ``HYPER`` for each table. ``csrc/embedding/call.h`` has the same fields in the
same order, and ``tests/ops/test_embedding_layout.py`` compares the two. Whoever changes one raises ``VERSION``,
the first number of every spec, and kernels refuse another version than theirs.
"""

VERSION = 3

HEADER = ("version", "tables", "slots")
TABLE = (
    "dim",
    "rows",
    "num_embeddings",
    "policy",
    "rule",
    "states",
    "first_row",
    "shard_rows",
)
SLOT = ("table", "key", "pooling", "column")
HYPER = (
    "lr",
    "eps",
    "beta1",
    "beta2",
    "weight_decay",
    "momentum",
    "eta",
    "max_gradient",  # 0: none
    "decoupled",
    "nesterov",
    "step",  # updates made
    "dampening",
    "dense",
    "batch_l2",
    "samples",  # of the next update, which `batch_l2` is divided by; 0: without it
)
