"""Ranks of devices that are known by name, to plan for what is not there."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec.distributed.planner._calibration import Calibration
from torchrec.distributed.planner._topology import Topology

__all__ = ["DEVICES", "topology_of"]

_GB = 2**30


@dataclass(frozen=True)
class _Accelerator:
    """What the data sheet of an accelerator says; bandwidths in bytes a millisecond.

    Attributes:
        memory: bytes.
        memory_bw: of its memory.
        link_bw: to others of its host, one way.
        host_bw: to the memory of the host, one way.
    """

    memory: int
    memory_bw: float
    link_bw: float
    host_bw: float


_ACCELERATORS = {
    "v100": _Accelerator(32 * _GB, 0.9e9, 1.5e8, 1.6e7),
    "a100": _Accelerator(80 * _GB, 2.0e9, 3.0e8, 3.2e7),
    "h100": _Accelerator(80 * _GB, 3.35e9, 4.5e8, 6.4e7),
    "h200": _Accelerator(141 * _GB, 4.8e9, 4.5e8, 6.4e7),
}
DEVICES = ("cpu", *_ACCELERATORS)
# Between hosts: 200 Gbit/s for each accelerator, 25 Gbit/s for each process on a CPU.
_NETWORK, _NETWORK_CPU = 2.5e7, 3.1e6


def topology_of(
    device: str,
    world_size: int,
    local_world_size: int | None = None,
    memory: int | None = None,
    rates: Calibration | None = None,
) -> Topology:
    """Return ranks of a device that is known by name. Their bandwidths are those of data sheets.

    Args:
        device: one of `DEVICES`.
        world_size: how many ranks.
        local_world_size: how many a host has. Default: up to 8, or all on the CPU.
        memory: bytes of a rank. Default: as the data sheet says; on the CPU, what was measured, divided by the ranks
            of a host, or else 128 GB.
        rates: how long things take, as measured; on the CPU only.

    Raises:
        ValueError: if the device is not known, or rates are of another.

    Example:
        >>> topology = topology_of("h100", world_size=16)
        >>> topology.compute_device, topology.local_world_size, topology.devices[0].storage.hbm >> 30
        ('cuda', 8, 80)
    """
    if device == "cpu":
        local = local_world_size or world_size
        if memory is None and rates is not None:
            memory = rates.memory // local
        return Topology(
            world_size,
            "cpu",
            ddr_cap=memory,
            local_world_size=local,
            inter_host_bw=_NETWORK_CPU,
            rates=rates,
        )
    if device not in _ACCELERATORS:
        raise ValueError(f"`device` should be one of {', '.join(DEVICES)}. Received {device!r}.")
    if rates is not None:
        raise ValueError(
            f"`rates` should be measured on the device. Received some of a CPU for {device!r}."
        )
    found = _ACCELERATORS[device]
    return Topology(
        world_size,
        "cuda",
        hbm_cap=found.memory if memory is None else memory,
        local_world_size=local_world_size or min(world_size, 8),
        hbm_mem_bw=found.memory_bw,
        hbm_to_ddr_mem_bw=found.host_bw,
        intra_host_bw=found.link_bw,
        inter_host_bw=_NETWORK,
    )
