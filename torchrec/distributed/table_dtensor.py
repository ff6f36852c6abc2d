"""A sharded table as a `DTensor`: what ``state_dict()`` shows where the environment asks for these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.distributed.tensor import Shard as Placed

from torchrec.distributed._private import keeps_sizes, same_dtensor_as
from torchrec.distributed.shards_wrapper import LocalShardsWrapper
from torchrec.distributed.state import ShardedTable

__all__ = ["TableDTensor", "as_dtensor"]


class TableDTensor(DTensor):
    """A table of which this rank has some parts: those of its local tensor, a `LocalShardsWrapper`.

    PyTorch takes the local tensors of a `DTensor` for pieces of equal size, in order of ranks; the parts of a table
    are where the plan has put them. Here the whole is put together by their offsets. Copies of it have copies of the
    parts. It is made by `as_dtensor`.
    """

    _table: ShardedTable

    @property
    def table(self) -> ShardedTable:
        """The same, as it is shown where the environment does not ask for a `DTensor`."""
        return self._table

    def full_tensor(self, *, grad_placements: Sequence[Placement] | None = None) -> Tensor:
        """Return the whole, on every rank; all ranks call this.

        Args:
            grad_placements: of gradients, which a state has none of; must be None.

        Raises:
            ValueError: for ``grad_placements``; on all ranks, if some do something else instead.
            RuntimeError: if a rank does not call this within the ``timeout`` of the process group.
        """
        if grad_placements is not None:
            raise ValueError(
                "`grad_placements` should be None: the state of a table has no gradients. "
                f"Received {list(grad_placements)}."
            )
        return self._table.full_tensor()

    def redistribute(
        self,
        device_mesh: DeviceMesh | None = None,
        placements: Sequence[Placement] | None = None,
        **options: Any,
    ) -> DTensor:
        """Return the table as PyTorch places it: a copy on every rank, or equal pieces; all ranks call this.

        Args:
            device_mesh: that of the table. Default: that one.
            placements: one, as the mesh has one dimension. That of this table gives the table itself.
            options: those of ``DTensor.redistribute``, which goes on from a copy on every rank.
        """
        if placements is not None and tuple(placements) == self.placements and not options:
            return self
        whole = DTensor.from_local(
            self.full_tensor(), self.device_mesh, [Replicate()], run_check=False
        )
        return whole.redistribute(device_mesh, placements, **options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do with the parts what keeps sizes; the rest is between PyTorch and the local tensor."""
        if func is torch.ops.aten.detach.default or keeps_sizes(func):
            own, *others = args
            return as_dtensor(func(own.table, *others, **kwargs or {}), own.device_mesh)
        return super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def as_dtensor(table: ShardedTable, mesh: DeviceMesh) -> TableDTensor:
    """Return a whole as a `DTensor`, whose local tensor says which parts are here.

    Args:
        table: the whole.
        mesh: the ranks, in one dimension.
    """
    shards = table.local_shards()
    local = LocalShardsWrapper(
        [shard.tensor for shard in shards], [shard.metadata.shard_offsets for shard in shards]
    )
    by_columns = any(known.shard_offsets[1] for known in table.metadata().shards_metadata)
    plain = DTensor.from_local(
        local,
        mesh,
        [Placed(int(by_columns))],
        run_check=False,
        shape=table.shape,
        stride=(table.shape[1], 1),
    )
    placed = same_dtensor_as(TableDTensor, plain)
    placed._table = table
    return placed
