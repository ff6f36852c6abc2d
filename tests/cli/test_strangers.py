"""Files as people have them, from the first look to recommendations, with what the help texts say alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from rowwise import cli
from tests.cli import strangers
from torchrec.experiment.files import load_experiment

pytestmark = pytest.mark.once

SHORT = [
    "training.epochs=5",
    "training.learning_rate=0.01",
    "training.threads=1",
    "model.dropout=0.1",
]
JOINED = """
    select data.*, genres, gender, age
    from data left join movies using (movieId) left join users using (userId)
"""
TABLES = ["--table", "movies=movies.csv", "--table", "users=users.csv"]
EACH_OUTCOME = [
    "data.label=null",
    "model.name=mmoe",
    "tasks={click: {label: is_click}, like: {label: is_like, given: click}, "
    "watch: {label: play_time_ms / 1000, kind: regression, loss: huber}}",
    "training.early_stopping.metric=click.auc",
    "metrics=[gauc(user_id)]",
]


@dataclass(frozen=True)
class Stranger:
    """What somebody has, and does with it.

    Attributes:
        write: writes the files.
        init: the file to look at, and options.
        features: what becomes of the columns.
        test: the file to measure on, and that to predict for.
        pairs: the files of users and of candidates, and their keys.
        train: what is changed for training.
        task: to recommend by.
    """

    write: Callable[[Path], None]
    init: Sequence[str]
    features: dict[str, str]
    test: tuple[str, str]
    pairs: tuple[str, str]
    keys: tuple[str, str]
    train: Sequence[str] = ()
    task: str | None = None


CRITEO = Stranger(
    strangers.criteo,
    ["train.txt", "--label", "label"],
    {f"int_{i}": "dense" for i in range(1, 14)} | {f"cat_{i}": "sparse" for i in range(1, 27)},
    ("train.txt", "test.txt"),
    ("users.csv", "ads.csv"),
    ("user", "ad"),
)
OTHERS = {
    "avazu": Stranger(
        strangers.avazu,
        ["train.csv", "--label", "click"],
        dict.fromkeys(["banner_pos", "site_id", "site_category", "device_type", "C14"], "sparse"),
        ("train.csv", "test.csv"),
        ("users.csv", "spots.csv"),
        ("user", "spot"),
    ),
    "movielens": Stranger(
        strangers.movielens,
        ["ratings.csv", "--label", "rating > 3", "--query", JOINED, *TABLES],
        dict.fromkeys(["userId", "movieId", "gender", "age"], "sparse") | {"genres": "multi_hot"},
        ("ratings.csv", "ratings.csv"),
        ("users.csv", "movies.csv"),
        ("userId", "movieId"),
    ),
    "events": Stranger(
        strangers.events,
        ["events.csv", "--label", "event_type == 'purchase'"],
        dict.fromkeys(["product_id", "category_id", "category_code", "brand"], "sparse")
        | {"price": "dense", "user_id": "sparse", "user_session": "sparse"},
        ("next.csv", "next.csv"),
        ("visitors.csv", "products.csv"),
        ("user_id", "product_id"),
    ),
    "purchases": Stranger(
        strangers.purchases,
        ["purchases.csv", "--draw-negatives", "user_id:product_id,category,price"],
        dict.fromkeys(["user_id", "product_id", "category"], "sparse") | {"price": "dense"},
        ("next.csv", "next.csv"),
        ("users.csv", "products.csv"),
        ("user_id", "product_id"),
    ),
    "kuairand": Stranger(
        strangers.kuairand,
        ["log.csv", "--label", "is_click"],
        dict.fromkeys(["user_id", "video_id", "hourmin", "tab"], "sparse")
        | {"duration_ms": "dense"},
        ("new.csv", "new.csv"),
        ("users.csv", "videos.csv"),
        ("user_id", "video_id"),
        train=EACH_OUTCOME,
        task="click",
    ),
}


def test_criteo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(CRITEO, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(OTHERS[name], tmp_path, monkeypatch)


def go(stranger: Stranger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do it all, and see that it came out as it should."""
    monkeypatch.chdir(folder)
    stranger.write(folder)
    torchrec("init", *stranger.init)
    features = load_experiment("experiment.yaml").features or {}
    assert {name: feature.type for name, feature in features.items()} == stranger.features

    torchrec("train", "experiment.yaml", *SHORT, *stranger.train)
    measured, asked = stranger.test
    torchrec("evaluate", "runs/experiment", measured, "--json", "result.json")
    result = json.loads(Path("result.json").read_text())
    auc = result["auc" if stranger.task is None else f"{stranger.task}.auc"]
    assert auc > 0.65
    if stranger.train is EACH_OUTCOME:
        assert {"like.auc", "watch.mse", "click.gauc(user_id)"} <= result.keys()

    torchrec("predict", "runs/experiment", asked, "-o", "predictions.parquet")
    predicted = pq.read_table("predictions.parquet")
    lines = Path(asked).read_text().count("\n") - (stranger is not CRITEO)
    assert predicted.num_rows == lines

    users, candidates = stranger.pairs
    by = [] if stranger.task is None else ["--task", stranger.task]
    torchrec("recommend", "runs/experiment", "-u", users, "-c", candidates, "-k", "3", *by)
    best = pq.read_table("recommendations.parquet")
    of_user, of_candidate = stranger.keys
    assert best.column_names == [of_user, of_candidate, "rank", "score"]
    asking = pyarrow.csv.read_csv(users)[of_user].to_pylist()
    assert best[of_user].to_pylist() == [user for user in asking for _ in range(3)]
    known = set(pyarrow.csv.read_csv(candidates)[of_candidate].to_pylist())
    assert set(best[of_candidate].to_pylist()) <= known


def torchrec(*arguments: str) -> None:
    assert cli.main(list(arguments)) == 0
