"""Managed ids on several ranks: a run goes on with its maps, and what follows their rows, on any number of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.ranks import Workers
from tests.training.test_run import experiment, run
from torchrec.experiment.files import check_experiment
from torchrec.experiment.schema import Experiment
from torchrec.runs import RunFolder, RunResult

pytestmark = [pytest.mark.once, pytest.mark.slow]


def managed(clicks: Path, placement: str) -> Experiment:
    """Rows for all ids, wherever a hash has them: none is dropped where maps are divided otherwise."""
    features = {
        "user": {"type": "sparse", "ids": "managed", "rows": 240, "evict_every": 3},
        "tags": {"type": "multi_hot", "ids": "managed", "rows": 90, "evict_every": 2},
        "price": {"type": "dense"},
    }
    training = {"average": {"kind": "ema", "decay": 0.9}, "baselines": False}
    what = experiment(clicks, training=training)
    wished = {name: {"sharding_types": [placement]} for name in ("user", "tags")}
    values = what.model_dump(mode="json")
    return check_experiment(
        {**values, "features": features, "distributed": {"constraints": wished}}, "x"
    )


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


@pytest.mark.parametrize(
    ("first", "then", "placement"),
    [(1, 2, "table_wise"), (1, 2, "row_wise"), (2, 1, "row_wise"), (2, 3, "row_wise")],
)
def test_a_run_goes_on_with_another_number_of_ranks(
    workers: Workers, clicks: Path, tmp_path: Path, first: int, then: int, placement: str
) -> None:
    """From its last checkpoint, where nothing is left but to test the average of its weights."""
    what, folder = managed(clicks, placement), RunFolder(tmp_path / "run")

    def run_on(ranks: int) -> RunResult:
        if ranks == 1:
            return run(what, folder.path, True)
        results: list[RunResult] = workers.run(run, ranks, what, folder.path, True)
        assert all(result == results[0] for result in results), results
        return results[0]

    before = run_on(first).test
    assert before is not None
    folder.result.unlink()
    after = run_on(then).test
    assert after == pytest.approx(before, rel=1e-4)
