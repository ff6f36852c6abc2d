"""Which rows an experiment reads, and what is drawn beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.datasets._chunks import Reading
from torchrec.datasets.source import TableSource
from torchrec.experiment.files import check_experiment
from torchrec.experiment.schema import Experiment
from torchrec.experiment.sources import sources_of, with_drawn_negatives

pytestmark = pytest.mark.once


def experiment_of(folder: Path, **data: object) -> Experiment:
    random = np.random.default_rng(0)
    log = {"user": random.integers(9, size=400), "item": random.integers(120, size=400)}
    pq.write_table(pa.table(log), folder / "log.parquet")
    sampled = {"user": "user", "item": "item", "per_positive": 2}
    section = {
        "train": [str(folder / "log.parquet")],
        "label": "positive",
        "sampled_negatives": sampled,
    }
    return check_experiment({"data": section | data}, "mine")


def pairs_of(source: TableSource, epoch: int = 0) -> dict[int, list[tuple[int, int]]]:
    """Return the pairs of user and item, by label, in order."""
    found: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for chunk in source.chunks(source.schema.names, Reading()):
        for row in source.decode(chunk, source.schema.names, epoch).to_pylist():
            found[row["positive"]].append((row["user"], row["item"]))
    return found


def test_what_is_drawn_knows_nothing_of_what_is_predicted(tmp_path: Path) -> None:
    sources = sources_of(experiment_of(tmp_path, split={"valid": 0.3, "test": 0.3}))
    train, valid, test = (pairs_of(one) for one in sources if one is not None)
    own = set(train[1])
    assert not own & {*train[0], *valid[0], *test[0]}
    assert not set(valid[1]) & set(valid[0])
    assert not set(test[1]) & set(test[0])
    # What follows may be drawn for training, as it is for other users.
    assert set(train[0]) & (set(valid[1]) - own)
    assert {item for _, item in train[0]} <= {item for _, item in own}


def test_training_alone_draws_anew(tmp_path: Path) -> None:
    train, valid, _ = sources_of(experiment_of(tmp_path))
    assert valid is not None
    assert pairs_of(train, 0) != pairs_of(train, 1)
    assert pairs_of(valid, 0) == pairs_of(valid, 1)


def test_files_to_measure_on_have_negatives_of_their_own(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path)
    source = with_drawn_negatives(TableSource(tmp_path / "log.parquet"), experiment.data)
    pairs = pairs_of(source)
    assert (len(pairs[1]), len(pairs[0])) == (400, 800)
    assert not set(pairs[0]) & set(pairs[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"negatives": 0.5}, "`data.negatives` should be 1 with `data.sampled_negatives`"),
        ({"label": "bought"}, "`data.label` should name a column of the data. Received 'bought'"),
    ],
    ids=["negatives", "label"],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources_of(experiment_of(tmp_path, **data))
