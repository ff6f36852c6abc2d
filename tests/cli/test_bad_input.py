"""Bad input through the real commands: one line and exit code 2, or a policy that is told; nothing lost."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from rowwise import cli
from torchrec.files import json_with_checksum, parse_json

pytestmark = pytest.mark.once

N = 400
FEATURES: dict[str, dict[str, Any]] = {
    "user": {"type": "sparse", "rows": 50},
    "price": {"type": "dense"},
    "shop": {"type": "sparse", "ids": "vocabulary"},
}
CSV = b"user,price,shop,click\n" + b"".join(
    b"%d,%d.5,s%d,%d\n" % (i % 9, i, i % 4, i % 3 // 2) for i in range(300)
)


def clicks(rows: int = N, **columns: object) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "user": rng.integers(0, 30, rows),
            "price": rng.normal(size=rows),
            "shop": [f"s{i % 7}" for i in range(rows)],
            "click": (rng.random(rows) < 0.4).astype(np.int64),
            **columns,
        }
    )


def strings(rows: int, of: bytes) -> pa.Array:
    """Strings of these bytes, whatever they are."""
    ends = np.arange(rows + 1, dtype=np.int32) * len(of)
    return pa.Array.from_buffers(
        pa.string(), rows, [None, pa.py_buffer(ends), pa.py_buffer(of * rows)]
    )


def column(name: str, values: object) -> Callable[[Path], None]:
    """Write clicks with another column."""
    return lambda path: pq.write_table(clicks(**{name: values}), path)


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None  # type: ignore[func-returns-value]


def parquet(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Write Parquet whose bytes are changed."""

    def write(path: Path) -> None:
        pq.write_table(clicks(), path)
        path.write_bytes(change(path.read_bytes()))

    return write


class Outcome(NamedTuple):
    code: int
    out: str
    error: str


