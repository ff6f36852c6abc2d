"""How long look-ups, updates and exchanges take: from bandwidths, or as measured on a machine."""

from __future__ import annotations

from torchrec.distributed.planner._bandwidths import (
    CollectionStep,
    CollectiveType,
    PartLookup,
    Rates,
    StateSize,
)
from torchrec.distributed.planner._topology import Topology
from torchrec.distributed.planner.constants import (
    INTRA_NODE_BANDWIDTH,
    KV_CACHING_RATIO,
    UVM_CACHING_RATIO,
)

__all__ = ["BandwidthRates", "rates_of"]

# A feature that a rank looks up in a part of a table, whatever it is: a few calls.
_PART_MS = 0.002
# Between processes of one host over gloo, in bytes a millisecond, and a message of it.
_GLOO_BW = 2.1e6
_MESSAGE_MS = 0.05
_LENGTH_BYTES = 4

_HOST_KERNELS = {"fused_uvm", "quant_uvm"}
_CACHED_KERNELS = {"fused_uvm_caching", "quant_uvm_caching"}
_DISK_KERNELS = {"key_value", "ssd_virtual_table", "dram_ssd_virtual_table"}


class BandwidthRates:
    """What the bandwidths of a topology come to: memory is read and written as fast as it can be.

    On the CPU, a bandwidth within hosts that is left at its default, which is that of accelerators, stands for that
    of gloo.

    Args:
        topology: with its bandwidths.
        load_factor: the share of rows that are cached, where kernels have a cache. Default 0.2.
        prefetches: whether what is not cached is fetched ahead of the step.
    """

    def __init__(
        self, topology: Topology, load_factor: float | None = None, prefetches: bool = False
    ) -> None:
        self._topology = topology
        self._load_factor = load_factor
        self._prefetches = prefetches

    @property
    def takes_alike(self) -> bool:
        """Links take who sends."""
        return False

    def memory_bw(self, kernel: str) -> float:
        """Return how fast the memory is that a table lies in, in bytes a millisecond."""
        topology = self._topology
        near = topology.ddr_mem_bw if topology.compute_device == "cpu" else topology.hbm_mem_bw
        if kernel in _DISK_KERNELS:
            hits = KV_CACHING_RATIO if self._load_factor is None else self._load_factor
            return 1 / (hits / near + (1 - hits) / topology.ssd_mem_bw)
        if topology.compute_device == "cpu":
            return near
        far = min(topology.ddr_mem_bw, topology.hbm_to_ddr_mem_bw)
        if kernel in _HOST_KERNELS:
            return far
        if kernel in _CACHED_KERNELS and not self._prefetches:
            hits = UVM_CACHING_RATIO if self._load_factor is None else self._load_factor
            return 1 / (hits / near + (1 - hits) / far)
        return near

    def lookup_ms(self, lookup: PartLookup) -> float:
        """Rows are read and vectors written once."""
        moved = 4.0 * lookup.columns * (lookup.ids + lookup.vectors) + 8.0 * lookup.ids
        return _PART_MS + moved / self.memory_bw(lookup.kernel)

    def update_ms(self, lookup: PartLookup, state: StateSize) -> float:
        """As many times a look-up as the topology says."""
        return self.lookup_ms(lookup) * self._topology.bwd_compute_multiplier

    def pooling_ms(self, ids: float, bags: float, columns: int) -> float:
        """Rows are read and bags written, and the other way round in the backward pass."""
        return 2 * 4.0 * columns * (ids + bags) / self.memory_bw("dense")

    def dense_ms(self, num_bytes: float) -> float:
        """A gradient is zeroed and read, a state and weights are read and written."""
        return 6 * num_bytes / self.memory_bw("dense")

    def exchange_ms(self, collective: CollectiveType, num_bytes: float, world_size: int) -> float:
        """The ranks that are reached as within a host take one bandwidth, the others another."""
        topology = self._topology
        near = min(topology.intra_group_size, world_size)
        far = world_size - near
        bandwidths = topology.comms_bandwidths
        time = 0.0
        if near > 1:
            bandwidth = bandwidths.get_bw(near, near, collective)
            if topology.compute_device == "cpu" and bandwidth == INTRA_NODE_BANDWIDTH:
                bandwidth = _GLOO_BW
            time += (near - 1) * num_bytes / bandwidth
        if far > 0:
            bandwidth = bandwidths.get_bw(topology.local_world_size, world_size, collective)
            time += far * num_bytes / bandwidth
        return time

    def ids_ms(
        self, ids: float, bags: float, id_bytes: float, world_size: int, apart: bool = False
    ) -> float:
        """They are bytes like others."""
        sent = ids * id_bytes + bags * _LENGTH_BYTES
        return self.exchange_ms(CollectiveType.ALL_TO_ALL, sent, world_size)

    def squares_ms(self, ids: float, world_size: int) -> float:
        """A number for each id, there and back."""
        return self.exchange_ms(CollectiveType.ALL_TO_ALL, 2 * 4.0 * ids / world_size, world_size)

    def gather_ms(self, numbers: float) -> float:
        """They are written, copied and read."""
        return 4 * 4.0 * numbers / self.memory_bw("dense")

    def slowdown(self, ranks: int) -> float:
        """Each rank has the bandwidth for itself."""
        return 1.0

    def layers_ms(
        self, alone_ms: float, gradient_bytes: float, world_size: int, ranks_a_host: int
    ) -> float:
        """Each rank sends and receives its share of the sums twice."""
        if world_size < 2:
            return alone_ms
        sums = 2 * gradient_bytes / world_size
        return alone_ms + self.exchange_ms(CollectiveType.ALL_REDUCE, sums, world_size)

    def step_ms(self, step: CollectionStep) -> float:
        """Four exchanges, each a message to each other rank; one more for squares."""
        return (5 if step.adds_squares else 4) * (step.world_size - 1) * _MESSAGE_MS


def rates_of(
    topology: Topology, load_factor: float | None = None, prefetches: bool = False
) -> Rates:
    """Return what a topology was given as measured, or else what its bandwidths come to."""
    measured: Rates | None = topology.rates
    return BandwidthRates(topology, load_factor, prefetches) if measured is None else measured
