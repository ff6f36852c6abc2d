"""Who keeps memory free for what is not a table."""

from __future__ import annotations

from typing import Any

from torch import nn

from torchrec.distributed._units import bytes_to_text
from torchrec.distributed.planner._dense import DensePart
from torchrec.distributed.planner._interfaces import StorageReservation
from torchrec.distributed.planner._modules import dense_bytes
from torchrec.distributed.planner._options import (
    ParameterConstraints,
    PlannerError,
    PlannerErrorType,
)
from torchrec.distributed.planner._topology import Storage, Topology
from torchrec.distributed.types import ModuleSharder


class FixedPercentageStorageReservation(StorageReservation):
    """Keeps a share of all memory free.

    Args:
        percentage: the share, from 0 to 1.

    Example:
        >>> topology = Topology(world_size=1, compute_device="cpu", ddr_cap=1000)
        >>> left = FixedPercentageStorageReservation(0.25).reserve(topology, 1, nn.Identity(), [])
        >>> left.devices[0].storage.ddr
        750
    """

    def __init__(self, percentage: float) -> None:
        _check_share(percentage)
        self._percentage = percentage
        self._last: Topology | None = None

    @property
    def last_reserved_topology(self) -> Topology | None:
        """What `reserve` returned last; None: it was not called yet."""
        return self._last

    def reserve(
        self,
        topology: Topology,
        batch_size: int,
        module: nn.Module,
        sharders: list[ModuleSharder[Any]],
        constraints: dict[str, ParameterConstraints] | None = None,
    ) -> Topology:
        """Return the ranks with the share of their memory that is left."""
        self._last = topology.with_storage(lambda storage: _without(storage, self._percentage))
        return self._last


class HeuristicalStorageReservation(StorageReservation):
    """Keeps a share of all memory free, and room for the dense part: weights, gradients, optimizer, copies.

    Args:
        percentage: the share, from 0 to 1.
        parameter_multiplier: how many times the bytes of the dense parameters. Default 6.
        dense_tensor_estimate: bytes of the dense part, instead of that; or what `measure_dense` has found, whose
            time the plan then counts as well. Default: counted.
    """

    def __init__(
        self,
        percentage: float,
        parameter_multiplier: float = 6.0,
        dense_tensor_estimate: int | DensePart | None = None,
    ) -> None:
        _check_share(percentage)
        self._percentage = percentage
        self._multiplier = parameter_multiplier
        self._estimate = dense_tensor_estimate
        self._last: Topology | None = None

    @property
    def last_reserved_topology(self) -> Topology | None:
        """What `reserve` returned last; None: it was not called yet."""
        return self._last

    @property
    def dense(self) -> DensePart | None:
        """The layers that it keeps memory for, as measured; None: they were not."""
        return self._estimate if isinstance(self._estimate, DensePart) else None

    def reserve(
        self,
        topology: Topology,
        batch_size: int,
        module: nn.Module,
        sharders: list[ModuleSharder[Any]],
        constraints: dict[str, ParameterConstraints] | None = None,
    ) -> Topology:
        """Return the ranks with the memory that is left.

        Raises:
            PlannerError: if there is none.
        """
        dense = self._estimate
        if dense is None:
            dense = int(dense_bytes(module, sharders) * self._multiplier)
        elif isinstance(dense, DensePart):
            dense = dense.lasting_bytes  # what they have in a step more is counted with the tables
        self._last = _without_dense(topology, self._percentage, dense)
        return self._last


class InferenceStorageReservation(StorageReservation):
    """Keeps a share of all memory free, and room for the dense part once, as predictions need it.

    Args:
        percentage: the share, from 0 to 1.
        dense_tensor_estimate: bytes of the dense part. Default: counted.
    """

    def __init__(self, percentage: float, dense_tensor_estimate: int | None = None) -> None:
        self._reservation = HeuristicalStorageReservation(percentage, 1.0, dense_tensor_estimate)

    @property
    def last_reserved_topology(self) -> Topology | None:
        """What `reserve` returned last; None: it was not called yet."""
        return self._reservation.last_reserved_topology

    def reserve(
        self,
        topology: Topology,
        batch_size: int,
        module: nn.Module,
        sharders: list[ModuleSharder[Any]],
        constraints: dict[str, ParameterConstraints] | None = None,
    ) -> Topology:
        """Return the ranks with the memory that is left.

        Raises:
            PlannerError: if there is none.
        """
        return self._reservation.reserve(topology, batch_size, module, sharders, constraints)


def _without_dense(topology: Topology, percentage: float, dense: int) -> Topology:
    on_host = topology.compute_device == "cpu"
    taken = Storage(hbm=0 if on_host else dense, ddr=dense if on_host else 0)
    left = topology.with_storage(lambda storage: _without(storage, percentage) - taken)
    for device in left.devices:
        if min(device.storage.hbm, device.storage.ddr) < 0:
            raise PlannerError(
                f"Rank {device.rank} should have memory left for tables, beside {bytes_to_text(dense)} for the "
                f"dense part and a share of {percentage} kept free. Received {topology.devices[device.rank].storage}.",
                PlannerErrorType.INSUFFICIENT_STORAGE,
            )
    return left


def _without(storage: Storage, share: float) -> Storage:
    left = 1 - share
    on_host = storage.hbm == 0
    return Storage(
        int(storage.hbm * left), int(storage.ddr * left) if on_host else storage.ddr, storage.ssd
    )


def _check_share(percentage: float) -> None:
    if not 0 <= percentage <= 1:
        raise ValueError(f"`percentage` should be a share, from 0 to 1. Received {percentage}.")
