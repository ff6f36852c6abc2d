"""What is proposed by the number of rows, and of ids."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec.experiment.files import load_experiment
from torchrec.experiment.propose import infer_features, write_experiment
from torchrec.experiment.propose._sizes import (
    is_small,
    proposed_batch_size,
    proposed_decay,
    proposed_epochs,
    updates_all_rows,
)
from torchrec.experiment.schema import DataSection

pytestmark = pytest.mark.once


@pytest.mark.parametrize("rows", [0, 1, 500, 8_191, 8_192, 100_000, 10**6, 10**9])
def test_a_pass_has_64_steps_where_batches_may_be_smaller(rows) -> None:
    size = proposed_batch_size(rows)
    assert 128 <= size <= 4_096
    assert size & (size - 1) == 0
    assert size == 128 or rows / size >= 64
    assert size == 4_096 or rows / (2 * size) < 64


def test_more_rows_need_a_smaller_penalty() -> None:
    assert [proposed_decay(rows) for rows in (0, 160_000, 200_000, 10**6, 1_999_999)] == [
        0.05,
        0.05,
        0.04,
        0.008,
        0.004,
    ]


def test_few_passes_need_no_penalty() -> None:
    assert [proposed_decay(rows) for rows in (2 * 10**6, 10**9)] == [0, 0]


def test_more_rows_need_fewer_passes() -> None:
    assert [proposed_epochs(rows) for rows in (0, 2 * 10**6, 2 * 10**7)] == [30, 3, 1]


def test_all_rows_are_updated_where_they_are_few() -> None:
    assert updates_all_rows([], 64)
    assert updates_all_rows([1 << 20, 1 << 20], 16)
    assert not updates_all_rows([1 << 20, (1 << 20) + 1], 16)


def clicks(path: Path, rows: int) -> Path:
    table = pa.table(
        {"user": [f"u{i % 50}" for i in range(rows)], "click": [i % 2 for i in range(rows)]}
    )
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("rows", [19_999, 20_000])
def test_what_is_written_is_what_is_read(tmp_path, rows) -> None:
    data = DataSection(train=[str(clicks(tmp_path / "clicks.parquet", rows))], label="click")
    path = tmp_path / "new.yaml"
    written = write_experiment(path, infer_features(data.train, "click"), data)
    read = load_experiment(path)
    assert read.model == written.model
    assert read.training == written.training
    assert read.training.embedding_updates == "dense"
    assert read.training.embedding_weight_decay == proposed_decay(rows)
    assert read.training.early_stopping is not None
    assert read.training.early_stopping.metric == ["auc", "logloss"]
    assert read.training.schedule.decay == "plateau"
    assert (read.training.average.kind, read.training.average.decay) == ("ema", 0.98)
    # Batch normalisation and tables that start near zero need more steps than a few rows have.
    assert is_small(rows) == (rows < 20_000)
    model = read.model
    if is_small(rows):
        assert (model.name, model.batch_norm, model.dropout) == ("dlrm", False, 0.5)
        assert model.table_init.rule == "uniform"
    else:
        assert (model.name, model.batch_norm, model.dropout) == ("dlrm_dcn", True, 0.2)
        assert model.table_init is None
