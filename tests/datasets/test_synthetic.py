from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from torchrec.datasets.synthetic import ClickLog, read_limits, write_click_log
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.concat_tables(ClickLog(rows=150_000, users=2_000, items=500, seed=3).tables())


def test_equal_seeds_give_equal_logs() -> None:
    first, second, other = (
        pa.concat_tables(ClickLog(rows=70_000, seed=seed).tables()) for seed in (1, 1, 2)
    )
    assert first.equals(second)
    assert first["user"] != other["user"]
    assert first["click"] != other["click"]


def test_clicks_follow_their_probability(table: pa.Table) -> None:
    probability, click = table["click_probability"].to_numpy(), table["click"].to_numpy()
    for low in np.arange(0, 1, 0.1):
        group = (probability >= low) & (probability < low + 0.1)
        error = 4 * np.sqrt(0.25 / group.sum())
        assert abs(click[group].mean() - probability[group].mean()) < error
    assert 0.1 < click.mean() < 0.4


def test_ids_are_skewed(table: pa.Table) -> None:
    for column, least in (("user", 0.08), ("item", 0.2)):
        ids = table[column][:5_000].to_numpy()
        counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
        assert counts[:5].sum() / len(ids) > least
        assert len(counts) > 300


def test_columns_are_of_all_kinds(table: pa.Table) -> None:
    lengths = np.diff(table["seen"].combine_chunks().offsets.to_numpy())
    assert set(lengths) == set(range(9))
    assert set(table["seen"].combine_chunks().values.to_numpy()) <= set(table["item"].to_numpy())
    assert 0.04 < table["price"].null_count / len(table) < 0.06
    assert np.all(np.diff(table["time"].to_numpy()) >= np.timedelta64(0))
    assert set(table["device"].to_pylist()) == {"phone", "desktop", "tablet", "tv"}


def test_items_drift(table: pa.Table) -> None:
    early, next_, late = (
        table[column][start : start + 10_000].value_counts().to_pylist()
        for column, start in (("item", 0), ("item", 10_000), ("item", 140_000))
    )
    assert _distance(early, late) > 2 * _distance(early, next_) > 0


def _distance(first: list[dict[str, int]], second: list[dict[str, int]]) -> int:
    counts = [{one["values"]: one["counts"] for one in part} for part in (first, second)]
    return sum(abs(counts[0].get(id, 0) - counts[1].get(id, 0)) for id in counts[0] | counts[1])


def test_files_hold_the_log_in_order_of_time(tmp_path: Path) -> None:
    log = ClickLog(rows=100_000, seed=5)
    limits = write_click_log(log, tmp_path / "clicks", valid=0.2, test=0.1)
    assert [path.name for path in limits] == ["train.parquet", "valid.parquet", "test.parquet"]
    assert [one.rows for one in limits.values()] == [70_000, 20_000, 10_000]
    assert sorted(path.name for path in (tmp_path / "clicks").iterdir()) == [
        "test.parquet",
        "train.parquet",
        "valid.parquet",
    ]
    written = pa.concat_tables(pq.read_table(path) for path in limits)
    drawn = pa.concat_tables(log.tables()).cast(written.schema)
    assert written.equals(drawn)
    assert written.schema.field("category").type == pa.string()


def test_limits_are_those_of_the_true_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    limits = write_click_log(ClickLog(rows=90_000), path)[path]
    table = pq.read_table(path)
    click, probability = table["click"].to_numpy(), table["click_probability"].to_numpy()
    loss = log_loss(click, probability)
    assert limits.auc == pytest.approx(roc_auc_score(click, probability), abs=1e-4)
    assert limits.logloss == pytest.approx(loss, rel=1e-4)
    assert limits.ne == pytest.approx(
        loss / log_loss(click, np.full(len(click), click.mean())), rel=1e-4
    )
    assert limits.click_rate == pytest.approx(click.mean())
    assert read_limits(path) == limits


def test_files_of_others_have_no_limits(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert read_limits(tmp_path / "a.parquet") is None


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.parquet").write_text("was here")

    first = list(ClickLog(rows=10).tables())

    def tables(log: ClickLog) -> Iterator[pa.Table]:
        yield from first
        raise OSError("No space left on device")

    monkeypatch.setattr(ClickLog, "tables", tables)
    with pytest.raises(OSError, match="No space left"):
        write_click_log(ClickLog(rows=20), tmp_path / "log.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]
    assert (tmp_path / "log.parquet").read_text() == "was here"


@pytest.mark.parametrize(("valid", "test"), [(-0.1, 0.1), (0.5, 0.5)])
def test_fractions_leave_something_to_train_on(tmp_path: Path, valid: float, test: float) -> None:
    with pytest.raises(ValueError, match="should not be negative and sum to less than 1"):
        write_click_log(ClickLog(rows=10), tmp_path, valid, test)


def test_sizes_are_positive() -> None:
    with pytest.raises(ValueError, match=r"`users` should be positive. Received 0\."):
        ClickLog(rows=10, users=0)


def test_ids_tell_more_than_numbers_do(table: pa.Table) -> None:
    """A model with embeddings beats by far one without."""
    train, test = table[:120_000], table[120_000:]
    dense = _auc_of(_Linear(), train, test)
    embedded = _auc_of(_Factorised(train), train, test)
    best = roc_auc_score(test["click"].to_numpy(), test["click_probability"].to_numpy())
    assert dense < 0.62
    assert dense + 0.08 < embedded < best


class _Linear(torch.nn.Module):
    """Hour and price, no ids."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, table: pa.Table) -> torch.Tensor:
        hour = torch.from_numpy(table["hour"].to_numpy().copy()) * (torch.pi / 12)
        price = torch.from_numpy(table["price"].to_numpy().copy())
        parts = [hour.sin(), hour.cos(), price.nan_to_num(20.0).log() - 3, price.isnan().float()]
        return self.layer(torch.stack(parts, 1)).squeeze(1)


class _Factorised(torch.nn.Module):
    """User and item, their products, and what the numbers say."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__()
        size = 20_001
        self.vectors = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=name, num_embeddings=size, embedding_dim=9, feature_names=[name]
                )
                for name in ("user", "item")
            ]
        )
        for parameter in self.vectors.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        self.numbers = _Linear()

    def forward(self, table: pa.Table) -> torch.Tensor:
        ids = [torch.from_numpy(table[name].to_numpy().copy()) for name in ("user", "item")]
        keyed = KeyedJaggedTensor(
            keys=["user", "item"],
            values=torch.cat(ids),
            lengths=torch.ones(2 * len(table), dtype=torch.int64),
        )
        vectors = self.vectors(keyed)
        user, item = vectors["user"], vectors["item"]
        products = (user[:, 1:] * item[:, 1:]).sum(1)
        return products + user[:, 0] + item[:, 0] + self.numbers(table)


def _auc_of(model: torch.nn.Module, train: pa.Table, test: pa.Table) -> float:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for start in 2 * list(range(0, len(train), 2_048)):
        part = train[start : start + 2_048].combine_chunks()
        click = torch.from_numpy(part["click"].to_numpy().astype(np.float32))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(part), click)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(roc_auc_score(test["click"].to_numpy(), model(test.combine_chunks()).numpy()))
