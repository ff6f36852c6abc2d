"""The plan of an experiment: the same of `torchrec plan` and of a run, kept to from a file, or refused by its key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.planner.test_calibrate import RATES
from tests.distributed.ranks import Workers
from tests.training.test_run import experiment, run
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.sharding_plan import plan_from_json, plan_to_json
from torchrec.experiment.build import build_model
from torchrec.experiment.schema import Experiment
from torchrec.training.plan import plan_experiment, sharded, topology_for
from torchrec.training.rank_facts import plan_in_words
from torchrec.training.run_data import RunData

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


def described(clicks: Path, dim: int = 4, **distributed: Any) -> Experiment:
    features = {"user": {"type": "sparse"}, "price": {"type": "dense"}, "city": {"type": "sparse"}}
    return experiment(
        clicks,
        features=features,
        model={"dim": dim},
        training={"epochs": 1, "baselines": False},
        distributed=distributed,
    )


def spread(what: Experiment) -> dict[str, str]:
    """Shard the model of an experiment, as a run on ranks does."""
    data = RunData(what)
    model = build_model(what.model, what.training, data.transform, "meta")
    return plan_in_words(sharded(model, what, data).plan)


@pytest.fixture(scope="module")
def of_two(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a plan for two ranks."""
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    path.write_text(plan_to_json(plan_experiment(described(clicks), Topology(2, "cpu"))))
    return path


@pytest.mark.slow
def test_a_file_is_kept_to(workers: Workers, clicks: Path, of_two: Path, tmp_path: Path) -> None:
    made = plan_from_json(of_two.read_text())
    assert made.world_size == 2
    assert workers.run(spread, 2, described(clicks, plan=str(of_two))) == [plan_in_words(made)] * 2
    older = tmp_path / "older.json"  # which does not say for how many ranks it is
    older.write_text(plan_to_json(replace(made, world_size=None)))
    assert "world_size" not in json.loads(older.read_text())
    assert workers.run(spread, 2, described(clicks, plan=str(older))) == [plan_in_words(made)] * 2


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_file_for_another_number_of_ranks_is_refused(
    workers: Workers, clicks: Path, of_two: Path, ranks: int
) -> None:
    for error in workers.run(spread, ranks, described(clicks, plan=str(of_two))):
        assert isinstance(error, ValueError)
        assert str(error) == (
            f"`distributed.plan` '{of_two}': A plan should be for as many ranks as there are, {ranks}. "
            f"Received one for 2. To make one of this model for {ranks} ranks: "
            f"`torchrec plan EXPERIMENT --world-size {ranks}`."
        )


def test_what_a_file_does_not_fit_names_it(
    workers: Workers, clicks: Path, of_two: Path, tmp_path: Path
) -> None:
    errors = [*workers.run(spread, 2, described(clicks, dim=8, plan=str(of_two)))]
    older = tmp_path / "older.json"
    older.write_text(plan_to_json(replace(plan_from_json(of_two.read_text()), world_size=None)))
    errors += workers.run(spread, 1, described(clicks, plan=str(older)))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe")
    errors += workers.run(spread, 1, described(clicks, plan=str(binary)))
    for error, file, words in zip(
        errors,
        (of_two, of_two, older, binary),
        ("columns", "columns", "on ranks 0 to 0", "in UTF-8. Received byte 0xff at position 0."),
        strict=True,
    ):
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"`distributed.plan` '{file}': ")
        assert words in str(error)
        assert "`torchrec plan EXPERIMENT --world-size" in str(error)


def found(what: Experiment) -> tuple[float, bool]:
    """Return what a run on ranks expects of a step, and whether that goes by measured rates."""
    data = RunData(what)
    model = build_model(what.model, what.training, data.transform, "meta")
    report = sharded(model, what, data).plan.report
    assert report is not None
    return report.step_ms, report.is_measured


def test_a_plan_counts_what_travels_as_a_run_finds_it(workers: Workers, clicks: Path) -> None:
    def planned(what: Experiment) -> float:
        report = plan_experiment(what, topology_for(what.distributed, 2)).report
        assert report is not None
        return report.step_ms

    plain, exact = described(clicks, dim=64), described(clicks, dim=64, exact=True)
    half = described(clicks, dim=64, forward_precision="fp16", backward_precision="fp16")
    assert planned(half) < planned(plain)
    for what in (plain, half, exact):
        assert workers.run(found, 2, what)[0] == (planned(what), False)


def test_rates_are_those_of_the_file(workers: Workers, clicks: Path, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(RATES.to_json())
    what = described(clicks, rates=str(path))
    report = plan_experiment(what, topology_for(what.distributed, 2)).report
    assert report is not None
    assert workers.run(found, 2, what) == [(report.step_ms, True)] * 2
    faster = replace(RATES, step_ms_alone=0.0)
    assert topology_for(what.distributed, 2).rates == RATES
    assert topology_for(what.distributed, 2, rates=faster).rates == faster
    assert topology_for(what.distributed, 2, device="h100").rates is None
    path.write_text("{}")
    with pytest.raises(
        ValueError, match=r"`distributed.rates` '.*rates.json': A calibration should"
    ):
        topology_for(what.distributed, 2)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"ranks": [5]}, "should have `ranks` from 0 to 1. Received [5]."),
        ({"sharding_types": ["rows"]}, "should have a sharding type that its sharder knows"),
        ({"together_with": "nobody"}, "should go together with a table of the model"),
        ({"ranks": [0], "forbidden_ranks": [0]}, "should be allowed on ranks"),
    ],
    ids=["ranks", "types", "together", "nowhere"],
)
def test_wishes_that_cannot_be_name_their_key(
    workers: Workers, clicks: Path, wish: dict[str, Any], message: str
) -> None:
    what = described(clicks, constraints={"user": wish})
    with pytest.raises(PlannerError) as raised:
        plan_experiment(what, topology_for(what.distributed, 2))
    said = str(raised.value)
    assert said.startswith("`distributed.constraints`: Table 'user' of module 'sparse_arch")
    assert message in said
    assert [str(error) for error in workers.run(spread, 2, what)] == [said, said]


def test_what_has_no_room_is_not_for_wishes(clicks: Path) -> None:
    what = described(clicks, constraints={"user": {"ranks": [0]}})
    with pytest.raises(PlannerError, match=r"^Rank 0 should have memory left for tables"):
        plan_experiment(what, topology_for(what.distributed, 2, memory=10))


@pytest.mark.slow
def test_going_on_with_another_number_of_ranks_needs_another_plan(
    workers: Workers, clicks: Path, of_two: Path, tmp_path: Path
) -> None:
    folder, what = tmp_path / "run", described(clicks, plan=str(of_two))
    first = workers.run(run, 2, what, folder)
    (folder / "result.json").unlink()
    for error in workers.run(run, 3, what, folder, True):
        assert "Received one for 2. To make one of this model for 3 ranks" in str(error)
    rates = tmp_path / "rates.json"
    rates.write_text(RATES.to_json())
    after = workers.run(run, 3, described(clicks, rates=str(rates)), folder, True)
    assert after[0].steps == first[0].steps