class Desk:
    """A folder to work in, and the commands."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._capsys.readouterr()
        code = cli.main([str(one) for one in arguments])
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def refuses(self, *arguments: object) -> str:
        """Run a command that has to fail in one line, and leave every file as it was."""
        before = files()
        code, _, error = self(*arguments)
        assert code == 2, error
        assert error.startswith("torchrec: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        assert files() == before
        return error

    def experiment(self, features: object = FEATURES, **data: object) -> str:
        """Write an experiment about ``bad.parquet``; return its name."""
        sections: dict[str, object] = {
            "data": {"train": "bad.parquet", "label": "click", "workers": 1, **data},
            "model": {"dim": 4, "layers": [8], "dense_layers": [4]},
            "training": {"batch_size": 128},
            "features": features,
        }
        Path("bad.yaml").write_text(json.dumps(sections))
        return "bad.yaml"


def files() -> dict[str, bytes | None]:
    """Every file and folder here, with its content."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of good data."""
    folder = tmp_path_factory.mktemp("good")
    pq.write_table(clicks(), folder / "clicks.parquet")
    values = {
        "data": {"train": "clicks.parquet", "label": "click"},
        "model": {"dim": 4, "layers": [8], "dense_layers": [4]},
        "training": {"batch_size": 128},
        "features": FEATURES,
    }
    (folder / "good.yaml").write_text(json.dumps(values))
    assert cli.main(["train", str(folder / "good.yaml"), "-o", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(trained: Path, desk: Desk) -> Desk:
    """A desk with a copy of that run."""
    shutil.copytree(trained / "run", "run")
    shutil.copy(trained / "clicks.parquet", "clicks.parquet")
    text = (trained / "good.yaml").read_text()
    Path("good.yaml").write_text(text.replace("clicks.parquet", str(trained / "clicks.parquet")))
    return desk


# Data files.

FILES: dict[str, tuple[str, Callable[[Path], None] | None, str]] = {
    "missing": ("bad.parquet", None, "bad.parquet' should exist"),
    "empty": ("bad.parquet", content(b""), "should hold samples. Received an empty file"),
    "no-rows": ("bad.parquet", lambda p: pq.write_table(clicks(0), p), "should hold rows"),
    "truncated": ("bad.parquet", parquet(lambda b: b[: len(b) // 2]), "should be complete"),
    "hole": ("bad.parquet", parquet(lambda b: b[:500] + b[700:]), "should be whole and readable"),
    "no-parquet": ("bad.parquet", content(CSV), "should be a Parquet file"),
    "utf8-parquet": ("bad.parquet", column("shop", strings(N, b"\xff\xfe")), "'shop' in"),
    "doubled-parquet": (
        "bad.parquet",
        lambda p: pq.write_table(clicks().append_column("shop", pa.array(range(N))), p),
        "should have one column 'shop'. Received 2",
    ),
    "csv-empty": ("bad.csv", content(b""), "should hold samples. Received an empty file"),
    "csv-header-only": ("bad.csv", content(CSV.split(b"\n")[0] + b"\n"), "Received a header only"),
    "csv-line-ends": ("bad.csv", content(CSV.replace(b"\n", b"\r")), "Received lines that end in a carriage return."),
    "csv-parquet": ("bad.csv", parquet(lambda b: b), "header of"),
    "csv-short-line": ("bad.csv", content(CSV + b"1,2\n3,4.0,s,1\n"), "Expected 4 columns, got 2"),
    "csv-long-line": ("bad.csv", content(CSV + b"1,2,3,1,9\n"), "Expected 4 columns, got 5"),
    "csv-doubled": ("bad.csv", content(CSV.replace(b"shop", b"user")), "one column 'user'"),
    "csv-old-line-ends": ("bad.csv", content(CSV.replace(b"\n", b"\r")), "line feed"),
    "gz-truncated": ("bad.csv.gz", content(gzip.compress(CSV)[:-9]), "should be whole"),
    "gz-none": ("bad.csv.gz", content(CSV), "should be whole and readable"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write", "line"), FILES.values(), ids=FILES)
def test_files(desk: Desk, name: str, write: Callable[[Path], None] | None, line: str) -> None:
    if write is not None:
        write(Path(name))
    experiment = desk.experiment(train=name)
    assert line in desk.refuses("train", experiment, "-o", "run")
    assert line in desk.refuses("init", name, "--label", "click", "-o", "new.yaml")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (CSV + "1,2.0,Käse,1\n".encode("latin-1"), "line 302, should fit"),
        (b"\xff" + CSV, "header of"),
    ],
    ids=["value", "header"],
)
def test_text_that_is_no_utf8_is_found_out_by_init_alone(
    desk: Desk, data: bytes, line: str
) -> None:
    Path("bad.csv").write_bytes(data)
    error = desk.refuses("train", desk.experiment(train="bad.csv"), "-o", "run")
    assert line in error
    assert "set `data.encoding: cp1252` (`--encoding` of `torchrec init`)" in error
    code, out, _ = desk("init", "bad.csv", "--label", "click", "-o", "new.yaml")
    assert code == 0
    assert "'bad.csv' is no UTF-8, and read as cp1252 (`data.encoding`)" in " ".join(out.split())
    assert "  encoding: cp1252\n" in Path("new.yaml").read_text()


def test_lines_with_other_than_so_many_values_are_skipped_where_asked(desk: Desk) -> None:
    Path("bad.csv").write_bytes(CSV + b"1,2\n3,4.0,s,1\n")
    assert "set `data.bad_lines: skip` (`--bad-lines` of `torchrec init`)" in desk.refuses(
        "train", desk.experiment(train="bad.csv"), "-o", "run"
    )
    code, out, error = desk(
        "init", "bad.csv", "--label", "click", "--bad-lines", "skip", "-o", "new.yaml"
    )
    assert code == 0, error
    assert "more or fewer fields than there are columns: 1, skipped" in " ".join(out.split())
    code, out, error = desk("train", "new.yaml", "-o", "run", "training.epochs=1")
    assert code == 0, error
    assert "columns: 1, skipped" in " ".join((out + error).split())
    code, out, error = desk("predict", "run", "bad.csv", "-o", "p.csv")
    assert code == 0, error
    assert len(Path("p.csv").read_text().splitlines()) == 1 + CSV.count(b"\n")
    assert "columns: 1, skipped" in " ".join((out + error).split())


def test_a_column_that_changes_type(desk: Desk) -> None:
    pq.write_table(clicks(), "a.parquet")
    pq.write_table(clicks(user=[f"u{i}" for i in range(N)]), "b.parquet")
    line = "Column 'user' should have one type; it is int64 in"
    both = desk.experiment(train=["a.parquet", "b.parquet"])
    assert line in desk.refuses("train", both, "-o", "run")
    other = desk.experiment(train="a.parquet", valid="b.parquet")
    assert line in desk.refuses("train", other, "-o", "run")
    Path("c.csv").write_bytes(CSV.replace(b"\n1,", b"\nu,"))
    Path("a.csv").write_bytes(CSV)
    error = desk.refuses("train", desk.experiment(train=["a.csv", "c.csv"]), "-o", "run")
    assert "c.csv', line 3, column 'user', should hold integers" in error
    assert "set `data.types: {user: string}`" in error


COLUMNS: dict[str, tuple[str, object, dict[str, object], str]] = {
    "label-counts": ("click", np.arange(N) % 4, {}, "such as `click > "),
    "label-1-2": ("click", np.arange(N) % 2 + 1, {}, "Received 2; an expression such as `click > 1`"),
    "label-text": ("click", ["yes", "no"] * 200, {}, "('yes', 'no'); an expression such as `click == 'yes'`"),
    "label-null": ("click", [0, None] * 200, {}, "set `data.drop: click is None` ("),
    "label-nan": ("click", [0.0, np.nan] * 200, {}, "set `data.drop: click is None` ("),
    "label-infinite": ("click", [0.0, np.inf] * 200, {}, "infinite ones among"),
    "label-no-such": ("x", [1] * N, {"label": "clik"}, "did you mean `click`?"),
    "label-constant": ("x", [1] * N, {"label": "1"}, "The label should read a column"),
    "label-odd-name": ("my-x", [1] * N, {"label": "my-x"}, "backticks, as in `my-x`"),
    "label-as-feature": ("x", [1] * N, {"label": "price > 0"}, "told the answer"),
    "drop-all": ("x", [1] * N, {"drop": "x == 1"}, "`data.drop` 'x == 1' and `data.split` leave no"),
    "drop-no-truth": ("x", [1] * N, {"drop": "price"}, "should be true or false. Received double"),
    "drop-no-such": ("x", [1] * N, {"drop": "prise > 0"}, "did you mean 'price'?"),
    "null-dense": ("price", pa.nulls(N, pa.float64()), {}, "leave the feature out"),
    "null-ids": ("shop", pa.nulls(N), {}, "leave the feature out"),
    "text-for-dense": ("price", ["cheap"] * N, {}, "should hold numbers, as a dense feature does"),
    "lists-for-sparse": ("user", [[1]] * N, {}, "there are multi_hot and sequence features"),
    "fractions-for-ids": ("user", [1.5] * N, {}, "a measured number is a dense feature"),
    "time-of-text": ("x", ["a"] * N, {"split": {"by": "time", "column": "x"}}, "Received string"),
    "time-missing": ("x", [0.0, np.nan] * 200, {"split": {"by": "time", "column": "x"}}, "Received 200"),
    "one-time": ("x", [1] * N, {"split": {"by": "time", "column": "x"}}, "leave no row"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "values", "data", "line"), COLUMNS.values(), ids=COLUMNS)
def test_columns(desk: Desk, name: str, values: object, data: dict[str, object], line: str) -> None:
    column(name, values)(Path("bad.parquet"))
    assert line in desk.refuses("train", desk.experiment(**data), "-o", "run")


def test_a_label_that_is_not_there(desk: Desk) -> None:
    pq.write_table(clicks().drop_columns(["click"]), "bad.parquet")
    line = "Received 'click'. Columns: user, price, shop."
    assert line in desk.refuses("train", desk.experiment(), "-o", "run")
    line = f"`label` should read columns of the data. {line}"
    assert line in desk.refuses("init", "bad.parquet", "--label", "click")


@pytest.mark.parametrize("missing", [None, np.nan])
def test_rows_without_a_label_can_be_left_out(desk: Desk, missing: float | None) -> None:
    column("click", [0.0, 1.0, missing, 1.0] * (N // 4))(Path("bad.parquet"))
    code, _, error = desk("train", desk.experiment(drop="click is None"), "-o", "run")
    assert (code, error) == (0, "")
    parts = json.loads(Path("run/result.json").read_text())
    assert sum(parts[part]["samples"] for part in ("train", "valid", "test")) == N * 3 // 4


@pytest.mark.parametrize(
    ("user", "rows", "line"),
    [
        (np.arange(N), 100, "should be in [0, 100), the rows of table 'user'. Received"),
        (-np.arange(N) - 1, None, "should be in [0, 1), the rows of table 'user'. Received -"),
        (np.arange(N) * 10**15, None, "should be small, as `ids: plain` makes a row for each"),
    ],
    ids=["beyond", "negative", "enormous"],
)
def test_plain_ids(desk: Desk, user: object, rows: int | None, line: str) -> None:
    column("user", user)(Path("bad.parquet"))
    experiment = desk.experiment({"user": {"type": "sparse", "ids": "plain", "rows": rows}})
    assert line in desk.refuses("train", experiment, "-o", "run")


# What is not refused is counted, and told.


def test_odd_values_are_counted(desk: Desk) -> None:
    price = np.where(np.arange(N) % 5 == 0, np.nan, np.where(np.arange(N) % 7 == 0, np.inf, 1.5))
    users = [f"user {i}" for i in range(N)]
    pq.write_table(clicks(price=price, user=users, shop=users), "bad.parquet")
    features = {**FEATURES, "shop": {"type": "sparse", "ids": "vocabulary", "rows": 10}}
    code, out, error = desk("train", desk.experiment(features), "-o", "run")
    assert (code, error) == (0, "")
    trained_line = next(line for line in out.splitlines() if " train " in line)
    for what in ("missing", "infinite", "hashed", "unknown"):
        assert f"{what} " in trained_line
    code, out, _ = desk("predict", "run", "bad.parquet")
    assert code == 0
    assert "price: 80 missing, 46 infinite" in " ".join(out.split("\n"))
    assert "shop: 390 unknown" in out
    assert "table user: 400 hashed" in out


@pytest.mark.slow
def test_a_million_strings_in_a_thousand_rows(desk: Desk) -> None:
    rows = 1_000_000
    ids = pa.array(np.arange(rows)).cast(pa.string())
    click = pa.array(np.arange(rows) % 2)
    pq.write_table(pa.table({"user": ids, "click": click}), "bad.parquet")
    experiment = desk.experiment({"user": {"type": "sparse", "rows": 1000}})
    code, out, error = desk("train", experiment, "-o", "run", "training.batch_size=16384")
    assert (code, error) == (0, "")
    found = json.loads(Path("run/report.json").read_text())["tables"][0]
    assert (found["rows"], found["out_of_range"]) == (1000, 0)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    hashed = {
        split: sum(line["ids"]["hashed"] for line in lines if line["split"] == split)
        for split in ("train", "valid", "test")
    }
    assert (
        found["hashed"]
        == hashed["train"]
        == json.loads(Path("run/result.json").read_text())["samples"]
    )
    assert sum(hashed.values()) == rows
    assert "hashed" in out


@pytest.mark.parametrize("value", [0, 1])
def test_labels_of_one_kind(desk: Desk, value: int) -> None:
    column("click", np.full(N, value))(Path("bad.parquet"))
    assert f"should have labels 0 and 1 to learn from. Received only {value}:" in desk.refuses(
        "train", desk.experiment(), "-o", "run"
    )
    code, out, _ = desk("init", "bad.parquet", "--label", "click")
    assert code == 0
    assert f"All labels are {value}: there is nothing to learn." in out


def test_early_stopping_without_what_it_goes_by(desk: Desk) -> None:
    pq.write_table(clicks(), "bad.parquet")
    column("click", np.zeros(N, int))(Path("valid.parquet"))
    experiment = desk.experiment(valid="valid.parquet")
    stopping = "training.early_stopping={{metric: {}}}"
    error = desk.refuses("train", experiment, "-o", "run", stopping.format("auc"))
    assert "as auc needs both. Received only 0: give other `data.valid`" in error
    assert desk("train", experiment, "-o", "run", stopping.format("logloss")).code == 0
    pq.write_table(clicks(5), "bad.parquet")
    error = desk.refuses("train", desk.experiment(), "-o", "few", stopping.format("auc"))
    assert "Received no rows: `data.split` leaves none" in error


def test_a_split_by_time_of_few_times_is_told(desk: Desk) -> None:
    column("day", np.arange(N) // (N // 2))(Path("bad.parquet"))
    experiment = desk.experiment(split={"by": "time", "column": "day"})
    code, out, _ = desk("train", experiment, "-o", "run")
    assert code == 0
    assert "`data.split` gives 50% for `test`, 50% for training." in " ".join(out.split())


@pytest.mark.parametrize("rows", [2, 5])
def test_few_rows(desk: Desk, rows: int) -> None:
    pq.write_table(clicks(rows), "bad.parquet")
    code, out, error = desk("train", desk.experiment(), "-o", "run", "training.batch_size=9999")
    assert (code, error) == (0, "")
    assert "There are no rows for validation: it is left out." in out
    assert desk("predict", "run", "bad.parquet").out.endswith(
        f"{rows} predictions in predictions.parquet\n"
    )
    assert desk("report", "run").code == 0


def test_lists_of_a_hundred_thousand(desk: Desk) -> None:
    column("user", [list(range(100_000))] + [[]] * (N - 1))(Path("bad.parquet"))
    features = {"user": {"type": "sequence", "rows": 50}}
    experiment = desk.experiment(features, split={"valid": 0, "test": 0})
    code, out, error = desk("train", experiment, "-o", "run")
    assert (code, error) == (0, "")
    assert "truncated 99,950" in out


def test_text_files_of_other_systems(desk: Desk) -> None:
    Path("bad.csv").write_bytes(CSV)
    assert desk("train", desk.experiment(train="bad.csv"), "-o", "one").code == 0
    Path("bad.csv").write_bytes(b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n"))
    assert desk("train", desk.experiment(train="bad.csv"), "-o", "other").code == 0
    same_weights("one", "other")


@pytest.mark.parametrize("name", ["a b", "a.b", 'it\'s "a"', "ü✓", "a\nb", "null", "3", "x" * 3000])
def test_names_of_columns(desk: Desk, name: str) -> None:
    pq.write_table(clicks().rename_columns(["user", "price", name, "click"]), "bad.parquet")
    assert desk("init", "bad.parquet", "--label", "click", "-o", "new.yaml").code == 0
    code, out, error = desk("train", "new.yaml", "-o", "run", "training.epochs=1")
    assert (code, error) == (0, ""), out
    assert desk("predict", "run", "bad.parquet", "--keep-columns").code == 0
    assert pq.read_schema("predictions.parquet").names == ["user", "price", name, "click", "prediction"]  # fmt: skip
    pq.write_table(clicks().rename_columns(["user", "price", "shop", name]), "bad.parquet")
    code, _, error = desk("init", "bad.parquet", "--label", f"`{name}`", "-o", "label.yaml")
    assert (code, error) == (0, "")
    assert desk("train", "label.yaml", "-o", "other", "training.epochs=1").code == 0


# Experiment files.

START = "data: {train: bad.parquet, label: click}\n"
EXPERIMENTS = {
    "empty": (
        "",
        "should hold sections (data, tasks, features, model, training, distributed, continue_from, metrics, "
        "output, tune). Received nothing",
    ),
    "list": ("- a\n", "Received a list"),
    "syntax": ("data: {train: a\nmodel: [", "bad.yaml, line 2: expected"),
    "tab": ("data:\n\ttrain: a\n", "line 2: indent with spaces"),
    "twice": (START + "data: {}\n", "line 2: `data` stands there twice"),
    "code": ("data: !!python/object/apply:os.system ['true']", "plain data is all that is read"),
    "not-utf8": ("\udcff", "bad.yaml should be UTF-8 text"),
    "section": (START + "trainin: {}\n", "did you mean `training`?"),
    "key": (START + "training: {epoch: 3}\n", "did you mean `epochs`?"),
    "type": (START + "training: {epochs: three}\n", "a whole number above 0. Received 'three'"),
    "infinite": (START + "training: {learning_rate: .inf}\n", "a number above 0. Received inf"),
    "seed": (START + "training: {seed: 99999999999999999999}\n", "`training.seed` should be"),
    "threads": (START + "training: {threads: 1000000}\n", "at most 1,024"),
    "output": (START + "output: ''\n", "`output` should not be empty"),
    "no-label": ("data: {train: bad.parquet}\n", "`data.label` should be given"),
    "column": (START + "features: {usr: {type: sparse}}\n", "did you mean `user`?"),
    "feature": (START + "features: {user: {type: sprase}}\n", "did you mean `sparse`?"),
    "dot": (START + "features: {a.b: {type: sparse}}\n", "with `column: a.b`"),
    "policy": (START + "features: {user: {type: sparse, out_of_range: clamp}}\n", "unless `ids` is plain"),
    "separator": (START + "features: {user: {type: multi_hot, separator: ''}}\n", "should not be empty"),
    "memory": (START + "features: {user: {type: sparse, rows: 1000000000000}}\n", "not enough memory"),
    "overflow": (START + "features: {user: {type: sparse, rows: 1000000000000000000}}\n", "not enough memory"),
    "more-than-64-bits": (START + "features: {user: {type: sparse, rows: 1e30}}\n", "not enough memory"),
    "stopping": (
        START[:-2] + ", split: {valid: 0}}\ntraining: {early_stopping: {metric: auc}}\n",
        "should have validation data to go by",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line"), EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_experiment_files(desk: Desk, text: str, line: str) -> None:
    pq.write_table(clicks(), "bad.parquet")
    Path("bad.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert line in desk.refuses("train", "bad.yaml", "-o", "run")


# Folders of runs, bundles, outputs.


def test_a_folder_that_exists(run: Desk) -> None:
    assert "go on with its run with --resume" in run.refuses("train", "good.yaml", "-o", "run")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert "which exists" in run.refuses("train", "good.yaml", "-o", "mine")
    assert "holds something else" in run.refuses("train", "good.yaml", "-o", "mine", "--resume")
    assert "Received the file" in run.refuses("train", "good.yaml", "-o", "good.yaml")
    assert "Not a directory" in run.refuses("train", "good.yaml", "-o", "good.yaml/run")
    changed = run.refuses("train", "good.yaml", "-o", "run", "--resume", "training.epochs=7")
    assert "`training.epochs` should be 1, as when the run in 'run' began" in changed


def test_a_run_that_is_over_is_left_alone(run: Desk) -> None:
    os.remove("run/report.html")  # which is written anew
    before = files()
    assert "has ended already" in run("train", "good.yaml", "-o", "run", "--resume").out
    os.remove("run/report.html")
    assert files() == before


def test_a_run_without_a_checkpoint_learns_anew_from_data_that_changed(run: Desk) -> None:
    pq.write_table(clicks(), "bad.parquet")
    assert run("train", run.experiment(), "-o", "killed").code == 0
    shutil.rmtree("killed/model")
    os.remove("killed/result.json")
    for path in Path("killed/checkpoints").glob("step-*"):
        shutil.rmtree(path)
    column("price", np.arange(N) * 100.0)(Path("bad.parquet"))
    assert run("train", "bad.yaml", "-o", "killed", "--resume").code == 0
    assert run("train", "bad.yaml", "-o", "fresh").code == 0
    same_weights("killed", "fresh")
    one, other = (Path(name, "model/transform/transform.json") for name in ("killed", "fresh"))
    assert one.read_bytes() == other.read_bytes()


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"cut": data[:middle], "empty": b"", "flipped": flipped}.get(how, data))
    if how == "missing":
        path.unlink()


BUNDLE = ["bundle.json", "experiment.yaml", "weights.safetensors",
          "transform/transform.json", "transform/transform.arrow"]  # fmt: skip


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "missing"])
@pytest.mark.parametrize("name", BUNDLE)
def test_a_damaged_bundle(run: Desk, name: str, how: str) -> None:
    damaged(Path("run/model", name), how)
    for command in ("predict", "evaluate"):
        assert "'run/model'" in run.refuses(command, "run", "clicks.parquet")


def test_a_bundle_that_is_newer_or_not_there(run: Desk) -> None:
    path = Path("run/model/bundle.json")
    path.write_text(json_with_checksum({**parse_json(path.read_text()), "format": 9}))
    assert "Received format 9" in run.refuses("predict", "run", "clicks.parquet")
    shutil.rmtree("run/model")
    assert "`torchrec train --resume`" in run.refuses("predict", "run", "clicks.parquet")
    assert "which does not exist" in run.refuses("predict", "no-run", "clicks.parquet")
    assert "which has none" in run.refuses("predict", ".", "clicks.parquet")


def test_outputs(run: Desk) -> None:
    Path("folder.parquet").mkdir()
    Path("folder.csv").mkdir()
    for output, line in {
        "x.xlsx": "should end in '.parquet', '.csv' or '.tsv', the last two also with '.gz'",
        "x.parquet.gz": "should end in '.parquet'",
        "folder.csv": "'folder.csv': Is a directory",
        "clicks.parquet/x.csv": "'clicks.parquet/x.csv': ",
        "folder.parquet": "'folder.parquet': Is a directory",
        "clicks.parquet": "should not be a file of the data",
        "clicks.parquet/x.parquet": "'clicks.parquet/x.parquet': ",
        "x" * 300 + ".parquet": "File name too long",
    }.items():
        assert line in run.refuses("predict", "run", "clicks.parquet", "-o", output)
    os.symlink("clicks.parquet", "link.parquet")
    assert "file of the data" in run.refuses(
        "predict", "run", "clicks.parquet", "-o", "link.parquet"
    )
    os.symlink("loop.parquet", "loop.parquet")
    assert run("predict", "run", "clicks.parquet", "-o", "loop.parquet").code == 0
    for _ in range(2):  # one that exists is replaced
        assert run("predict", "run", "clicks.parquet", "-o", "new/p.parquet").code == 0
    assert [path.name for path in Path("new").iterdir()] == ["p.parquet"]
    for output in ("folder.parquet", "clicks.parquet/x"):
        assert output in run.refuses("evaluate", "run", "clicks.parquet", "--json", output)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_written_to(run: Desk) -> None:
    Path("locked").mkdir(mode=0o555)
    error = run.refuses("predict", "run", "clicks.parquet", "-o", "locked/p.parquet")
    assert "'locked/p.parquet': Permission denied" in error


PREDICTED: dict[str, tuple[Callable[[pa.Table], pa.Table], str, str]] = {
    "renamed": (
        lambda t: t.rename_columns(["usr", "price", "shop", "click"]),
        "Column 'user' of feature 'user' should be in the table",
        "The nearest is 'usr'",
    ),
    "other-ids": (
        lambda t: t.set_column(0, "user", pa.array(["ann"] * N)),
        "should hold integers, as in training. Received string",
        "'user'",
    ),
    "other-text": (
        lambda t: t.set_column(2, "shop", pa.array(range(N))),
        "should hold strings, as in training. Received int64",
        "'shop'",
    ),
}


@pytest.mark.parametrize(("change", "line", "too"), PREDICTED.values(), ids=PREDICTED)
def test_data_to_predict(
    run: Desk, change: Callable[[pa.Table], pa.Table], line: str, too: str
) -> None:
    pq.write_table(change(clicks()), "bad.parquet")
    Path("predictions.parquet").write_text("was here")
    for command in ("predict", "evaluate"):
        error = run.refuses(command, "run", "bad.parquet")
        assert line in error
        assert too in error


def test_data_without_labels_to_evaluate(run: Desk) -> None:
    pq.write_table(clicks().drop_columns(["click"]), "bad.parquet")
    error = run.refuses("evaluate", "run", "bad.parquet")
    assert "`data.label` 'click' of the experiment" in error
    assert "without 'click'; `torchrec predict` needs none." in error
    pq.write_table(clicks().rename_columns(["user", "price", "shop", "Click"]), "bad.parquet")
    assert "did you mean 'Click'?" in run.refuses("evaluate", "run", "bad.parquet")


def test_a_column_of_predictions_without_a_name(run: Desk) -> None:
    assert "`--name` should be" in run.refuses("predict", "run", "clicks.parquet", "--name", "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind are of Unix")
def test_a_full_disk(run: Desk) -> None:
    pq.write_table(clicks(20_000), "many.parquet")
    Path("predictions.parquet").write_text("was here")
    for name, limit, *arguments in (
        ("predictions.parquet", 16, "predict", "run", "many.parquet"),
        ("new.yaml", 0, "init", "clicks.parquet", "--label", "click", "-o", "new.yaml"),
        ("run/report.html", 1, "report", "run"),
    ):
        before = files()
        script = f"ulimit -f {limit}; trap '' XFSZ; exec \"$@\""
        command = [sys.executable, "-m", "torchrec", *map(str, arguments)]
        root = str(Path(cli.__file__).parents[2])
        done = subprocess.run(
            ["bash", "-c", script, "bash", *command],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert (done.returncode, done.stderr) == (2, f"torchrec: '{name}': File too large.\n")
        assert files() == before


# The same data, however it comes, give the same model.


def same_weights(one: str, other: str) -> None:
    weights = [Path(run, "model/weights.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]


VARIANTS: dict[str, Callable[[pa.Table], tuple[pa.Table, str]]] = {
    "again": lambda t: (t, "bad.parquet"),
    "other-column-order": lambda t: (t.select(["click", "shop", "user", "price"]), "bad.parquet"),
    "further-columns": lambda t: (t.append_column("x", pa.array(range(N))), "bad.parquet"),
    "int32": lambda t: (t.set_column(0, "user", t["user"].cast(pa.int32())), "bad.parquet"),
    "uint8": lambda t: (t.set_column(0, "user", t["user"].cast(pa.uint8())), "bad.parquet"),
    "dictionary": lambda t: (
        t.set_column(2, "shop", t["shop"].dictionary_encode()),
        "bad.parquet",
    ),
    "large-string": lambda t: (
        t.set_column(2, "shop", t["shop"].cast(pa.large_string())),
        "bad.parquet",
    ),
    "label-bool": lambda t: (t.set_column(3, "click", t["click"].cast(pa.bool_())), "bad.parquet"),
    "csv": lambda t: (t, "bad.csv"),
    "tsv-gz": lambda t: (t, "bad.tsv.gz"),
}


def write(table: pa.Table, name: str) -> None:
    if name.endswith(".parquet"):
        pq.write_table(table, name)
    else:
        delimiter = "\t" if ".tsv" in name else ","
        with pa.output_stream(name) as file:
            pc.write_csv(table, file, pc.WriteOptions(delimiter=delimiter))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_same_data_give_the_same_weights(
    trained: Path, desk: Desk, variant: Callable[[pa.Table], tuple[pa.Table, str]]
) -> None:
    table, name = variant(clicks())
    name = name.replace("bad", "clicks")  # a split goes by the name of the file
    write(table, name)
    assert desk("train", desk.experiment(train=name), "-o", "run").code == 0
    same_weights(str(trained / "run"), "run")


def test_other_workers_give_the_same_weights(trained: Path, desk: Desk) -> None:
    pq.write_table(clicks(), "clicks.parquet", row_group_size=N)
    experiment = desk.experiment(train="clicks.parquet", workers=4)
    assert desk("train", experiment, "-o", "run").code == 0
    same_weights(str(trained / "run"), "run")


def test_predictions_are_in_the_order_of_the_rows_however_they_are_stored(run: Desk) -> None:
    def scores(*paths: str) -> np.ndarray[Any, Any]:
        assert run("predict", "run", *paths).code == 0
        return pq.read_table("predictions.parquet")["prediction"].to_numpy()

    expected = scores("clicks.parquet")
    table = clicks()
    pq.write_table(table, "small-groups.parquet", row_group_size=7)
    np.testing.assert_allclose(scores("small-groups.parquet"), expected, rtol=1e-6)
    write(table, "same.csv")
    np.testing.assert_allclose(scores("same.csv"), expected, rtol=1e-6)
    for part in range(4):
        pq.write_table(table.slice(100 * part, 100), f"part{part}.parquet")
    np.testing.assert_allclose(scores("part?.parquet"), expected, rtol=1e-6)
    backwards = scores("part3.parquet", "part2.parquet", "part1.parquet", "part0.parquet")
    np.testing.assert_allclose(backwards.reshape(4, 100)[::-1].reshape(-1), expected, rtol=1e-6)
    turned = table.take(np.arange(N)[::-1])
    pq.write_table(turned, "turned.parquet")
    np.testing.assert_allclose(scores("turned.parquet")[::-1], expected, rtol=1e-6)


def test_ids_that_look_like_numbers_in_text_stay_what_they_were(desk: Desk) -> None:
    codes = [f"{i % 30:05d}" for i in range(N)]
    tags = [f"{i % 3}" if i < N // 2 else f"{i % 3}|7" for i in range(N)]
    table = clicks(user=codes, shop=tags)
    features = {
        "user": {"type": "sparse", "ids": "vocabulary"},
        "shop": {"type": "multi_hot", "separator": "|"},
    }
    write(table, "bad.parquet")
    assert desk("train", desk.experiment(features), "-o", "run").code == 0
    assert desk("predict", "run", "bad.parquet", "-o", "one.parquet").code == 0
    # All that a reader sees of these looks like numbers.
    write(table.slice(0, N // 2), "part.csv")
    text = Path("part.csv").read_text().replace('"', "")
    Path("part.csv").write_text(text)
    assert text.splitlines()[1].startswith("00000,")
    for command in ("predict", "evaluate"):
        code, out, error = desk(command, "run", "part.csv")
        assert (code, error) == (0, "")
        assert "unknown" not in out
    scores = pq.read_table("predictions.parquet")["prediction"]
    np.testing.assert_allclose(
        scores.to_numpy(),
        pq.read_table("one.parquet")["prediction"].to_numpy()[: N // 2],
        rtol=1e-6,
    )
    # And in training: a separator says that the column is text.
    data = {"train": "part.csv", "valid": "bad.csv", "split": {"valid": 0, "test": 0}}
    write(table, "bad.csv")
    only = {"shop": features["shop"]}
    assert desk("train", desk.experiment(only, **data), "-o", "other").code == 0


def test_times_of_all_units_and_zones_are_the_same_numbers(desk: Desk) -> None:
    seconds = pa.array(np.arange(N) * 3600 + 1_600_000_000)
    weights = set()
    for type in (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "Europe/Berlin")):
        at = (
            seconds.cast(pa.timestamp("s"))
            .cast(pa.timestamp(type.unit))
            .cast(pa.int64())
            .cast(type)
        )
        pq.write_table(clicks(price=at), "bad.parquet")
        shutil.rmtree("run", ignore_errors=True)
        assert desk("train", desk.experiment(), "-o", "run").code == 0
        weights.add(Path("run/model/weights.safetensors").read_bytes())
    assert len(weights) == 1
