"""Estimates by what is known of hardware: coefficients, bandwidths and methods have the effect that they promise."""

from __future__ import annotations

import pytest

from tests.distributed.planner.test_changes import model
from tests.distributed.table_sharder import TableSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.estimator import (
    EmbeddingPerfEstimatorConfig,
    EmbeddingPerfEstimatorFactory,
    EmbeddingPerfEstimatorV2,
    EstimatorPerfCoefficients,
    HardwarePerfConfig,
    PerfCoefficient,
    PerfCoefficientConfig,
    backward_compute,
    bwd_coefficient,
    device_bw,
    forward_compute,
    fwd_coefficient,
    output_write_size,
    ssd_mem_bw,
    supported_sharding_types,
)
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import Perf

pytestmark = pytest.mark.once

BATCH, DIM, W = 8, 16, 2


def perf(config=None, kind="table_wise", wishes=None, shape=(100, DIM), **options) -> Perf:
    topology = Topology(W, "cpu", **options)
    wished = {"t": ParameterConstraints(sharding_types=[kind], **(wishes or {}))}
    estimator = EmbeddingPerfEstimatorV2(topology, wished, config=config and config())
    enumerator = EmbeddingEnumerator(topology, BATCH, wished, estimator)
    (option,) = enumerator.enumerate(model(t=shape), [TableSharder()])
    total = Perf(0, 0, 0, 0)
    for shard in option.shards:
        total += shard.perf
    return total


def test_every_byte_counts_once_by_default():
    ids = W * BATCH
    moved = ids * 8 + ids * DIM * 4 + ids * DIM * 4
    bandwidth = Topology(1, "cpu").ddr_mem_bw
    assert perf().fwd_compute == pytest.approx(moved / bandwidth)
    assert perf().bwd_compute == pytest.approx(2 * moved / bandwidth)
    assert perf(bwd_compute_multiplier=5).bwd_compute == pytest.approx(5 * moved / bandwidth)
    weighted = perf(wishes={"is_weighted": True})
    assert weighted.fwd_compute == pytest.approx(1.1 * moved / bandwidth)


def test_coefficients_count_by_type_and_kernel():
    only_ids = EstimatorPerfCoefficients(
        PerfCoefficient(1.0, 0.0, 0.0), PerfCoefficient(2.0, 0.0, 0.0)
    )
    only_rows = EstimatorPerfCoefficients(PerfCoefficient(0.0, 1.0, 0.0))
    of_table = EstimatorPerfCoefficients(PerfCoefficient(0.0, 0.0, 0.0, 1.0))

    class Known(HardwarePerfConfig):
        @property
        def coefficients(self):
            return PerfCoefficientConfig(
                table_wise=only_ids,
                by_kernel={("row_wise", "fused"): only_rows},
                data_parallel=of_table,
                bwd_compute_multiplier=7.0,
            )

    bandwidth, ids = Topology(1, "cpu").ddr_mem_bw, W * BATCH
    whole = perf(Known)
    assert whole.fwd_compute == pytest.approx(ids * 8 / bandwidth)
    assert whole.bwd_compute == pytest.approx(2 * ids * 8 / bandwidth)
    rows = perf(Known, "row_wise")
    assert rows.fwd_compute == pytest.approx(ids * DIM * 4 / bandwidth)
    assert rows.bwd_compute == pytest.approx(7 * rows.fwd_compute)
    copies = perf(Known, "data_parallel")
    assert copies.fwd_compute == pytest.approx(W * 100 * DIM * 4 / bandwidth)


def test_bandwidths_are_those_declared():
    @device_bw(1e3, device="cpu", compute_kernel="fused")
    class Slow(HardwarePerfConfig):
        pass

    @device_bw(1e3)
    @ssd_mem_bw(5.0)
    class All(HardwarePerfConfig):
        pass

    @device_bw(1e3, device="cuda", compute_kernel="fused")
    class Elsewhere(HardwarePerfConfig):
        pass

    usual = perf().fwd_compute
    expected = usual * Topology(1, "cpu").ddr_mem_bw / 1e3
    assert perf(Slow).fwd_compute == pytest.approx(expected)
    assert perf(All).fwd_compute == pytest.approx(expected)
    assert perf(Elsewhere).fwd_compute == usual
    assert All.ssd_mem_bw == 5.0
    assert Slow.__name__ == "Slow"
    assert HardwarePerfConfig.kernel_device_bandwidths == {}


