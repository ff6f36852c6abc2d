"""``torchrec predict`` and ``torchrec evaluate`` on a model that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from rowwise import cli
from torchrec import heap
from torchrec.bundle import save_bundle
from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.source import TableSource
from torchrec.datasets.synthetic import ClickLog, write_click_log
from torchrec.datasets.transform import FeatureTransform, group_ids
from torchrec.datasets.transform.labels import Label
from torchrec.experiment.build import build_model
from torchrec.experiment.files import dump_experiment
from torchrec.experiment.schema import Experiment
from torchrec.inference import load
from torchrec.metrics import GroupedMetrics

pytestmark = pytest.mark.once

ROWS = 70_000  # more than one row group


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    write_click_log(ClickLog(rows=ROWS), path)
    return path


@pytest.fixture(scope="module")
def run(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has not learned anything, which is saved like any other."""
    folder = tmp_path_factory.mktemp("run")
    experiment = Experiment.model_validate(
        {
            "data": {"train": [str(log)], "label": "click", "drop": "device == 'tv'"},
            "model": {"name": "dlrm", "dim": 8, "dense_layers": [16], "layers": [16]},
            "features": {
                "price": DenseFeature(log=True),
                "user": SparseFeature(rows=1_000),
                "category": SparseFeature(ids="vocabulary"),
            },
            "metrics": ["gauc(user)", "hit@2(country)"],
        }
    )
    assert experiment.features is not None
    transform = FeatureTransform(experiment.features, "click").fit([pq.read_table(log)])
    torch.manual_seed(0)
    model = build_model(experiment.model, experiment.training, transform)
    documents = {"experiment.yaml": dump_experiment(experiment)}
    save_bundle(folder / "model", model, transform, experiment.model, documents=documents)
    return folder


def test_predictions_are_those_of_the_model(run: Path, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "predictions.parquet"
    assert cli.main(["predict", str(run), str(log), "-o", str(out)]) == 0
    table = pq.read_table(out)
    assert table.column_names == ["prediction"]
    expected = load(run).predict(pq.read_table(log))
    torch.testing.assert_close(torch.from_numpy(table["prediction"].to_numpy().copy()), expected)


def test_columns_are_kept(
    run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scored.parquet"
    arguments = ["predict", str(run), str(log), "-o", str(out), "--keep-columns", "--name", "p"]
    assert cli.main(arguments) == 0
    table = pq.read_table(out)
    assert table.column_names[-1] == "p"
    assert table.drop_columns(["p"]).cast(pq.read_schema(log)).equals(pq.read_table(log))
    assert pq.ParquetFile(out).num_row_groups > 1
    said = capsys.readouterr().out
    assert f"70,000 predictions in {out}" in said
    assert "price: 3," in said
    assert "missing" in said


def test_csv_without_a_label_gives_the_same(run: Path, log: Path, tmp_path: Path) -> None:
    table = pq.read_table(log, columns=["user", "category", "price"]).slice(0, 500)
    csv.write_csv(table, tmp_path / "new.csv")
    out = tmp_path / "predictions.parquet"
    assert cli.main(["predict", str(run), str(tmp_path / "new.csv"), "-o", str(out)]) == 0
    scores = torch.from_numpy(pq.read_table(out)["prediction"].to_numpy().copy())
    torch.testing.assert_close(scores, load(run).predict(table))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "tsv.zst"])
