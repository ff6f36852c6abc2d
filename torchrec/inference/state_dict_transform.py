"""States of sharded models, for a process that predicts: gathered, and moved to a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec.distributed.state import ShardedTable
from torchrec.distributed.wire import Wire

__all__ = ["state_dict_all_gather_keys", "state_dict_gather", "state_dict_to_device"]


def state_dict_all_gather_keys(state_dict: Iterable[str], pg: dist.ProcessGroup) -> list[str]:
    """Return the names that there are on any rank, sorted; all ranks call this.

    Args:
        state_dict: the names on this rank.
        pg: the ranks.
    """
    names: list[list[str]] = Wire(pg).tell(list(state_dict), "the names of a state")
    return sorted(set(chain(*names)))


def state_dict_gather(src: Mapping[str, Tensor], dst: Mapping[str, Tensor]) -> None:
    """Write the state of a sharded model into tensors of wholes; all ranks call this.

    Args:
        src: of the sharded model. What is sharded is brought to the first rank; of groups of ranks that each have all
            tables, to the first of each.
        dst: of the same model unsharded, or some of it: written to; sharded tables on these ranks alone.

    Raises:
        KeyError: for a name that ``src`` does not have.
    """
    for name, whole in dst.items():
        source: Any = src[name]
        if hasattr(source, "local_shards"):
            source.gather(0, whole if _is_first(source) else None)
        else:
            whole.detach().copy_(source)


def _is_first(source: Any) -> bool:
    if isinstance(source, ShardedTable):
        return source.rank == 0
    return not dist.is_initialized() or dist.get_rank() == 0


def state_dict_to_device(
    state_dict: Mapping[str, Tensor], pg: dist.ProcessGroup, device: torch.device
) -> dict[str, Tensor]:
    """Return a state whose tensors, and parts of tensors, are on a device; all ranks call this.

    Args:
        state_dict: of a sharded model.
        pg: the ranks.
        device: where.

    Raises:
        ValueError: if ranks have states of other names.
    """
    names = state_dict_all_gather_keys(state_dict, pg)
    for name in names:
        if name not in state_dict:
            raise ValueError(
                f"`state_dict` should have '{name}', as on other ranks. Received {sorted(state_dict)}."
            )
    return {name: state_dict[name].to(device) for name in names}