def test_methods_say_what_it_takes():
    class Mine(HardwarePerfConfig):
        @forward_compute
        def forward(self, ctx):
            return float(ctx.emb_dim)

        @forward_compute(sharding_type="row_wise")
        def of_rows(self, ctx):
            return float(ctx.hash_size)

        @backward_compute(["table_wise"])
        def backward(self, ctx):
            return ctx.batch_inputs

    assert perf(Mine).fwd_compute == DIM
    assert perf(Mine).bwd_compute == BATCH
    assert perf(Mine, "row_wise").fwd_compute == 100  # of both parts
    assert perf(Mine, "row_wise").bwd_compute == 200

    class Sizes(EmbeddingPerfEstimatorConfig):
        @output_write_size
        def size(self, ctx):
            return 0.0

        @fwd_coefficient("table_wise")
        def once(self):
            return PerfCoefficient(0.0, 0.0, 1.0)

        @bwd_coefficient()
        def twice(self):
            return PerfCoefficient(2.0, 0.0, 0.0)

    assert perf(Sizes).fwd_compute == 0
    bandwidth = Topology(1, "cpu").ddr_mem_bw
    assert perf(Sizes).bwd_compute == pytest.approx(2 * W * BATCH * 8 / bandwidth)

    class Wrong(HardwarePerfConfig):
        @forward_compute
        def forward(self, ctx):
            return "long"

    with pytest.raises(TypeError, match=r"should return a number. Received str"):
        perf(Wrong)


def test_types_that_hardware_does_not_know():
    @supported_sharding_types("table_wise")
    class Some(HardwarePerfConfig):
        name = "some"

    assert perf(Some).total > 0
    with pytest.raises(ValueError, match=r"one that 'some' knows.*Received 'row_wise'"):
        perf(Some, "row_wise")


def test_uneven_rows_count_once():
    even = perf(kind="row_wise", shape=(101, DIM))
    slow = perf(kind="row_wise", shape=(101, DIM), uneven_sharding_perf_multiplier=3.0)
    assert slow.total == pytest.approx(3 * even.total)


def test_hardware_by_name():
    @EmbeddingPerfEstimatorFactory.register("test hardware")
    @device_bw(1e3)
    class Slow(HardwarePerfConfig):
        pass

    topology = Topology(W, "cpu")
    factory = EmbeddingPerfEstimatorFactory
    assert factory.is_registered("test hardware")
    assert "default" in factory.list_registered()
    estimator = factory.create("test hardware", topology=topology, is_inference=True)
    assert isinstance(estimator.config, Slow)
    assert estimator.is_inference
    with pytest.raises(ValueError, match=r"`hardware_name` should be one of.*Received 'none'"):
        factory.create("none", topology=topology)
    with pytest.raises(ValueError, match=r"`topology` should be given"):
        factory.create("default")


def test_a_planner_goes_by_it():
    class Wide(HardwarePerfConfig):
        @forward_compute
        def forward(self, ctx):
            return 100.0 if ctx.table_name == "a" else 1.0

    topology = Topology(2, "cpu")
    wishes = {n: ParameterConstraints(sharding_types=["table_wise"]) for n in "abc"}
    estimators = [
        EmbeddingPerfEstimatorFactory.create_with_config(Wide(), topology=topology),
        EmbeddingStorageEstimator(topology),
    ]
    planner = EmbeddingShardingPlanner(
        topology,
        enumerator=EmbeddingEnumerator(topology, 8, wishes, estimators),
        constraints=wishes,
    )
    plan = planner.plan(model(a=(10, 4), b=(10, 4), c=(10, 4)), [TableSharder()])
    ranks = {name: sharding.ranks for name, sharding in plan.plan[""].items()}
    assert ranks["b"] == ranks["c"] != ranks["a"]
