"""Rates that are measured: what lies between them, their file, plans from them, and the measuring itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from tests.distributed.planner.test_changes import model
from tests.distributed.table_sharder import TableSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner._calibration import (
    Calibration,
    ExchangeRate,
    LookupRate,
    UpdateRate,
    between,
)
from torchrec.distributed.planner._exchange_rates import exchange_rate, rate_of
from torchrec.distributed.planner.calibrate import calibrate
from torchrec.distributed.planner.devices import DEVICES, topology_of
from torchrec.distributed.planner.types import CollectionStep, CollectiveType, PartLookup, StateSize

pytestmark = pytest.mark.once

BY_ROW, ADAM = StateSize(a_weight=0, a_row=1), StateSize(a_weight=2, a_row=0)

RATES = Calibration(
    machine="a test",
    memory=4 * 2**30,
    part_ms=0.5,
    tables=1,
    vector_bytes=10**6,
    vector_ns_a_byte=0.5,
    sequence_ms=0.25,
    step_ms_alone=1.0,
    dense_ns_a_byte=2.0,
    lookups=tuple(
        LookupRate(
            columns, rows, 0.9 * columns * rows / 1000, 0.1 * columns, columns, 0.5 * columns
        )
        for columns in (8, 32)
        for rows in (1000, 4000)
    ),
    updates=tuple(
        UpdateRate(columns, rows, ids, state.a_weight, state.a_row, row_ns)
        for columns in (8, 32)
        for rows in (1000, 4000)
        for ids in (1000, 100_000)
        for state in (BY_ROW, ADAM)
        for row_ns in ((1 + state.a_weight) * columns * rows / 1000,)
    ),
    exchanges=(
        ExchangeRate(2, 1.5, 2.0, 0.0, 0.5, 0.25, 2.0, 6.0, 4.0, 1.0, 1.25, 0.125, 0.25, 3.0, 0.5),
        ExchangeRate(4, 2.0, 7.75, 0.25, 1.0, 0.75, 4.0, 8.0, 5.0, 1.5, 1.75, 0.25, 0.5, 5.0, 0.75),
    ),
)


def test_between_points_the_nearer_counts_more():
    points = {(8.0, 1.0): 1.0, (32.0, 1.0): 4.0, (8.0, 16.0): 2.0, (32.0, 16.0): 8.0}
    assert between(points, [8, 1]) == pytest.approx(1.0)
    assert between(points, [16, 1]) == pytest.approx(2.0)
    assert between(points, [16, 4]) == pytest.approx(3.0)  # in the middle of logarithms
    assert between(points, [4, 100]) == pytest.approx(2.0)  # the border
    assert between(points, [64, 1]) == pytest.approx(8.0)  # twice as wide as the widest


def test_rates_by_hand():
    kib = 8 * 4 * 1000  # of 1000 rows of 8 columns
    assert RATES.lookup_ms(PartLookup(1e6, 1e6, 8, kib)) == pytest.approx(0.5 + 8)
    assert RATES.lookup_ms(PartLookup(1e6, 0.0, 8, kib)) == pytest.approx(0.5 + 7.2)
    # Of a million ids, each of the thousand rows is chosen.
    assert RATES.update_ms(PartLookup(1e6, 1e6, 8, kib), BY_ROW) == pytest.approx(0.5 + 12 + 0.008)
    assert RATES.update_ms(PartLookup(1e6, 0.0, 8, kib), ADAM) == pytest.approx(0.5 + 8 + 0.024)
    assert RATES.update_ms(PartLookup(1e6, 0.0, 8, 4 * kib), ADAM) == pytest.approx(0.5 + 8 + 0.384)
    # Momentum of each weight is nearer to nothing than to Adam; dense gradients are not of an update.
    sgd = RATES.update_ms(PartLookup(1e6, 0.0, 8, kib), StateSize(0, 0))
    assert sgd == RATES.update_ms(PartLookup(1e6, 0.0, 8, kib), BY_ROW)
    assert RATES.update_ms(PartLookup(1e6, 0.0, 8, kib, "dense"), ADAM) == pytest.approx(0.5 + 8)
    assert RATES.lookup_ms(PartLookup(0, 0, 8, kib)) == 0.5
    assert RATES.update_ms(PartLookup(0, 0, 8, kib), ADAM) == 0.5
    assert RATES.dense_ms(1e6) == 2.0
    all_to_all, all_reduce = CollectiveType.ALL_TO_ALL, CollectiveType.ALL_REDUCE
    assert RATES.exchange_ms(all_to_all, 1e6, 1) == 0
    assert RATES.exchange_ms(all_to_all, 1e6, 2) == 2.0
    assert RATES.exchange_ms(all_to_all, 1e6, 4) == 12.0
    assert RATES.exchange_ms(all_reduce, 1e6, 2) == 1.0
    assert RATES.exchange_ms(all_to_all, 1e6, 8) == 28.0  # as between four
    assert [RATES.step_ms(CollectionStep(w)) for w in (1, 2, 4)] == [1.0, 3.0, 9.0]
    assert RATES.step_ms(CollectionStep(7)) == 1 + 8 * 6 / 3
    assert [RATES.step_ms(CollectionStep(w, by_rows=True)) for w in (1, 2, 4)] == [1.0, 3.5, 10.0]
    assert [RATES.step_ms(CollectionStep(w, adds_squares=True)) for w in (1, 2, 4)] == [
        1.0,
        3.25,
        9.75,
    ]
    assert RATES.step_ms(CollectionStep(4, parts=5)) == 10.0
    assert RATES.step_ms(CollectionStep(2, tables=4, is_pooled=False)) == 4.0
    assert [RATES.step_ms(CollectionStep(1, vector_bytes=n)) for n in (1e6, 3e6)] == [1.0, 2.0]
    assert RATES.pooling_ms(1e6, 1e3, 2) == 1.0
    assert [RATES.ids_ms(1e6, 0, 8, w) for w in (1, 2, 4)] == [0.0, 12.0, 32.0]
    assert RATES.ids_ms(1e6, 1e6, 12, 2) == 24.0  # with weights, and lengths of bags
    assert [RATES.ids_ms(1e6, 0, 8, w, apart=True) for w in (1, 2, 4)] == [0.0, 20.0, 52.0]
    assert RATES.ids_ms(1e6, 1e6, 12, 2, apart=True) == 32.0
    assert [RATES.squares_ms(1e6, w) for w in (1, 2, 4)] == [0.0, 3.0, 5.0]
    assert RATES.gather_ms(1e6) == 0.75
    assert [RATES.slowdown(w) for w in (1, 2, 3, 4, 64)] == [1.0, 1.5, 2.0, 2.0, 2.0]
    assert RATES.layers_ms(2.0, 1e6, 1, 1) == 2.0
    assert RATES.layers_ms(2.0, 1e6, 2, 2) == 2.5 + 1.0 + 0.125
    assert RATES.layers_ms(2.0, 1e6, 4, 1) == 2.0 + 3 * 0.5 * 1.5 + 0.25  # each on a host
    assert RATES.layers_ms(2.0, 1e6, 4, 4) == 2.0 * 1.75 + 3 * 1.5 + 0.25


def test_the_more_a_step_comes_by_the_less_of_a_table_is_in_caches():
    kib, alone = 8 * 4 * 1000, 8 * 3 * 1000.0  # numbers of the rows and vectors of 1000 ids
    ids, chosen = 1000, 1000 * (1 - 2.718281828459045**-1)
    # Four times as many as of this table: rows that are found first are as in one of 4000 rows, others as before.
    for touched, first, row in ((alone, 7.2, 24), (4 * alone, 28.8, 96), (100 * alone, 28.8, 96)):
        ns = chosen * first + (ids - chosen) * 7.2
        found = RATES.lookup_ms(PartLookup(ids, ids, 8, kib, touched=touched))
        assert found == pytest.approx(0.5 + (ns + ids * 0.8) / 1e6)
        found = RATES.update_ms(PartLookup(ids, ids, 8, kib, touched=touched), ADAM)
        assert found == pytest.approx(0.5 + (ids * 12 + chosen * row) / 1e6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(part_ms=-1), "`part_ms` should be 0 or more. Received -1."),
        (lambda data: data.update(part_ms="1"), "`part_ms` should be 0 or more. Received '1'."),
        (lambda data: data.update(dense_ns_a_byte=float("nan")), "`dense_ns_a_byte` .* nan"),
        (lambda data: data["lookups"][0].update(columns=0), "`columns` should be 1 or more. .* 0"),
        (
            lambda data: data["exchanges"][1].update(world_size=1),
            "`world_size` should be 2 or more",
        ),
        (
            lambda data: data["lookups"].pop(),
            r"`lookups` .* every combination .* without \(32, 4000\)",
        ),
        (
            lambda data: data["updates"].pop(),
            r"`updates` .* every combination .* without \(32, 4000, 100000, \(2, 0\)\)",
        ),
        (lambda data: data["lookups"].clear(), "every combination .* Received 0"),
    ],
)
def test_rates_that_cannot_be_are_refused(change, message):
    data = json.loads(RATES.to_json())
    change(data)
    with pytest.raises(ValueError, match=rf"A calibration should be JSON.*{message}"):
        Calibration.from_json(json.dumps(data))


@pytest.mark.parametrize("rows_step_ms", [0.0, 2.0, 50.0])
def test_messages_count_in_which_plan_is_the_best(rows_step_ms):
    exchanges = tuple(replace(rate, rows_step_ms=rows_step_ms) for rate in RATES.exchanges)
    topology = Topology(2, "cpu", rates=replace(RATES, exchanges=exchanges))
    tables = model(a=(4000, 32), b=(4000, 32), c=(4000, 32))

    def step_ms(kinds):
        wishes = {
            name: ParameterConstraints(sharding_types=kinds, pooling_factors=[20.0])
            for name in "abc"
        }
        planner = EmbeddingShardingPlanner(topology, constraints=wishes)
        report = planner.plan(tables, [TableSharder()]).report
        assert report.is_best
        return report.step_ms

    whole, rows = ["table_wise", "column_wise"], ["row_wise"]
    assert step_ms(whole + rows) <= min(step_ms(whole), step_ms(rows))
    assert (step_ms(whole) < step_ms(rows)) == (rows_step_ms == 50.0)


def test_a_file_reads_back():
    assert Calibration.from_json(RATES.to_json()) == RATES
    for text, message in (
        ("[", "Expecting"),
        ("{}", "version None"),
        (RATES.to_json().replace('"part_ms"', '"part"'), "part"),
    ):
        with pytest.raises(ValueError, match=rf"A calibration should be JSON.*{message}"):
            Calibration.from_json(text)


def test_plans_go_by_what_was_measured():
    tables = model(a=(1000, 8), b=(1000, 8), c=(1000, 32))
    wishes = {name: ParameterConstraints(sharding_types=["table_wise"]) for name in "abc"}

    def plan(rates):
        topology = Topology(2, "cpu", rates=rates)
        made = EmbeddingShardingPlanner(topology, 1000, constraints=wishes).plan(
            tables, [TableSharder()]
        )
        assert made.report is not None
        return made

    measured = plan(RATES)
    assert measured.report.is_measured
    assert measured.report.fixed_ms == 3.0
    ranks = {name: sharding.ranks for name, sharding in measured.plan[""].items()}
    assert ranks["a"] == ranks["b"] != ranks["c"]  # the wide one takes longer
    assert "measured rates" in measured.explain()
    slower = plan(replace(RATES, part_ms=5.0))
    assert slower.report.step_ms > measured.report.step_ms + 8
    assert slower.report.made_from != measured.report.made_from
    assert not plan(None).report.is_measured


def test_a_step_by_hand():
    """One table of 1000 rows of 8 columns, 1000 samples of one id on each of two ranks of a host."""

    def report(kind, optimizer="rowwise_adagrad", **options):
        tables = model(a=(1000, 8), optimizer=optimizer)
        wishes = {"a": ParameterConstraints(sharding_types=[kind], min_partition=4)}
        topology = Topology(2, "cpu", rates=RATES, **options)
        planner = EmbeddingShardingPlanner(topology, 1000, constraints=wishes)
        found = planner.plan(tables, [TableSharder()]).report
        assert found is not None
        return found

    whole = report("table_wise")
    rank = whole.ranks[0]
    # 2000 ids take 8 and 12 ns each, and their rows 8 ns, half as long again as both ranks are at it.
    rows = 1000 * (1 - 2.718281828459045**-2)
    assert rank.compute_ms == pytest.approx(1.5 * (0.5 + 0.016 + 0.5 + 0.024 + rows * 8e-6))
    # 1000 vectors of 32 bytes there, their gradients back; ids of two ranks, and lengths for half of them: each rank
    # takes half of that.
    ids = 2 * 1500 * 6e-6
    assert rank.exchange_ms == pytest.approx((2 * 32_000 * 2e-6 + ids) / 2)
    assert whole.fixed_ms == 3.0
    assert whole.ranks[1].ms == rank.exchange_ms
    assert whole.step_ms == pytest.approx(3.0 + rank.compute_ms + rank.exchange_ms)
    # On hosts of their own, ranks do not slow each other down.
    apart = report("table_wise", local_world_size=1).ranks[0]
    assert apart.compute_ms == pytest.approx(rank.compute_ms / 1.5)
    # In columns of 4, half the vectors for each rank, and squares of 2000 ids; none without a state of whole rows.
    columns = report("column_wise")
    half = 2 * 16_000 * 2e-6 + ids
    assert columns.ranks[0].exchange_ms == pytest.approx(half + 2000 * 3e-6)
    assert columns.fixed_ms == 3.25
    wide = report("column_wise", "adagrad")
    assert wide.ranks[0].exchange_ms == pytest.approx(half)
    assert wide.fixed_ms == 3.0
    # In rows, 500 ids and rows of 32 bytes for each rank, and their gradients: such ids take 4 ns more, no lengths go
    # with them, and each number of a row half a ns where it is pooled.
    rows = report("row_wise")
    asked = 2 * 500 * (6 + 4) * 1e-6
    assert rows.ranks[0].exchange_ms == pytest.approx(asked + 2 * 16_000 * 2e-6 + 1000 * 8 * 0.5e-6)
    assert rows.fixed_ms == 3.5


def test_gradients_of_rows_are_gathered_where_bags_of_some_tables_are_long():
    """Of bags of one id rows are sent, of long ones sums: two look-ups on each rank, and one update."""

    def fixed_ms(kind, bag):
        wishes = {
            name: ParameterConstraints(pooling_factors=[ids], sharding_types=[kind])
            for name, ids in (("a", 1.0), ("b", bag))
        }
        planner = EmbeddingShardingPlanner(
            Topology(2, "cpu", rates=RATES), 1000, constraints=wishes
        )
        return planner.plan(model(a=(1000, 8), b=(500, 8)), [TableSharder()]).report.fixed_ms

    plain = fixed_ms("row_wise", 1.0)
    assert plain == 3.5
    # Ids of two ranks choose some rows of the first table and all of the second; each rank has half of both.
    chosen = 1000 * (1 - 2.718281828459045**-2) + 500
    assert fixed_ms("row_wise", 20.0) == pytest.approx(plain + chosen / 2 * 8 * 0.75e-6)
    assert fixed_ms("table_wise", 20.0) == 3.0


def test_devices_by_name():
    for device in DEVICES:
        topology = topology_of(device, 16)
        assert topology.world_size == 16
        assert (topology.devices[0].storage.hbm > 0) == (device != "cpu")
    assert topology_of("h100", 16).local_world_size == 8
    assert topology_of("h100", 16, local_world_size=4, memory=10).devices[3].storage.hbm == 10
    rated = topology_of("cpu", 2, rates=RATES)
    assert rated.rates is RATES
    assert rated.devices[0].storage.ddr == 2 * 2**30
    with pytest.raises(ValueError, match=r"`device` should be one of cpu, .*Received 'tpu'"):
        topology_of("tpu", 2)
    with pytest.raises(ValueError, match=r"`rates` should be measured on the device.*'h100'"):
        topology_of("h100", 2, rates=RATES)


def test_worlds_that_do_not_exchange_are_refused():
    with pytest.raises(ValueError, match=r"`world_sizes` should be numbers.*Received \[1\]"):
        calibrate([1])
    with pytest.raises(ValueError, match="`threads` should be 1 with `processor_time`"):
        calibrate([], threads=2, processor_time=True)


def no_clock() -> float:
    raise ValueError("there is no clock")


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    wanted = r"^A process of 2 should have measured\. ValueError: there is no clock$"
    with pytest.raises(RuntimeError, match=wanted):
        exchange_rate(2, 0.01, 1, no_clock)


@pytest.mark.parametrize("world_size", [2, 4])
def test_rates_are_found_from_steps(world_size):
    """Of steps that take what some rates say, these rates are found."""
    rate = RATES.exchanges[[2, 4].index(world_size)]
    rate = replace(rate, part_ms=0.01, squares_step_ms=0.75, layers_step_ms=0.25)
    tables, away = 8, (world_size - 1) / world_size
    small, large, bags = (128, 1), (2048, 1), (512, 20)

    def exchange(shape, columns, parts=1):
        batch, bag = shape
        ids = parts * tables * batch * (bag + 0.5) * rate.ns_an_id
        sent = 2 * 4 * batch * tables * columns * away * rate.ns_a_byte
        return rate.step_ms + parts * tables * rate.part_ms + (ids + sent) / 1e6

    def apart(shape):
        """Ids are sorted, their lengths are not sent, and rows are pooled."""
        ids = shape[0] * tables
        ns = 128 * rate.rows_ns_a_number + rate.apart_ns_an_id - rate.ns_an_id / 2
        more = (world_size - 1) * tables * rate.part_ms
        return exchange(shape, 128) + rate.rows_step_ms + ids * ns / 1e6 + more

    def long(batch):
        """Every rank has bags of every table."""
        ids, lengths = batch * tables * 20, batch * tables * world_size / 2
        ns = ids * (rate.ns_an_id + rate.apart_ns_an_id) + lengths * rate.ns_an_id
        sums = 2 * 4 * batch * tables * 8 * (world_size - 1) * rate.ns_a_byte
        return 4 + (ns + sums) / 1e6

    def squares(shape):
        ids = 2 * shape[0] * tables * rate.squares_ns_an_id / 1e6
        return exchange(shape, 64, 2) + rate.squares_step_ms + ids

    def gathered(batch):
        rows = 10_000 / world_size
        chosen = sum(rows * (1 - 2.718281828459045 ** (-batch * bag / rows)) for bag in (1, 20))
        return chosen * 4 * 128 * rate.gather_ns_a_number / 1e6

    layers = 3, 5  # a step of small layers alone, and of large ones
    numbers = [2 * side * (side + 1) + side + 1 for side in (8, 700)]
    sums = (numbers[1] - numbers[0]) * 4 * (world_size - 1) * rate.reduce_ns_a_byte / 1e6
    found = {
        "usual alone": [10, 30],
        "usual": [10 * rate.slowdown, 30 * rate.slowdown],
        "narrow here": [1, 4],
        "narrow": [1 + exchange(small, 8), 4 + exchange(bags, 8)],
        "wide here": [2, 6],
        "wide": [2 + exchange(small, 128), 6 + exchange(large, 128)],
        "rows": [2 + apart(small), 6 + apart(large)],
        "long sums here": [5, 8],
        "long sums": [5 + long(32), 8 + long(512)],
        "columns here": [3, 9],
        "columns": [3 + squares(small), 9 + squares(large)],
        "mixed": [7 + gathered(32), 70 + gathered(512)],
        "single": [3, 13],
        "long": [2, 55],
        "tables": [5, 5 + 32 * rate.part_ms],
        "layers alone": [4],
        "layers": [4 * rate.layers_slowdown],
        "summed": [layers[0], layers[0] + rate.layers_step_ms],
        "reduced": [layers[1], layers[1] + rate.layers_step_ms + sums],
    }
    measured = rate_of(found, world_size)
    for name, value in asdict(rate).items():
        assert getattr(measured, name) == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.mark.slow
def test_this_machine():
    measured = calibrate([2], seconds=0.02)
    assert Calibration.from_json(measured.to_json()) == measured
    assert len(measured.lookups) == 9
    for rate in measured.lookups:
        assert 0.1 < rate.forward_id_ns + rate.forward_bag_ns < 10_000
        assert 0.1 < rate.backward_id_ns + rate.backward_bag_ns < 100_000
    assert {rate.state for rate in measured.updates} == {
        StateSize(0, 0),
        BY_ROW,
        StateSize(1, 0),
        StateSize(1, 1),
        ADAM,
    }
    (exchange,) = measured.exchanges
    assert exchange.world_size == 2
    assert exchange.step_ms > measured.step_ms_alone / 10
    assert exchange.layers_slowdown >= 1
    assert 0 < exchange.reduce_ns_a_byte < 1000
    wide = measured.lookup_ms(PartLookup(1000, 1000, 128, 128 * 4 * 100_000))
    narrow = measured.lookup_ms(PartLookup(1000, 1000, 8, 8 * 4 * 100_000))
    assert wide > narrow
