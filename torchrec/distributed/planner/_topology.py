"""What there is to plan for: ranks, their memory, and how fast they reach each other."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import astuple, dataclass, replace

from torchrec.distributed.planner._bandwidths import (
    BasicCommsBandwidths,
    GeneralizedCommsBandwidth,
    Rates,
)
from torchrec.distributed.planner.constants import (
    BWD_COMPUTE_MULTIPLIER,
    CROSS_NODE_BANDWIDTH,
    DDR_CAP,
    DDR_MEM_BW,
    HBM_CAP,
    HBM_MEM_BW,
    HBM_TO_DDR_MEM_BW,
    INTRA_NODE_BANDWIDTH,
    SSD_CAP,
    SSD_MEM_BW,
    WEIGHTED_FEATURE_BWD_COMPUTE_MULTIPLIER,
)
from torchrec.distributed.types import ComputeDevice


@dataclass(order=True, unsafe_hash=True)
class Storage:
    """Bytes in the memory of an accelerator, in that of its host, and on its disk.

    Example:
        >>> Storage(hbm=0, ddr=3) + Storage(hbm=1, ddr=2)
        Storage(hbm=1, ddr=5, ssd=0)
    """

    hbm: int
    ddr: int
    ssd: int = 0

    def __add__(self, other: Storage) -> Storage:
        return Storage(self.hbm + other.hbm, self.ddr + other.ddr, self.ssd + other.ssd)

    def __sub__(self, other: Storage) -> Storage:
        return Storage(self.hbm - other.hbm, self.ddr - other.ddr, self.ssd - other.ssd)

    def fits_in(self, other: Storage) -> bool:
        """Say whether there is room for this in ``other``."""
        return self.hbm <= other.hbm and self.ddr <= other.ddr and self.ssd <= other.ssd


@dataclass(order=True, unsafe_hash=True)
class Perf:
    """Milliseconds of a step.

    Attributes:
        alike: of all ranks together, which each of them has an equal share of, whoever has the part.
    """

    fwd_compute: float
    fwd_comms: float
    bwd_compute: float
    bwd_comms: float
    input_dist_comms: float = 0.0
    prefetch_compute: float = 0.0
    alike: float = 0.0

    @property
    def compute(self) -> float:
        """What the rank that has the part computes."""
        return self.fwd_compute + self.bwd_compute + self.prefetch_compute

    @property
    def comms(self) -> float:
        """What this rank exchanges."""
        return self.fwd_comms + self.bwd_comms + self.input_dist_comms

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.compute + self.comms + self.alike

    def scaled(self, factor: float) -> Perf:
        """Return each part as many times."""
        return self if factor == 1.0 else Perf(*(factor * part for part in astuple(self)))

    def __add__(self, other: Perf) -> Perf:
        return Perf(
            self.fwd_compute + other.fwd_compute,
            self.fwd_comms + other.fwd_comms,
            self.bwd_compute + other.bwd_compute,
            self.bwd_comms + other.bwd_comms,
            self.input_dist_comms + other.input_dist_comms,
            self.prefetch_compute + other.prefetch_compute,
            self.alike + other.alike,
        )


@dataclass
class DeviceHardware:
    """One rank: what it has room for, and what it has to do."""

    rank: int
    storage: Storage
    perf: Perf


class CustomTopologyData:
    """Memory that differs from rank to rank.

    Args:
        data: ``"hbm_cap"`` or ``"ddr_cap"`` -> bytes of each rank.
        world_size: how many ranks there are.

    Example:
        >>> CustomTopologyData({"ddr_cap": [100, 200]}, world_size=2).get_data("ddr_cap")
        [100, 200]
    """

    _KEYS = ("hbm_cap", "ddr_cap")

    def __init__(self, data: dict[str, list[int]], world_size: int) -> None:
        for key, sizes in data.items():
            if key not in self._KEYS or len(sizes) != world_size:
                raise ValueError(
                    f"`data` should have {' and '.join(self._KEYS)}, each with one size for each of "
                    f"{world_size} ranks. Received {key!r} with {len(sizes)}."
                )
        self._data = data

    def get_data(self, key: str) -> list[int]:
        """Return bytes of each rank."""
        return self._data[key]

    def has_data(self, key: str) -> bool:
        """Say whether there are bytes of that kind."""
        return key in self._data


class Topology:
    """The ranks that a plan is for. Bandwidths are bytes a millisecond.

    Args:
        world_size: how many there are.
        compute_device: ``"cpu"``, ``"cuda"`` or ``"mtia"``.
        hbm_cap: bytes of the memory of an accelerator. Default 32 GB; none on ``"cpu"``.
        ddr_cap: bytes of memory of a host for each rank. Default 128 GB.
        ssd_cap: bytes of disk for each rank. Default 2 TB.
        local_world_size: how many ranks a host has. Default: all.
        pod_size: how many ranks are reached as fast as those of one host. Default ``local_world_size``.
        hbm_mem_bw: of the memory of an accelerator.
        ddr_mem_bw: of the memory of a host.
        ssd_mem_bw: of a disk.
        hbm_to_ddr_mem_bw: between the memories of accelerator and host.
        intra_host_bw: between ranks of one host.
        inter_host_bw: between hosts.
        bwd_compute_multiplier: how many times longer a backward pass computes than a forward pass.
        custom_topology_data: memory that differs from rank to rank.
        weighted_feature_bwd_compute_multiplier: the same for features with weights.
        uneven_sharding_perf_multiplier: how many times longer a step takes where rows are spread unevenly.
        generalized_comms_bandwidths: instead of the two bandwidths between ranks.
        created_by_factory: says nothing here.
        rates: how long things take, as `torchrec.distributed.planner.calibrate` has measured it. Default: what the
            bandwidths come to.

    Example:
        >>> topology = Topology(world_size=2, compute_device="cpu", ddr_cap=1000)
        >>> [device.storage.ddr for device in topology.devices], topology.local_world_size
        ([1000, 1000], 2)
    """

    def __init__(
        self,
        world_size: int,
        compute_device: str,
        hbm_cap: int | None = None,
        ddr_cap: int | None = None,
        ssd_cap: int | None = None,
        local_world_size: int | None = None,
        pod_size: int | None = None,
        hbm_mem_bw: float = HBM_MEM_BW,
        ddr_mem_bw: float = DDR_MEM_BW,
        ssd_mem_bw: float = SSD_MEM_BW,
        hbm_to_ddr_mem_bw: float = HBM_TO_DDR_MEM_BW,
        intra_host_bw: float = INTRA_NODE_BANDWIDTH,
        inter_host_bw: float = CROSS_NODE_BANDWIDTH,
        bwd_compute_multiplier: float = BWD_COMPUTE_MULTIPLIER,
        custom_topology_data: CustomTopologyData | None = None,
        weighted_feature_bwd_compute_multiplier: float = WEIGHTED_FEATURE_BWD_COMPUTE_MULTIPLIER,
        uneven_sharding_perf_multiplier: float = 1.0,
        generalized_comms_bandwidths: GeneralizedCommsBandwidth | None = None,
        created_by_factory: bool = False,
        rates: Rates | None = None,
    ) -> None:
        known = [device.value for device in ComputeDevice]
        if compute_device not in known:
            raise ValueError(
                f"`compute_device` should be one of {', '.join(known)}. Received {compute_device!r}."
            )
        if world_size < 1:
            raise ValueError(f"`world_size` should be at least 1. Received {world_size}.")
        for name, size in (("local_world_size", local_world_size), ("pod_size", pod_size)):
            if size is not None and size < 0:  # 0 is the default
                raise ValueError(f"`{name}` should be at least 1. Received {size}.")
        self.rates = rates
        self._world_size = world_size
        self._compute_device = compute_device
        self._local_world_size = local_world_size or world_size
        self._intra_group_size = pod_size or self._local_world_size
        self._hbm_mem_bw = hbm_mem_bw
        self._ddr_mem_bw = ddr_mem_bw
        self._ssd_mem_bw = ssd_mem_bw
        self._hbm_to_ddr_mem_bw = hbm_to_ddr_mem_bw
        self._comms_bandwidths = generalized_comms_bandwidths or BasicCommsBandwidths(
            inter_host_bw, intra_host_bw
        )
        self._bwd_compute_multiplier = bwd_compute_multiplier
        self._weighted_feature_bwd_compute_multiplier = weighted_feature_bwd_compute_multiplier
        self._uneven_sharding_perf_multiplier = uneven_sharding_perf_multiplier
        hbm = (HBM_CAP if hbm_cap is None else hbm_cap) if compute_device != "cpu" else 0
        ddr, ssd = DDR_CAP if ddr_cap is None else ddr_cap, SSD_CAP if ssd_cap is None else ssd_cap
        self._devices = [
            DeviceHardware(rank, Storage(hbm, ddr, ssd), Perf(0, 0, 0, 0))
            for rank in range(world_size)
        ]
        if custom_topology_data is not None:
            for device in self._devices:
                device.storage = _custom(custom_topology_data, device)

    def with_storage(self, change: Callable[[Storage], Storage]) -> Topology:
        """Return the same ranks with other memory.

        Args:
            change: from the memory of a rank to what it is instead.

        Example:
            >>> topology = Topology(world_size=1, compute_device="cpu", ddr_cap=1000)
            >>> topology.with_storage(lambda storage: storage - Storage(0, 10)).devices[0].storage.ddr
            990
        """
        other = copy(self)
        other._devices = [
            replace(device, storage=change(device.storage)) for device in self._devices
        ]
        return other

    def with_ranks(self, world_size: int) -> Topology:
        """Return a topology of another number of ranks, those that are more like the last one.

        Args:
            world_size: how many. On one host they all stay on one.

        Example:
            >>> topology = Topology(world_size=1, compute_device="cpu", ddr_cap=1000).with_ranks(3)
            >>> [device.storage.ddr for device in topology.devices], topology.local_world_size
            ([1000, 1000, 1000], 3)
        """
        other = copy(self)
        other._world_size = world_size
        if self._local_world_size == self._world_size:
            other._local_world_size = world_size
            if self._intra_group_size == self._world_size:
                other._intra_group_size = world_size
        last = self._devices[-1]
        more = [replace(last, rank=rank) for rank in range(self._world_size, world_size)]
        other._devices = [*self._devices[:world_size], *more]
        return other

    def host_of(self, rank: int) -> range:
        """Return the ranks of the host that a rank is on."""
        first = rank - rank % self._local_world_size
        return range(first, min(first + self._local_world_size, self._world_size))

    @property
    def devices(self) -> list[DeviceHardware]:
        """The ranks, in their order."""
        return self._devices

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self._world_size

    @property
    def local_world_size(self) -> int:
        """How many a host has."""
        return self._local_world_size

    @property
    def intra_group_size(self) -> int:
        """How many are reached as fast as those of one host."""
        return self._intra_group_size

    @property
    def compute_device(self) -> str:
        """What they compute on."""
        return self._compute_device

    @property
    def hbm_mem_bw(self) -> float:
        """Bandwidth of the memory of an accelerator."""
        return self._hbm_mem_bw

    @property
    def ddr_mem_bw(self) -> float:
        """Bandwidth of the memory of a host."""
        return self._ddr_mem_bw

    @property
    def ssd_mem_bw(self) -> float:
        """Bandwidth of a disk."""
        return self._ssd_mem_bw

    @property
    def hbm_to_ddr_mem_bw(self) -> float:
        """Bandwidth between the memories of accelerator and host."""
        return self._hbm_to_ddr_mem_bw

    @property
    def comms_bandwidths(self) -> GeneralizedCommsBandwidth:
        """How fast ranks exchange."""
        return self._comms_bandwidths

    @property
    def intra_host_bw(self) -> float:
        """Bandwidth between ranks of one host."""
        return self._comms_bandwidths.intra_host_bw

    @property
    def inter_host_bw(self) -> float:
        """Bandwidth between hosts."""
        return self._comms_bandwidths.inter_host_bw

    @property
    def bwd_compute_multiplier(self) -> float:
        """How many times longer a backward pass computes than a forward pass."""
        return self._bwd_compute_multiplier

    @property
    def weighted_feature_bwd_compute_multiplier(self) -> float:
        """The same for features with weights."""
        return self._weighted_feature_bwd_compute_multiplier

    @property
    def uneven_sharding_perf_multiplier(self) -> float:
        """How many times longer a step takes where rows are spread unevenly."""
        return self._uneven_sharding_perf_multiplier

    def __repr__(self) -> str:
        devices = "".join(f"\tdevice {device.rank} {device}\n" for device in self._devices)
        return (
            f"world_size={self._world_size} \ncompute_device={self._compute_device}\ndevices=\n{devices}"
            f"local_world_size={self._local_world_size} \nintra_group_size={self._intra_group_size} \n"
            f"{self._comms_bandwidths}\n"
        )


def _custom(data: CustomTopologyData, device: DeviceHardware) -> Storage:
    sizes = {
        name: data.get_data(f"{name}_cap")[device.rank]
        for name in ("hbm", "ddr")
        if data.has_data(f"{name}_cap")
    }
    return replace(device.storage, **sizes)