def test_text_has_the_same_predictions(
    run: Path, log: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read back, also by `predict` itself, it is what Parquet would be."""
    columns = ["user", "category", "price"]
    table = pq.read_table(log, columns=columns).slice(0, 500)
    table = table.append_column("a,b", pa.array(["x,\ty", None, '"', "NA", "1\n2"] * 100))
    pq.write_table(table, tmp_path / "new.parquet", row_group_size=300)
    out = tmp_path / "made" / f"scored.{suffix}"
    arguments = ["predict", str(run), str(tmp_path / "new.parquet"), "--keep-columns"]
    assert cli.main([*arguments, "-o", str(out)]) == 0
    assert "500 predictions in" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    got = pa.concat_tables(TableSource(out).scan())
    assert got.drop_columns(["prediction"]).cast(table.schema).equals(table)
    assert cli.main([*arguments, "-o", str(tmp_path / "same.parquet")]) == 0
    expected = pq.read_table(tmp_path / "same.parquet")["prediction"]
    assert got["prediction"].cast(pa.float32()).equals(expected)


def test_lists_have_no_place_in_text(
    run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(log).slice(0, 10)
    pq.write_table(table, tmp_path / "new.parquet")
    arguments = ["predict", str(run), str(tmp_path / "new.parquet"), "-o", str(tmp_path / "x.csv")]
    (tmp_path / "x.csv").write_text("was here")
    assert cli.main([*arguments, "--keep-columns"]) == 2
    assert "Received 'seen' of type list" in capsys.readouterr().err
    assert (tmp_path / "x.csv").read_text() == "was here"
    assert cli.main(arguments) == 0
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == "prediction"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.parquet", "x.csv"]


def rows_by_value(column: pa.ChunkedArray) -> list[list[int]]:
    rows: dict[object, list[int]] = {}
    for row, value in enumerate(column.to_pylist()):
        if value is not None:
            rows.setdefault(value, []).append(row)
    return list(rows.values())


@pytest.mark.slow
def test_evaluation_is_that_of_scikit_learn(
    run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(run), str(log), "--json", str(tmp_path / "r.json")]) == 0
    table = pq.read_table(log)
    table = table.filter(pa.compute.not_equal(table["device"], "tv"))
    click, scores = table["click"].to_numpy(), load(run).predict(table).double().numpy()
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["samples"] == len(table) < ROWS
    assert result["auc"] == pytest.approx(roc_auc_score(click, scores), abs=1e-4)
    assert result["logloss"] == pytest.approx(log_loss(click, scores), rel=1e-4)
    areas = [
        roc_auc_score(click[mine], scores[mine])
        for mine in rows_by_value(table["user"])
        if 0 < click[mine].sum() < len(mine) and len(set(scores[mine].tolist())) > 1
    ]
    assert result["gauc(user)"] == pytest.approx(sum(areas) / len(areas), abs=1e-5)
    assert result["groups(country)"] == len(table["country"].unique().drop_null())
    said = capsys.readouterr().out
    assert f"{result['auc']:.4f}" in said
    assert f"{result['hit@2(country)']:.4f}" in said
    assert "best possible" in said


def test_a_column_of_groups_that_is_not_there_is_named(
    run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(log).slice(0, 99).drop_columns("country")
    pq.write_table(table, tmp_path / "log.parquet")
    assert cli.main(["evaluate", str(run), str(tmp_path / "log.parquet")]) == 2
    assert (
        "`metrics` of the experiment should name columns of the data. Received 'country'"
        in capsys.readouterr().err
    )


def test_lists_of_candidates_are_measured_by_what_was_not_asked_for_in_training(
    run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(log).slice(0, 900)
    table = table.append_column("list", pa.array([row // 9 for row in range(900)]))
    pq.write_table(table, tmp_path / "lists.parquet")
    asked = ["evaluate", str(run), str(tmp_path / "lists.parquet"), "--json", str(tmp_path / "e")]
    more = ["--metrics", "ndcg@3( list )", "--metrics", "hit@1(list)", "--metrics", "gauc(user)"]
    assert cli.main([*asked, *more]) == 0
    result = json.loads((tmp_path / "e").read_text())
    kept = table.filter(pc.not_equal(pc.fill_null(table["device"], ""), "tv"))
    expected = GroupedMetrics(["ndcg@3(list)", "hit@1(list)"])
    labels = torch.from_numpy(Label("click").read(kept))
    expected.update(load(run).logits(kept), labels, groups={"list": group_ids(kept, "list")})
    numbers = expected.compute()
    assert {name: result[name] for name in numbers} == pytest.approx(dict(numbers), rel=1e-5)
    assert {"gauc(user)", "hit@2(country)"} <= result.keys()
    assert cli.main([*asked, "--metrics", "hit@1(session)"]) == 2
    assert "`--metrics` should name columns of the data. Received 'session'" in _line(capsys)
    assert cli.main([*asked, "--metrics", "ndcg(list)"]) == 2
    assert "as ndcg@10(user). Received 'ndcg(list)'" in _line(capsys)


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_no_best_possible_beside_several_files(
    run: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(run), str(log), f"{log.parent}/*.parquet"]) == 0
    assert cli.main(["evaluate", str(run), str(log.parent)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda t: t.drop_columns(["user"]), "user"),
        (lambda t: t.set_column(1, "user", pa.array(["a"] * len(t))), "user"),
    ],
    ids=["column-missing", "column-of-other-type"],
)
def test_other_data_are_refused(
    run: Path,
    log: Path,
    tmp_path: Path,
    make: object,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = pq.read_table(log).slice(0, 100)
    pq.write_table(make(table), tmp_path / "odd.parquet")  # type: ignore[operator]
    out = tmp_path / "predictions.parquet"
    out.write_text("was here")
    assert cli.main(["predict", str(run), str(tmp_path / "odd.parquet"), "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert line in error
    assert out.read_text() == "was here"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "odd.parquet",
        "predictions.parquet",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-o", "{log}"], "should not be a file of the data"),
        (["-o", "{tmp}/x.parquet", "--keep-columns", "--name", "user"], "no column 'user' yet"),
    ],
)
def test_outputs_that_would_destroy_something_are_refused(
    run: Path,
    log: Path,
    tmp_path: Path,
    arguments: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [one.format(log=log, tmp=tmp_path) for one in arguments]
    assert cli.main(["predict", str(run), str(log), *filled]) == 2
    assert line in capsys.readouterr().err
    assert pq.read_metadata(log).num_rows == ROWS


def test_labels_of_one_kind_have_no_auc(
    run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(log)
    pq.write_table(table.filter(pa.compute.equal(table["click"], 0)), tmp_path / "no.parquet")
    assert cli.main(["evaluate", str(run), str(tmp_path / "no.parquet")]) == 0
    assert "auc is not defined: all labels are 0" in capsys.readouterr().out


TEXT_ROWS = [(k % 3 // 2, k * k % 11, k / 7) for k in range(300)]


def text(path: str, rows: list[tuple[object, ...]], header: str = "") -> None:
    lines = [header] if header else []
    Path(path).write_text(
        "".join(f"{line}\n" for line in [*lines, *("\t".join(map(str, row)) for row in rows)])
    )


@pytest.fixture
def headerless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was trained on files without a header, whose names tell no format."""
    monkeypatch.chdir(tmp_path)
    text("part-0", TEXT_ROWS)
    columns = ["--columns", "click,user,price", "--label", "click"]
    assert cli.main(["init", "part-0", "--format", "tsv", *columns, "--valid", "part-0"]) == 0
    assert cli.main(["train", "experiment.yaml", "-o", "run", "training.epochs=1"]) == 0


@pytest.mark.usefixtures("headerless")
def test_files_without_a_header_may_lack_the_label() -> None:
    text("part-1", [row[1:] for row in TEXT_ROWS])
    Path("folder").mkdir()
    text("folder/part-1.tsv", [row[1:] for row in TEXT_ROWS])
    predictions = []
    for data in ("part-0", "part-1", "folder", "folder/part-1.tsv"):
        assert cli.main(["predict", "run", data, "-o", "p.csv"]) == 0
        predictions.append(Path("p.csv").read_text())
    assert predictions[0].count("\n") == 301
    assert predictions == predictions[:1] * 4
    assert cli.main(["predict", "run", "part-1", "-o", "p.csv", "--keep-columns"]) == 0
    assert Path("p.csv").read_text().startswith("user,price,prediction\n0,0,")


@pytest.mark.usefixtures("headerless")
def test_files_without_a_header_of_other_widths(capsys: pytest.CaptureFixture[str]) -> None:
    text("part-1", [row[1:] for row in TEXT_ROWS])
    text("part-2", [row[2:] for row in TEXT_ROWS])
    assert cli.main(["predict", "run", "part-2", "-o", "p.csv"]) == 2
    assert "Expected 3 columns, got 1" in capsys.readouterr().err
    assert cli.main(["predict", "run", "part-1", "part-0", "-o", "p.csv"]) == 2
    assert "Expected 2 columns, got 3" in capsys.readouterr().err
    assert cli.main(["evaluate", "run", "part-1"]) == 2
    assert "Expected 3 columns, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("keep", [[], ["--keep-columns"]], ids=["alone", "kept"])
@pytest.mark.parametrize("output", ["p.csv", "p.parquet"])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_partition_without_rows(
    run: Path, log: Path, tmp_path: Path, form: str, output: str, keep: list[str]
) -> None:
    columns = ["user", "price", "category"]
    empty = pq.read_table(log, columns=columns).slice(0, 0)
    data, out = tmp_path / f"empty.{form}", tmp_path / output
    if form == "csv":
        csv.write_csv(empty, data)
    else:
        pq.write_table(empty, data)
    assert cli.main(["predict", str(run), str(data), "-o", str(out), *keep]) == 0
    read = pq.read_table(out) if output == "p.parquet" else csv.read_csv(out)
    assert read.column_names == [*(columns if keep else []), "prediction"]
    assert read.num_rows == 0


def test_no_rows_to_learn_from_or_to_measure(
    run: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "empty.parquet")
    pq.write_table(pq.read_table(log).slice(0, 0), data)
    for command in (["evaluate", str(run), data], ["init", data, "--label", "click"]):
        assert cli.main(command) == 2
        assert "should hold rows. Received none." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "calls"), [("predict", 1), ("evaluate", 1), (None, 0)], ids=str
)
def test_commands_keep_freed_memory_and_loading_leaves_it_to_the_program(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str | None,
    calls: int,
) -> None:
    made: list[None] = []
    monkeypatch.setattr(heap, "keep_freed_memory", lambda: made.append(None))
    write_click_log(ClickLog(rows=200), tmp_path / "new.parquet")
    if command is None:
        load(run).predict(pq.read_table(tmp_path / "new.parquet"))
    else:
        output = ["-o", str(tmp_path / "p.csv")] if command == "predict" else []
        assert cli.main([command, str(run), str(tmp_path / "new.parquet"), *output]) == 0
    assert len(made) == calls
