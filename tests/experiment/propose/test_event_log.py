"""Whether rows are events of users, and the history that is proposed for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowwise import cli
from tests.cli import strangers
from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment.files import load_experiment
from torchrec.experiment.propose import infer_features, write_experiment
from torchrec.experiment.propose._event_log import EventLog, find_event_log, name_of_history
from torchrec.experiment.schema import DataSection
from torchrec.experiment.sources import sources_of

pytestmark = pytest.mark.once

ROWS = 400


def log(**changed: object) -> dict[str, object]:
    """Return columns of a log, some of them changed, or left out where they are None."""
    random = np.random.default_rng(8)
    times = 1_700_000_000 + random.integers(0, 50, ROWS) * 3600
    columns = {
        "user_id": random.integers(0, 30, ROWS) * 7919,
        "item_id": random.choice(np.array([f"i{at}" for at in range(40)]), ROWS),
        "city": random.choice(np.array(["a", "b", "c"]), ROWS),
        "at": pa.array(times).cast(pa.timestamp("s")),
        "click": random.integers(0, 2, ROWS),
    }
    return {name: values for name, values in {**columns, **changed}.items() if values is not None}


def found(folder: Path, columns: dict[str, object]) -> EventLog | None:
    pq.write_table(pa.table(columns), folder / "log.parquet")
    return infer_features(folder / "log.parquet", "click").event_log


def taken(path: Path) -> str:
    """Take the history that is proposed in an experiment file; return its name."""
    text = path.read_text()
    proposed = re.search(r"`histories`\s[\s#]*and\s[\s#]*`(\w+)`", text)
    assert proposed is not None
    name = proposed[1]
    text, lines = re.subn(rf"(?m)^  # (?=histories:$|(?:  )?{name}: \{{)", "  ", text)
    assert lines == 3
    path.write_text(text)
    return name


@pytest.mark.parametrize(
    ("user", "item"),
    [("user_id", "item_id"), ("visitorid", "itemid"), ("userId", "movieId"), ("uid", "ASIN")],
)
def test_a_log(tmp_path: Path, user: str, item: str) -> None:
    columns = log()
    columns = {user: columns.pop("user_id"), item: columns.pop("item_id"), **columns}
    assert found(tmp_path, columns) == (user, item, "at")


def test_the_time_that_tells_most_is_taken(tmp_path: Path) -> None:
    columns = log()
    day = 20_240_101 + np.arange(ROWS) % 9
    ordered = {"user_id": columns.pop("user_id"), "date": day, **columns}
    assert found(tmp_path, ordered) == ("user_id", "item_id", "at")
    assert found(tmp_path, {**ordered, "at": np.zeros(ROWS, int)}) == ("user_id", "item_id", "date")


@pytest.mark.parametrize(
    "changed",
    [
        {"user_id": None},
        {"user_id": None, "user_segment": np.arange(ROWS) % 30},
        {"user_id": np.arange(ROWS) % 200},
        {"item_id": np.arange(ROWS) % 9},
        {"at": None},
        {"at": 1_700_000_000 + np.asarray(log()["user_id"])},
    ],
    ids=["no user", "segment", "users once", "few items", "no time", "time of the user"],
)
def test_no_log(tmp_path: Path, changed: dict[str, object]) -> None:
    assert found(tmp_path, log(**changed)) is None


def test_dictionaries_of_several_pieces_are_a_log(tmp_path: Path) -> None:
    columns = log(user_id=np.char.mod("u%d", np.asarray(log()["user_id"])))
    pq.write_table(pa.table(columns), tmp_path / "log.parquet", row_group_size=90)
    inference = infer_features(tmp_path / "log.parquet", "click")
    assert inference.event_log == ("user_id", "item_id", "at")
    assert find_event_log([], pa.table({}), 0) is None


def test_names_of_histories() -> None:
    assert name_of_history("video_id", ["user"]) == "video_history"
    assert name_of_history("item", ["item_history", "item_history_"]) == "item_history__"


@pytest.mark.parametrize("where", [True, False], ids=["clicks", "all"])
def test_the_proposal_gathers_what_was_before(tmp_path: Path, where: bool) -> None:
    columns = log(click=np.asarray(log()["click"]) > 0) if where else log()
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    label = "click" if where else "click > 0"
    data = DataSection(train=str(tmp_path / "log.parquet"), label=label)
    inference = infer_features(tmp_path / "log.parquet", label)
    path = tmp_path / "experiment.yaml"
    assert write_experiment(path, inference, data) == load_experiment(path)  # as a comment
    assert taken(path) == "item_history"
    experiment = load_experiment(path, ["data.split={valid: 0, test: 0}", f"output={tmp_path}/run"])
    features = experiment.features or {}
    assert features["item_history"].type == "sequence"
    rows: list[dict[str, Any]] = pa.table(columns).to_pylist()
    histories = [row for table in sources_of(experiment).train.scan() for row in table.to_pylist()]
    for row in histories:
        mine = [one for one in rows if one["user_id"] == row["user_id"] and one["at"] < row["at"]]
        mine = sorted((one for one in mine if one["click"] or not where), key=lambda one: one["at"])
        assert row["item_history"] == ([one["item_id"] for one in mine][-50:] or None)
    assert len(histories) == ROWS


def test_none_is_proposed_where_its_columns_are_no_features_or_lists_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random, columns = np.random.default_rng(9), log(item_id=np.arange(ROWS) % 150)
    pq.write_table(pa.table(columns), "log.parquet")
    lists = pa.array(random.integers(0, 150, (ROWS, 5)).tolist())
    pq.write_table(pa.table({**columns, "recent_items": lists}), "lists.parquet")
    for given in (["log.parquet", "--exclude", "user_id"], ["lists.parquet"]):
        assert cli.main(["init", *given, "--label", "click", "--overwrite"]) == 0
        assert "histories" not in Path("experiment.yaml").read_text()


def write_purchases(folder: Path) -> None:
    columns = log(item_id=np.random.default_rng(2).integers(0, 90, ROWS), click=None)
    pq.write_table(pa.table(columns), folder / "log.parquet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "given", "later"),
    [
        (strangers.events, ["events.csv", "--label", "event_type == 'purchase'"], "next.csv"),
        (strangers.kuairand, ["log.csv", "--label", "is_click"], "new.csv"),
        (write_purchases, ["log.parquet", "--draw-negatives", "user_id:item_id"], "log.parquet"),
    ],
    ids=["events", "clicks", "drawn"],
)
def test_the_proposal_trains(
    write: Callable[[Path], None],
    given: Sequence[str],
    later: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    assert cli.main(["init", *given]) == 0
    name = taken(Path("experiment.yaml"))
    options = ["training.epochs=1", "training.baselines=false", "training.threads=1"]
    assert cli.main(["train", "experiment.yaml", *options]) == 0
    transform = FeatureTransform.load("runs/experiment/model/transform")
    assert name in transform.sparse_keys
    # Beside other rows, those of training are what their users did before.
    assert cli.main(["evaluate", "runs/experiment", later]) == 0
