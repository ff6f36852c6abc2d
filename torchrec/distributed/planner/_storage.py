"""How much memory a part of a table takes: weights, what its optimizer keeps, and what a step exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from torchrec.distributed.planner._topology import Storage
from torchrec.distributed.planner.constants import BIGINT_DTYPE
from torchrec.distributed.types import DataType, ModuleSharder, ShardingType
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.fusable import fused_rule
from torchrec.optim.owners import owner_of

_FLOAT = 4


@dataclass(frozen=True)
class Traffic:
    """What one step of one rank asks of a table.

    Attributes:
        ids: how many it looks up.
        vectors: how many it gets back.
        id_bytes: of an id, with its weight.
        number_bytes: of a number of a vector.
    """

    ids: float
    vectors: float
    id_bytes: int
    number_bytes: float

    @classmethod
    def of(
        cls,
        batch_sizes: list[int],
        input_lengths: list[float],
        num_poolings: list[float],
        is_pooled: bool,
        is_weighted: bool,
        output_dtype: DataType | None,
    ) -> Traffic:
        """Add up the features of a table; the arguments as `ParameterConstraints` has them."""
        bags = [b * n for b, n in zip(batch_sizes, num_poolings, strict=True)]
        ids = sum(bag * length for bag, length in zip(bags, input_lengths, strict=True))
        return cls(
            ids=ids,
            vectors=sum(bags) if is_pooled else ids,
            id_bytes=BIGINT_DTYPE + (_FLOAT if is_weighted else 0),
            number_bytes=DATA_TYPE_NUM_BITS[output_dtype] / 8 if output_dtype else _FLOAT,
        )


def storage_of(
    param: nn.Parameter,
    size: list[int],
    sharding_type: ShardingType,
    compute_kernel: str,
    sharder: ModuleSharder[Any],
    compute_device: str,
    world_size: int,
    traffic: Traffic,
) -> Storage:
    """Return the bytes that a part of a table takes.

    Args:
        param: the whole table.
        size: rows and columns of the part.
        sharding_type: of the table.
        compute_kernel: ``"fused"`` or ``"dense"``.
        sharder: says which memory the table lies in.
        compute_device: type of device of the ranks.
        world_size: how many ranks ask for it.
        traffic: what each of them asks.
    """
    rows, columns = size
    share = rows * columns / param.nelement() if param.nelement() else 0.0
    weights = sharder.storage_usage(param, compute_device, compute_kernel)
    found = {name: int(total * share) for name, total in weights.items()}
    state = next(iter(found), "ddr")  # the optimizer's state is where the table is
    found[state] = found.get(state, 0) + _kept_bytes(param, rows, columns, compute_kernel)
    asking = 1 if sharding_type is ShardingType.DATA_PARALLEL else world_size
    exchanged = asking * (
        traffic.ids * traffic.id_bytes * (rows / param.shape[0] if param.shape[0] else 0.0)
        + traffic.vectors * columns * traffic.number_bytes
    )
    memory = "ddr" if compute_device == "cpu" else "hbm"
    found[memory] = found.get(memory, 0) + int(exchanged)
    return Storage(found.get("hbm", 0), found.get("ddr", 0))


def _kept_bytes(param: nn.Parameter, rows: int, columns: int, compute_kernel: str) -> int:
    """Return the bytes of a dense gradient, or of the state of a fused update: one number a weight if not known."""
    owner = owner_of(param)
    if compute_kernel != "fused":
        return rows * columns * param.element_size()
    if owner is None or owner.applied is None:
        return rows * columns * _FLOAT
    kind, hyper = fused_rule(*owner.applied)
    rule = RULES[kind]
    numbers = [rows if rule.state[name] else rows * columns for name in rule.state_names(hyper)]
    return sum(numbers) * _FLOAT
