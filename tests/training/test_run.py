"""From files to a folder with a trained, evaluated and saved model."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from rowwise import cli
from tests.training.killing import ending
from torchrec.bundle import load_bundle
from torchrec.experiment.files import check_experiment, load_experiment
from torchrec.experiment.schema import Experiment, TrainingSection
from torchrec.inference import load
from torchrec.threads import usable_processors, using_threads
from torchrec.training import Observer, checkpoint
from torchrec.training.progress import PlainLines
from torchrec.training.run import RunResult, run_experiment
from torchrec.training.run_threads import thread_chooser

pytestmark = pytest.mark.once


def experiment(path: Path, /, **sections: dict[str, Any]) -> Experiment:
    values: dict[str, Any] = {
        "data": {"train": [str(path)], "label": "click"},
        "model": {"dim": 4, "layers": [16], "dense_layers": [8]},
        "training": {"batch_size": 128, "learning_rate": 0.02, "log_every": 5},
        "output": "unused",
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return check_experiment(values, "experiment.yaml")


class Notes(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def said(self, message: str) -> None:
        self.messages.append(message)


def run(what: Experiment, folder: Path, resume: bool = False) -> RunResult:
    return run_experiment(what, folder, resume=resume, observers=[Notes()])


def test_a_run_leaves_everything_in_its_folder(clicks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(experiment(clicks, training={"epochs": 4, "tensorboard": True}), folder)
    found = json.loads((folder / "result.json").read_text())
    assert result.test is not None
    assert result.test["auc"] is not None
    assert result.test["auc"] > 0.75
    for split in ("train", "valid", "test"):
        assert found[split] == getattr(result, split)
        assert {"auc", "ne", "logloss", "calibration"} <= found[split].keys()
    assert 2200 < found["train"]["samples"] < 2600
    assert found["train"]["samples"] + found["valid"]["samples"] + found["test"]["samples"] == 3000
    assert found["seconds"] > 0
    assert found["samples_per_second"] > 0
    assert found["peak_rss_bytes"] > 1e8
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train", "valid", "test"}
    assert lines[0].keys() >= {
        "step", "epoch", "samples", "seconds", "split", "loss", "ne", "auc", "logloss",
        "calibration", "learning_rate", "samples_per_second", "time", "ids",
    }  # fmt: skip
    assert lines[0]["ids"].keys() >= {"unknown", "hashed", "out_of_range"}
    assert list((folder / "tensorboard").iterdir())
    saved = load_experiment(folder / "experiment.yaml")
    assert saved.features is not None
    assert set(saved.features) == {"user", "price", "tags", "city"}
    assert not [p for p in folder.rglob("*") if "writing" in p.name]


def test_report_knows_the_tables(clicks: Path, tmp_path: Path) -> None:
    run(experiment(clicks), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    tables = {table["name"]: table for table in report["tables"]}
    model = load_bundle(tmp_path / "run" / "model").model
    weights = {
        name.split(".")[-2]: value
        for name, value in model.state_dict().items()
        if "embedding_bags" in name
    }
    assert tables.keys() == weights.keys()
    for name, table in tables.items():
        norms = weights[name].norm(dim=1)
        assert (table["rows"], table["dim"]) == tuple(weights[name].shape)
        assert table["bytes"] == weights[name].numel() * 4
        assert table["norm_mean"] == pytest.approx(norms.mean().item(), rel=1e-5)
        assert table["norm_max"] == pytest.approx(norms.max().item(), rel=1e-5)
        assert table["occupancy"] == pytest.approx(1 - table["dead_rows"] / table["rows"])
    # Cities: three, and a row for unknown ones, which the training data never needs.
    assert tables["city"]["dead_rows"] == 1
    assert tables["city"]["ids_seen"] == 3
    curves = report["curves"]
    samples = sum(curves["positives"]) + sum(curves["negatives"])
    assert samples == json.loads((tmp_path / "run" / "result.json").read_text())["test"]["samples"]


@pytest.mark.parametrize("name", ["dlrm", "dlrm_dcn", "deepfm"])
def test_the_bundle_is_the_model(name: str, clicks: Path, tmp_path: Path) -> None:
    """Its metrics on the test data are those that the run reported, exactly."""
    from torchrec.training.run_data import RunData
    from torchrec.training.trainer import Trainer

    what = experiment(clicks, model={"name": name})
    result = run(what, tmp_path / "run")
    bundle = load_bundle(tmp_path / "run" / "model", trainable=True)
    data = RunData(what)
    assert data.test is not None
    assert Trainer(bundle.model).evaluate(data.test).to_json() == result.test


def test_equal_experiments_give_equal_runs(clicks: Path, tmp_path: Path) -> None:
    for name, changes in (("a", {}), ("b", {}), ("workers", {"workers": 1})):
        run(experiment(clicks, data=changes, model={"dropout": 0.1}), tmp_path / name)
    run(experiment(clicks, training={"seed": 1}), tmp_path / "seed")
    first = ending(tmp_path / "a")
    assert ending(tmp_path / "b") == first
    assert ending(tmp_path / "workers")["result"] == first["result"]
    assert ending(tmp_path / "seed")["result"] != first["result"]


def test_given_files_are_the_splits(clicks: Path, tmp_path: Path) -> None:
    table = pq.read_table(clicks)
    for name, rows in (("valid", 700), ("test", 300)):
        pq.write_table(table.slice(0, rows), tmp_path / f"{name}.parquet")
    files = {name: [str(tmp_path / f"{name}.parquet")] for name in ("valid", "test")}
    result = run(experiment(clicks, data=files), tmp_path / "run")
    sizes = [result.train["samples"]]
    sizes += [split["samples"] for split in (result.valid, result.test) if split]
    assert sizes == [3000, 700, 300]


def test_splits_by_time(tmp_path: Path) -> None:
    """The label follows the number only in the last tenth, so only the test shows it."""
    rows = 2000
    number = torch.randn(rows)
    label = torch.where(torch.arange(rows) < 1800, torch.randint(0, 2, (rows,)), number > 0)
    columns = {"at": list(range(rows)), "number": number.tolist(), "click": label.int().tolist()}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns).take(torch.randperm(rows).numpy()), path)
    split = {"by": "time", "column": "at", "valid": 0.1, "test": 0.1}
    what = experiment(path, data={"split": split}, training={"learning_rate": 0.001})
    features = {"number": {"type": "dense"}}
    what = check_experiment({**what.model_dump(mode="json"), "features": features}, "x")
    result = run(what, tmp_path / "run")
    assert result.valid is not None
    assert result.test is not None
    assert (result.valid["samples"], result.test["samples"]) == (200, 200)
    aucs = [abs((split["auc"] or 0) - 0.5) for split in (result.valid, result.test)]
    assert aucs[0] < 0.15
    assert aucs[1] > 0.4


def test_text_with_a_schedule(clicks: Path, tmp_path: Path) -> None:
    """Rows of text are counted for the schedule, and the last rate is the final one."""
    table = pq.read_table(clicks).drop_columns(["tags"])
    pyarrow.csv.write_csv(table, tmp_path / "clicks.csv")
    schedule = {"decay": "linear", "final": 0.25}
    what = experiment(tmp_path / "clicks.csv", training={"schedule": schedule, "epochs": 2})
    run(what, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["learning_rate"] == pytest.approx(0.02 * 0.25)


def test_a_plateau_by_two_metrics(clicks: Path, tmp_path: Path) -> None:
    what = experiment(
        clicks,
        training={
            "epochs": 5,
            "learning_rate": 1.0,  # too high to improve for long
            "schedule": {"decay": "plateau", "factor": 0.5},
            "early_stopping": {"metric": ["auc", "logloss"], "patience": 4},
        },
    )
    run(what, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if line["split"] == "valid"]
    scores = [line["auc"] - line["logloss"] for line in lines if line["split"] == "valid"]
    expected = [1.0]
    for number, score in enumerate(scores[1:-1], 1):
        expected.append(expected[-1] * (1.0 if score > max(scores[:number]) else 0.5))
    assert rates == [1.0, *expected[: len(rates) - 1]]
    assert rates[-1] < 1.0
    reloaded = load_experiment(tmp_path / "run" / "experiment.yaml").training
    assert reloaded.early_stopping is not None
    assert reloaded.early_stopping.metrics == ("auc", "logloss")


@pytest.mark.parametrize(
    "training",
    [
        {"average": {"kind": "ema", "decay": 0.9}},
        {"average": {"kind": "swa", "start": 0.5}},
        {"label_smoothing": 0.3},
    ],
    ids=str,
)
def test_what_is_saved_is_what_was_evaluated(
    training: dict[str, Any], clicks: Path, tmp_path: Path
) -> None:
    """And another model than without the option; the file keeps what it says."""
    plain = run(experiment(clicks, training={"epochs": 2}), tmp_path / "plain")
    what = experiment(clicks, training={"epochs": 2, **training})
    found = run(what, tmp_path / "run")
    assert found.test is not None
    assert plain.test is not None
    assert found.test["logloss"] != plain.test["logloss"]
    saved, other = (load_bundle(tmp_path / name / "model").model for name in ("run", "plain"))
    weights, others = saved.state_dict(), other.state_dict()
    assert any(not torch.equal(weights[name], others[name]) for name in weights)
    again = load_experiment(tmp_path / "run" / "experiment.yaml").training
    assert (again.average, again.label_smoothing) == (
        what.training.average, what.training.label_smoothing
    )  # fmt: skip
    assert run(what, tmp_path / "run", resume=True) == found


def test_text_shows_the_time_left_also_when_resumed(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow.csv.write_csv(pq.read_table(clicks).drop_columns(["tags"]), tmp_path / "clicks.csv")
    what = experiment(tmp_path / "clicks.csv", training={"epochs": 2, "checkpoint_every": 10})

    class Stopping(Observer):
        def stepped(self, step: int, samples: int) -> None:
            if step == 22:
                raise KeyboardInterrupt

    said = [io.StringIO(), io.StringIO()]
    with pytest.raises(KeyboardInterrupt):
        run_experiment(what, tmp_path / "run", observers=[PlainLines(said[0]), Stopping()])
    run_experiment(what, tmp_path / "run", resume=True, observers=[PlainLines(said[1])])
    begun, resumed = (stream.getvalue() for stream in said)
    steps = json.loads((tmp_path / "run" / "result.json").read_text())["steps"]
    assert f"training for {steps} steps\n" in begun
    assert f"training for {steps} steps, 20 of them done\n" in resumed
    for text, step in ((begun, 5), (resumed, 25)):
        assert re.search(rf"step {step}/{steps}  train .* \d+:\d\d left\n", text)


def write_changing_text(path: Path, rows: int = 600) -> None:
    """Write clicks whose columns turn out to be others than the first lines show."""
    lines = [
        f"{i % 7 if i < rows // 2 else f'u{i % 7}'},{i % 9 if i < rows - 5 else i / 4},"
        f"{i % 5 if i % 8 or i < 300 else f'0{i % 5}'},{int(i % 7 < 3)}"
        for i in range(rows)
    ]
    path.write_text("\n".join(["user,price,zip,click", *lines]))


def test_text_whose_types_change_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inferred without asking; with features, what to do is said; predictions read the same."""
    monkeypatch.setattr("torchrec.datasets.csv_reader.CHUNK_BYTES", 1000)
    write_changing_text(tmp_path / "a.csv")
    what = experiment(tmp_path / "a.csv", training={"batch_size": 64, "epochs": 2})
    result = run(what, tmp_path / "run")
    saved = load_experiment(tmp_path / "run" / "experiment.yaml")
    assert saved.data.types == {"user": "string", "price": "number", "zip": "string"}
    assert saved.features is not None
    assert run(what, tmp_path / "run", resume=True) == result  # its types are no change
    assert run(saved, tmp_path / "same").test == result.test

    assert load(tmp_path / "run").experiment.data.types == saved.data.types
    (tmp_path / "new.csv").write_text("user,price,zip\n7,3,007\n7,3,7\n")
    arguments = ["predict", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--keep-columns"]
    assert cli.main([*arguments, "-o", str(tmp_path / "new.parquet")]) == 0
    capsys.readouterr()
    got = pq.read_table(tmp_path / "new.parquet").to_pydict()
    assert (got["user"], got["price"], got["zip"]) == (["7", "7"], [3.0, 3.0], ["007", "7"])

    features = {"features": {"user": {"type": "sparse"}, "price": {"type": "dense"}}}
    declared = check_experiment({**what.model_dump(mode="json"), **features}, "x")
    with pytest.raises(ValueError, match=r"column 'user', .*set `data.types: {user: string}`"):
        run(declared, tmp_path / "declared")


@pytest.mark.parametrize(
    ("given", "type", "feature"),
    [({}, "number", "dense"), ({"share": "string"}, "string", "sparse")],
)
def test_numbers_as_people_write_them(
    tmp_path: Path, given: dict[str, str], type: str, feature: str
) -> None:
    from torchrec.training.run_data import RunData

    lines = [f"{i % 9},{i % 40} %,{i % 7 % 2}" for i in range(400)]
    (tmp_path / "a.csv").write_text("\n".join(["user,share,click", *lines]))
    data = RunData(experiment(tmp_path / "a.csv", data={"types": given}))
    assert (data.fitted.types, data.experiment.data.types) == ({"share": type}, {"share": type})
    assert data.transform.features["share"].type == feature
    table = next(iter(data.train.source.scan(["share"])))
    assert str(table.schema.field("share").type) == {"number": "double"}.get(type, type)


def test_types_are_for_columns_of_text(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only for CSV and TSV .* Received it for '.*\.parquet'"):
        run(experiment(clicks, data={"types": {"price": "number"}}), tmp_path / "run")
    write_changing_text(tmp_path / "a.csv", rows=50)
    what = experiment(tmp_path / "a.csv", data={"types": {"prize": "number"}})
    with pytest.raises(ValueError, match=r"`data.types` should .* Received 'prize'; did you mean"):
        run(what, tmp_path / "run")


def test_no_validation_and_no_test(clicks: Path, tmp_path: Path) -> None:
    none = {"split": {"valid": 0.0, "test": 0.0}}
    result = run(experiment(clicks, data=none), tmp_path / "run")
    assert (result.valid, result.test, result.train["samples"]) == (None, None, 3000)
    stopping = {"early_stopping": {"metric": "auc"}}
    with pytest.raises(ValueError, match=r"`training.early_stopping` should have validation data"):
        run(experiment(clicks, data=none, training=stopping), tmp_path / "other")
    plateau = {"schedule": {"decay": "plateau"}}
    with pytest.raises(
        ValueError, match=r"`training.schedule.decay` plateau should have validation"
    ):
        run(experiment(clicks, data=none, training=plateau), tmp_path / "other")


def test_splits_without_rows_are_left_out(tmp_path: Path) -> None:
    columns = {"user": [1, 2, 3, 4], "click": [0, 1, 0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    notes = Notes()
    split = {"split": {"valid": 1e-9, "test": 1e-9}}
    what = experiment(tmp_path / "a.parquet", data=split)
    result = run_experiment(what, tmp_path / "run", observers=[notes])
    assert (result.valid, result.test) == (None, None)
    assert "There are no rows for validation: it is left out." in notes.messages


def test_validation_on_what_is_trained_on_is_said(clicks: Path, tmp_path: Path) -> None:
    notes = Notes()
    what = experiment(clicks, data={"valid": [str(clicks)]})
    run_experiment(what, tmp_path / "run", observers=[notes])
    assert any("`data.valid` has files of `data.train`" in message for message in notes.messages)


def test_a_copy_of_what_is_trained_on_is_found(clicks: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.parquet").write_bytes(clicks.read_bytes())
    notes = Notes()
    what = experiment(clicks, data={"test": [str(tmp_path / "copy.parquet")]})
    run_experiment(what, tmp_path / "run", observers=[notes])
    assert any(
        "`data.test` has files of `data.train`, or copies" in message for message in notes.messages
    )


def test_ids_that_training_never_had_are_told(tmp_path: Path) -> None:
    columns = {"user": [i % 20 for i in range(400)], "click": [i // 3 % 2 for i in range(400)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    columns["user"] = [i % 20 + (15 if i % 4 else 0) for i in range(400)]
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    notes = Notes()
    features = {"user": {"type": "sparse", "ids": "vocabulary", "rows": 32}}
    data = {"test": [str(tmp_path / "b.parquet")], "valid": [str(tmp_path / "b.parquet")]}
    what = experiment(tmp_path / "a.parquet", data=data, features=features, training={"epochs": 2})
    run_experiment(what, tmp_path / "run", observers=[notes])
    assert sum(user >= 20 for user in columns["user"]) == 0.6 * 400
    told = [message for message in notes.messages if "come never" in message]
    assert [message.partition(" come")[0] for message in told] == [
        "60% of the ids of 'user' on valid",
        "60% of the ids of 'user' on test",
    ]


def test_a_folder_that_exists_is_refused(clicks: Path, tmp_path: Path) -> None:
    notes = Notes()
    run_experiment(experiment(clicks), tmp_path / "run", observers=[notes])
    assert notes.messages[0] == (
        "The experiment has no features: they are inferred from the data, and written to "
        f"{tmp_path / 'run' / 'experiment.yaml'}."
    )
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    told = list(notes.messages)
    with pytest.raises(ValueError, match=r"should be new. Received '.*run', which exists: go on"):
        run_experiment(experiment(clicks), tmp_path / "run", observers=[notes])
    assert notes.messages == told  # nothing is promised before it is refused
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"should be one. Received the file '.*file'"):
        run(experiment(clicks), tmp_path / "file")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    (tmp_path / "empty").mkdir()
    assert run(experiment(clicks), tmp_path / "empty").test


def test_a_folder_has_one_run_at_a_time(clicks: Path, tmp_path: Path) -> None:
    folder, what, other = tmp_path / "run", experiment(clicks), experiment(clicks)

    class Intruder(Notes):
        def stepped(self, step: int, samples: int) -> None:
            if step == 2:
                with pytest.raises(ValueError, match=r"one process at a time. Received '.*run'"):
                    run(other, folder, resume=True)

    result = run_experiment(what, folder, observers=[Intruder()])
    assert result.seconds == run(what, folder, resume=True).seconds


def test_resuming_an_ended_run_says_so(clicks: Path, tmp_path: Path) -> None:
    first = run(experiment(clicks), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    notes = Notes()
    again = run_experiment(experiment(clicks), tmp_path / "run", resume=True, observers=[notes])
    assert again == first
    assert notes.messages == [f"The run in '{tmp_path / 'run'}' has ended already: nothing to do."]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            "training",
            {"batch_size": 64},
            r"`training.batch_size` should be 128, .* Received 64: to",
        ),
        ("model", {"layers": [8]}, r"`model.layers` should be \[16\], as when .* Received \[8\]"),
        ("data", {"drop": "user == 1"}, r"`data.drop` should be null, .* Received \"user == 1\""),
        ("training", {"early_stopping": {"metric": "ne"}}, "`training.early_stopping.* should be"),
    ],
)
def test_resuming_another_experiment_names_the_key(
    section: str, changes: dict[str, Any], message: str, clicks: Path, tmp_path: Path
) -> None:
    run(experiment(clicks), tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        run(experiment(clicks, **{section: changes}), tmp_path / "run", resume=True)


def test_resuming_may_change_what_nothing_depends_on(clicks: Path, tmp_path: Path) -> None:
    first = run(experiment(clicks), tmp_path / "run")
    what = experiment(clicks, data={"workers": 1}, training={"keep_checkpoints": 5})
    assert run(what, tmp_path / "run", resume=True) == first


def test_resume_without_a_run_starts_one(clicks: Path, tmp_path: Path) -> None:
    assert run(experiment(clicks), tmp_path / "run", resume=True).test


def test_changed_data_is_refused(clicks: Path, tmp_path: Path) -> None:
    data = tmp_path / "clicks.parquet"
    data.write_bytes(clicks.read_bytes())
    what = experiment(data, training={"checkpoint_every": 4})
    _interrupt(what, tmp_path / "run")
    table = pq.read_table(clicks)
    pq.write_table(table.set_column(0, "user", pa.array(range(3000))), data, row_group_size=500)
    with pytest.raises(ValueError, match="Received another content"):
        run(what, tmp_path / "run", resume=True)


def test_vectors_are_learned_from_and_described(clicks: Path, tmp_path: Path) -> None:
    table = pq.read_table(clicks)
    vectors = [[float(price), 1.0] for price in table["price"].to_pylist()]
    pq.write_table(table.append_column("image", pa.array(vectors)), tmp_path / "data.parquet")
    what = experiment(tmp_path / "data.parquet")
    features = {"user": {"type": "sparse"}, "image": {"type": "vector", "size": 2}}
    what = check_experiment({**what.model_dump(mode="json"), "features": features}, "x")
    run(what, tmp_path / "run")
    assert "    image: numbers\n" in (tmp_path / "run" / "model" / "README.txt").read_text()


def _interrupt(what: Experiment, folder: Path, step: int = 10) -> None:
    class Stop(Notes):
        def stepped(self, now: int, samples: int) -> None:
            if now == step:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(what, folder, observers=[Stop()])


def test_managed_ids_go_on(clicks: Path, tmp_path: Path) -> None:
    """Maps that turn rows over while training: their tables, counts and history are restored."""
    what = experiment(clicks, training={"checkpoint_every": 4, "epochs": 2})
    features = {
        "user": {"type": "sparse", "ids": "managed", "rows": 60, "evict_every": 3},
        "price": {"type": "dense"},
    }
    what = check_experiment({**what.model_dump(mode="json"), "features": features}, "x")
    run(what, tmp_path / "whole")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ids = [json.loads(line)["ids"] for line in lines]
    assert sum(one["evicted"] for one in ids) > 0
    assert all(one["hits"] + one["collided"] > 0 for one in ids)
    (table,) = json.loads((tmp_path / "whole" / "report.json").read_text())["tables"]
    assert table["occupancy"] == 1.0  # the 59 rows for ids; one is that of all others
    for step in (3, 14, 22):
        folder = tmp_path / str(step)
        _interrupt(what, folder, step)
        run(what, folder, resume=True)
        assert ending(folder) == ending(tmp_path / "whole")


def _break(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("at", [1, 4, 7, 10])
def test_full_disk_at_any_write_can_be_resumed(
    at: int, clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = experiment(clicks, training={"checkpoint_every": 8})
    run(what, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _break(os.fsync, at))
        with pytest.raises(OSError, match="No space left on device") as caught:
            run(what, tmp_path / "run")
        assert "\n" not in str(caught.value)
    run(what, tmp_path / "run", resume=True)
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")


def test_damaged_checkpoint_is_named(clicks: Path, tmp_path: Path) -> None:
    what = experiment(clicks, training={"checkpoint_every": 4})
    _interrupt(what, tmp_path / "run")
    latest = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").latest()
    state = tmp_path / "run" / "checkpoints" / f"step-{latest:08d}" / "state.json"
    state.write_text(state.read_text()[:-1])
    with pytest.raises(ValueError, match=r"step-00000008.state.json' should be as it was written"):
        run(what, tmp_path / "run", resume=True)


def test_threads_are_set_while_it_runs(clicks: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    class Threads(Notes):
        def stepped(self, step: int, samples: int) -> None:
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    what = experiment(clicks, training={"threads": 1})
    run_experiment(what, tmp_path / "run", observers=[Threads()])
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_a_label_of_one_class_is_reported_not_a_crash(clicks: Path, tmp_path: Path) -> None:
    table = pq.read_table(clicks)
    only = table.filter(pa.array([not click for click in table["click"].to_pylist()]))
    pq.write_table(only, tmp_path / "test.parquet")
    result = run(
        experiment(clicks, data={"test": [str(tmp_path / "test.parquet")]}), tmp_path / "run"
    )
    assert result.test is not None
    assert (result.test["auc"], result.test["ne"]) == (None, None)
    assert math.isfinite(result.test["logloss"] or math.nan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"name": "deepfm", "batch_norm": True, "dropout": 0.1}, {}),
        ({"name": "dlrm_dcn"}, {"clip_norm": 0.5}),
    ],
    ids=["batch_norm", "clipped"],
)
def test_no_result_depends_on_the_threads_that_are_chosen(
    model: dict[str, Any],
    training: dict[str, Any],
    clicks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the clock says, and however often another number is chosen."""
    monkeypatch.setattr("torchrec.training.run_threads.usable_processors", lambda: 3)
    monkeypatch.setattr("torchrec.threads._LONG", 0.0)
    monkeypatch.setattr("torchrec.threads._PAUSE", 1)
    monkeypatch.setattr("torchrec.threads._WINDOW", 1)
    monkeypatch.setattr("torchrec.threads._COLLAPSE", 0.0)
    found = []
    for threads in (None, 1, 2, 3):
        training |= {"threads": threads, "epochs": 3}
        what = experiment(clicks, model=model, training=training)
        with using_threads(3):
            run(what, tmp_path / f"{threads}")
        found.append(ending(tmp_path / f"{threads}"))
    assert found[0] == found[1] == found[2] == found[3]


def test_the_choice_of_threads_is_told(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchrec.threads._LONG", 0.0)  # a handful of steps
    notes = Notes()
    with using_threads(2):
        result = run_experiment(
            experiment(clicks, training={"epochs": 3}), tmp_path, observers=[notes]
        )
    told = [message for message in notes.messages if "times as fast as" in message]
    if usable_processors() > 1:
        assert told or any("about as fast as" in message for message in notes.messages)
    assert result.threads in (1, 2)


@pytest.mark.parametrize(
    "training",
    [{"precision": "bf16"}, {"compile": True}, {"threads": 2}],
    ids=["bf16", "compiled", "given"],
)
def test_threads_are_not_chosen_where_results_would_tell(training: dict[str, Any]) -> None:
    section, model = TrainingSection(**training), torch.nn.Linear(4, 2)
    free = TrainingSection()
    with using_threads(2):
        assert thread_chooser(section, model, [8], print) is None
        chooser = thread_chooser(free, model, [8], print)
        assert chooser is not None
        assert chooser.most == 2
    with using_threads(1):
        assert thread_chooser(free, model, [8], print) is None


def test_threads_are_not_chosen_where_products_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    off = lambda x, weight: x @ weight.t() + 1e-6 * torch.get_num_threads()  # noqa: E731
    monkeypatch.setattr("torchrec.training.run_threads.linear", off)
    with using_threads(2):
        assert thread_chooser(TrainingSection(), torch.nn.Linear(4, 2), [8], print) is None
