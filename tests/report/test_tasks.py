"""Several tasks of all kinds, one with a condition, with weights and groups: each has what a single one has."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray

from rowwise import cli
from tests.training.test_several_tasks import described
from torchrec.experiment.files import check_experiment
from torchrec.experiment.tasks import KINDS, TaskSection
from torchrec.inference import load
from torchrec.report import compare_runs, write_comparison, write_report
from torchrec.report.card import View
from torchrec.report.cards import draw
from torchrec.report.importance import permutation_importance
from torchrec.report.kinds import DISPLAYS
from torchrec.report.kinds.classes import expected
from torchrec.report.kinds.display import groups_of, mean_interval
from torchrec.report.predictions import Predictions, load_trained, predict_part
from torchrec.report.task_predictions import TaskPredictions
from torchrec.runs import RunFolder, numbers_of, read_run
from torchrec.training.run import run_experiment

pytestmark = pytest.mark.once

Floats = NDArray[np.float64]

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

TASKS = {
    "click": {"label": "click", "metrics": ["gauc(user)", "ndcg@3(user)"]},
    "buy": {"label": "buy", "given": "click", "metrics": []},
    "watch": {"label": "seconds / 10", "kind": "regression", "metrics": ["ndcg@5(user)"]},
    "stars": {"label": "stars - 1", "kind": "ordinal", "classes": 3},
    "shelf": {"label": "stars - 1", "kind": "multiclass", "classes": 3},
}
ONE = {"only": {"label": "click", "metrics": ["gauc(user)"]}}
SMALL = {"tiny": {"label": "seconds / 10000", "kind": "regression"}}


def write_log(path: Path, rows: int, seed: int = 0) -> None:
    """Write clicks, purchases after them, seconds and stars, none of which is sure."""
    random = np.random.default_rng(seed)
    x, noise = random.normal(size=rows), random.normal(size=rows)
    click = random.random(rows) < 1 / (1 + np.exp(-2 * x))
    columns = {
        "user": random.zipf(1.2, rows).clip(max=150),
        "item": [f"i{one}" for one in random.integers(0, 3, rows)],
        "x": x,
        "click": click.astype(np.int64),
        "buy": (click & (random.random(rows) < 1 / (1 + np.exp(-x)))).astype(np.int64),
        "seconds": np.maximum(0, 10 * x + 5 * noise),
        "stars": np.clip(np.round(2 + x + noise / 2), 1, 3).astype(np.int64),
        "w": random.random(rows) + 0.5,
    }
    pq.write_table(pa.table(columns), path)


def _train(folder: Path, name: str, tasks: object = TASKS, **training: object) -> RunFolder:
    values = described(folder, tasks=tasks)
    values["data"] |= {"test": str(folder / "test.parquet")}
    values["features"]["user"]["rows"] = 200
    values["training"] |= {"epochs": 1, **training}
    if len(tasks) == 1:  # type: ignore[arg-type]
        values["model"] = {"name": "lr"}
    run_experiment(check_experiment(values, name), folder / name, observers=[])
    return RunFolder(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("several")
    write_log(found / "log.parquet", rows=600)
    write_log(found / "test.parquet", rows=500, seed=1)
    return found


@pytest.fixture(scope="module")
def run(folder: Path) -> RunFolder:
    return _train(folder, "first")


@pytest.fixture(scope="module")
def predictions(run: RunFolder) -> Predictions:
    return predict_part(load_trained(run))


def _by_name(predictions: Predictions) -> dict[str, TaskPredictions]:
    return {one.name: one for one in predictions.tasks}


def test_each_task_is_predicted_where_it_counts(run: RunFolder, predictions: Predictions) -> None:
    found, table = _by_name(predictions), predictions.table
    assert list(found) == list(TASKS)
    of_predictor = load(run.path).predict_tasks(table)
    clicked = np.flatnonzero(table["click"].to_numpy())
    for name, one in found.items():
        rows = clicked if name == "buy" else np.arange(500)
        np.testing.assert_array_equal(one.rows, rows)
        np.testing.assert_allclose(one.weight, table["w"].to_numpy()[rows], rtol=1e-6)
        scores = 1 / (1 + np.exp(-one.scores)) if one.kind == "click" else one.scores
        np.testing.assert_allclose(scores, of_predictor[name].numpy()[rows], atol=1e-6)
    np.testing.assert_array_equal(found["buy"].labels, table["buy"].to_numpy()[clicked])
    assert f"Task 'buy' counts where 'click' is 1: {len(clicked)} rows." in predictions.sentence()


def test_all_metrics_are_those_of_the_run_with_intervals(
    run: RunFolder, predictions: Predictions
) -> None:
    test = numbers_of(run.read_result().test)
    for one in predictions.tasks:
        intervals = one.intervals()
        assert set(intervals) == {*KINDS[one.kind].estimators, *one.group_metrics}
        for name, interval in intervals.items():
            assert interval.value == pytest.approx(test[f"{one.prefix}{name}"], rel=1e-6)
            assert interval.low < interval.value < interval.high, f"{one.prefix}{name}"


def test_metrics_within_groups_need_all_their_rows(run: RunFolder) -> None:
    some = predict_part(load_trained(run), most=300)
    assert "gauc(user), ndcg@3(user), ndcg@5(user)" in some.missing()
    assert "with 250 of the 500 rows" in some.missing()
    assert not some.is_whole
    cards = draw(View(read_run(run.path), predictions=some), "result")
    assert [card.title for card in cards] == [f"Result of {name}" for name in TASKS]
    assert all("test, 95 % of 250 rows" in card.body for card in cards)
    assert set(_by_name(some)["click"].report) == {"ne", "auc", "logloss", "calibration"}
    assert predict_part(load_trained(run)).missing() == ""


def test_importance_is_of_what_each_task_is_judged_by(predictions: Predictions) -> None:
    found = {one.task.name: one for one in permutation_importance(predictions, repeats=2).tasks}
    assert {name: one.metrics[0] for name, one in found.items()} == {
        "click": "auc",
        "buy": "auc",
        "watch": "mse",
        "stars": "accuracy",
        "shelf": "accuracy",
    }
    for one in found.values():
        by_column = {column.name: column.lost[one.metrics[0]] for column in one.columns}
        assert by_column["x"].value == max(lost.value for lost in by_column.values())
    # Against the same shuffle, made plainly: what is lost is positive where more is wrong.
    lost = found["watch"].columns[0].lost["mse"]
    random, table = np.random.default_rng(0), predictions.table
    task, errors = _by_name(predictions)["watch"], []
    for _ in range(2):
        shuffled = table["user"].take(random.permutation(500))
        other = table.set_column(table.schema.get_field_index("user"), "user", shuffled)
        scores = predictions.trained.scores(other)["watch"]
        errors.append((scores - task.labels) ** 2 - (task.scores - task.labels) ** 2)
    added = np.average(np.mean(errors, axis=0), weights=task.weight)
    assert lost.value == pytest.approx(added, abs=1e-7)


@pytest.mark.slow
def test_the_page_has_each_task_as_its_kind_is_shown(run: RunFolder, tmp_path: Path) -> None:
    text = write_report(run.path, tmp_path / "page.html").read_text("utf-8")
    titles = re.findall("<h3>(.*?)</h3>", text)
    of_all = ["Result", "Importance", "Metrics by feature value", "Seen and unseen ids"]
    of_clicks = ["ROC", "Precision and recall", "Gain", "Calibration", "Scores"]
    for kinds, parts in (
        ("click buy watch stars shelf", of_all),
        ("click buy", [*of_clicks, "Calibration by slice"]),
        ("watch stars", ["Predicted and observed", "Residuals", "Bias by slice"]),
        ("stars shelf", ["Classes", "By class"]),
        ("shelf", ["Confidence", "Accuracy by slice"]),
    ):
        for part in parts:
            found = [title for title in titles if title.rpartition(" of ")[0] == part]
            assert found == [f"{part} of {name}" for name in kinds.split()]
    assert "What needs predictions" not in text
    for tile in ("AUC of click", "Squared error of watch", "Accuracy of shelf"):
        assert f'<p class="tile-name">{tile}</p>' in text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_all_cards_within_its_width(
    run: RunFolder, tmp_path: Path, width: int, scheme: str
) -> None:
    page = write_report(run.path, tmp_path / "page.html")
    text = page.read_text("utf-8")
    measure = """<script>
      const wide = [...document.querySelectorAll(".card, .tile, h3")].map(
        (one) => one.getBoundingClientRect().right);
      const ink = getComputedStyle(document.body).color;
      document.title = JSON.stringify([Math.max(...wide), innerWidth, document.body.scrollWidth, ink]);
    </script></body>"""
    page.write_text(text.replace("</body>", measure), "utf-8")
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},1000",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--dump-dom",
        f"file://{page}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    right, inner, scrolled, ink = json.loads(title[1])
    assert inner == width
    assert 0 < right <= width
    assert scrolled <= width
    red = int(re.findall(r"\d+", ink)[0])
    assert (red > 128) == (scheme == "dark")
    # Cards of one task stand together, under its name.
    found = re.findall(r'<h3 class="task">(.*?)</h3>|<h3>ROC of (.*?)</h3>', text)
    names = [name or f"ROC {of}" for name, of in found]
    assert names == ["click", "ROC click", "buy", "ROC buy", "watch", "stars", "shelf", *TASKS]


def _task(kind: str, labels: list[float], scores: object, **more: object) -> TaskPredictions:
    classes = 3 if kind in ("ordinal", "multiclass") else None
    section = TaskSection.model_validate({"label": "y", "kind": kind, "classes": classes})
    found = TaskPredictions(
        "", section, np.arange(len(labels)), np.array(labels), np.array(scores, np.float64)
    )
    return replace(found, **more)


def test_groups_of_prediction_are_of_equal_weight() -> None:
    random = np.random.default_rng(0)
    predicted, weights = random.normal(size=1_000), random.random(1_000) + 0.1
    groups = groups_of(predicted, weights)
    assert len(groups) == 20
    np.testing.assert_array_equal(np.concatenate(groups), predicted.argsort())
    shares = [weights[group].sum() / weights.sum() for group in groups]
    np.testing.assert_allclose(shares, 0.05, atol=0.003)
    assert [len(group) for group in groups_of(predicted[:3], weights[:3])] == [1, 1, 1]


def test_a_weighted_mean_has_the_interval_of_one() -> None:
    values = np.random.default_rng(1).normal(size=400)
    plain = mean_interval(values, np.ones(400))
    assert plain.high - plain.value == pytest.approx(1.959964 * values.std() / 20)
    few = mean_interval(values, np.r_[np.ones(100), np.full(300, 1e-9)])
    assert few.value == pytest.approx(values[:100].mean())
    assert few.high - few.value == pytest.approx(1.959964 * values[:100].std() / 10, rel=1e-5)


def test_slices_are_told_by_the_numbers_of_their_kind() -> None:
    number = _task("regression", [1.0, 3.0], [2.0, 3.0], weights=np.array([3.0, 1.0]))
    cells = dict(
        zip(DISPLAYS["regression"].head, DISPLAYS["regression"].cells(number), strict=True)
    )
    assert (cells["observed"], cells["predicted"]) == ("1.5", "2.25")
    assert cells["MSE"].startswith("0.7500 [")
    shares = [[0.1, 0.2, 0.7], [0.5, 0.5, 0.0], [0.2, 0.6, 0.2]]
    classes = _task("ordinal", [2.0, 1.0, 1.0], shares)
    np.testing.assert_allclose(expected(classes), [1.6, 0.5, 1.0])
    cells = dict(zip(DISPLAYS["ordinal"].head, DISPLAYS["ordinal"].cells(classes), strict=True))
    assert (cells["observed"], cells["predicted"]) == ("1.3333", "1.0333")
    assert cells["accuracy"].startswith("0.6667 [")


@pytest.mark.parametrize("kind", list(DISPLAYS))
def test_a_task_without_rows_has_nothing_to_show(kind: str) -> None:
    scores = np.empty((0, 3)) if kind in ("ordinal", "multiclass") else np.empty(0)
    assert DISPLAYS[kind].draw(_task(kind, [], scores)) == []  # type: ignore[index]


@pytest.mark.slow
def test_runs_of_several_tasks_are_compared_in_each(
    run: RunFolder, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = _train(folder, "better", epochs=4)
    found = compare_runs([run.path, better.path])
    assert [task.name for task in found.tasks] == list(TASKS)
    one, two = (_by_name(predict_part(load_trained(each))) for each in (run, better))
    for task in found.tasks:
        mine, theirs = one[task.name], two[task.name]
        for metric, (difference,) in task.differences.items():
            assert difference is not None
            gap = difference.difference
            assert gap.value == theirs.report[metric] - mine.report[metric]
            assert gap.low < gap.value < gap.high
            alone = task.metrics[metric]
            assert [each and each.value for each in alone] == [
                mine.report[metric],
                theirs.report[metric],
            ]
    (mse,) = found.tasks[2].differences["mse"]
    assert mse is not None
    mine, theirs = one["watch"], two["watch"]
    errors = [(each.scores - each.labels) ** 2 for each in (mine, theirs)]
    assert mse.difference.value == pytest.approx(
        np.average(errors[1] - errors[0], weights=mine.weight), rel=1e-5
    )
    said = [verdict.sentence for verdict in found.verdicts]
    assert [text.partition(":")[0] for text in said] == list(TASKS)
    assert said[2].startswith("watch: better is better than first by ")
    assert " MSE [" in said[2]
    assert "; its MAE is lower by " in said[2]
    assert "The p-values are adjusted for the number of runs and tasks (Holm)." in found.notes
    text = write_comparison(found, tmp_path / "page.html").read_text("utf-8")
    for title in ("ROC of buy", "MSE of watch", "Predicted and observed of stars", "Differences"):
        assert f"<h3>{title}</h3>" in text
    assert cli.main(["compare", str(run.path), str(better.path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"watch ndcg@5\(user\) +\+?-?0\.\d{4} \[[-+]0\.\d{4}, [-+]0\.\d{4}\]", printed)


@pytest.mark.slow
def test_a_task_whose_condition_never_holds_is_not_told_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "log.parquet", tmp_path)
    table = pq.read_table(folder / "test.parquet")
    place = table.schema.get_field_index("click")
    nobody = table.set_column(place, "click", pa.array(np.zeros(500, np.int64)))
    pq.write_table(nobody, tmp_path / "test.parquet")
    runs = [_train(tmp_path, name, epochs=n).path for name, n in (("first", 1), ("second", 2))]
    page = write_report(runs[0]).read_text("utf-8")
    titles = re.findall("<h3>(.*?)</h3>", page)
    for part in ("Result", "ROC", "Importance", "Metrics by feature value"):
        assert f"{part} of buy" not in titles
    assert {"Result of click", "Importance of click", "Residuals of watch"} <= set(titles)
    other = tmp_path / "compare.html"
    assert cli.main(["compare", *map(str, runs), "--html", str(other)]) == 0
    told = capsys.readouterr().out
    assert "buy: There is nothing to compare second with first by." in told
    assert "click: The log loss of second is " in told
    assert "nan" not in re.sub(r"[0-9a-f]{16,}", "", told).lower()
    for text in (page, other.read_text("utf-8")):
        assert not re.search(r"\bnan\b", text, re.I)


@pytest.mark.slow
def test_a_task_is_the_same_by_what_it_predicts_not_by_its_name(
    run: RunFolder, folder: Path
) -> None:
    """A model of one label beside a model of several: what one task gains by the others."""
    only = _train(folder, "only", ONE)
    found = compare_runs([only.path, run.path])
    assert [task.name for task in found.tasks] == list(TASKS)
    click, buy, *_ = found.tasks
    assert click.predicted[0] is not None
    assert click.differences["gauc(user)"][0] is not None
    assert (buy.metrics["auc"][0], buy.differences["auc"]) == (None, [None])
    assert [verdict.task for verdict in found.verdicts] == ["click"]


@pytest.mark.slow
def test_runs_without_a_task_in_common_are_refused(run: RunFolder, folder: Path) -> None:
    other = _train(folder, "other", {"watch": {"label": "seconds", "kind": "regression"}})
    with pytest.raises(
        ValueError, match=r"the same label\. Received `click`, .*\(first\), `seconds` \(other\)"
    ):
        compare_runs([run.path, other.path])


NUMBER = r"\d+\.\d{4,}"
INTERVAL = rf"{NUMBER} \[{NUMBER}, {NUMBER}\]"


def _rows(text: str) -> dict[str, list[str]]:
    """Return the cells of a printed table, which stand two spaces or more apart, by the first."""
    cells = (re.split(r" {2,}", line.strip()) for line in text.splitlines())
    return {first: rest for first, *rest in cells if rest}


def _result(page: str, task: str) -> dict[str, dict[str, str]]:
    """Return the card of results of a page: by row and column."""
    (card,) = re.findall(rf"<h3>Result{f' of {task}' if task else ''}</h3>.*?</table>", page, re.S)
    head = re.findall('<th scope="col">(.*?)</th>', card)[1:]
    rows = re.findall('<tr><th scope="row">(.*?)</th>(.*?)</tr>', card)
    return {
        html.unescape(name): dict(zip(head, re.findall("<td>(.*?)</td>", cells), strict=True))
        for name, cells in rows
    }


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [TASKS, ONE, SMALL], ids=["several", "one", "small"])
def test_everything_that_shows_a_run_shows_the_same_digits(
    tasks: dict[str, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "log.parquet", rows=600)
    write_log(tmp_path / "test.parquet", rows=400, seed=1)
    values = described(tmp_path, tasks=tasks)
    values["data"]["test"] = str(tmp_path / "test.parquet")
    values["features"]["user"]["rows"] = 200
    values["training"] |= {"epochs": 1}
    if len(tasks) == 1:
        values["model"] = {"name": "lr"}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(values))
    first, copy = tmp_path / "first", tmp_path / "copy"
    assert cli.main(["train", str(tmp_path / "first.yaml"), "-o", str(first)]) == 0
    trained = capsys.readouterr().out
    shutil.copytree(first, copy)
    assert cli.main(["evaluate", str(first), str(tmp_path / "test.parquet")]) == 0
    evaluated = _rows(capsys.readouterr().out)
    assert cli.main(["compare", str(first), str(copy)]) == 0
    compared = capsys.readouterr().out
    of_metrics, _, of_differences = compared.partition("above first")
    page = (first / "report.html").read_text("utf-8")
    test = numbers_of(RunFolder(first).read_result().test)
    seen = 0
    for task in tasks if len(tasks) > 1 else [""]:
        card = _result(page, task)
        prefix = f"{task} " if task else ""
        for title, value in card["test"].items():
            name = _long(f"{prefix}{title}")
            with_ends = card["test, 95 %"][title]
            assert re.fullmatch(INTERVAL, with_ends)
            assert with_ends.partition(" ")[0] == value
            assert _rows(of_metrics)[name] == [with_ends, with_ends]
            has_interval = "(" in title  # of a weighted AUC a stream keeps none
            assert evaluated[name][0] == (with_ends if has_interval else value)
            nothing = re.sub(r"\d", "0", f"+{value} [+{value}, +{value}]")
            assert _rows(of_differences)[name] == [nothing]
            decimals = len(value.partition(".")[2])
            assert value in {f"{one:.{decimals}f}" for one in test.values()}
            assert len(value.replace(".", "").lstrip("0")) >= 3
            seen += 1
    heads, last = (re.split(r" {2,}", x.strip()) for x in _summary(trained))
    shown = dict(zip(heads, last[1:], strict=True))
    shown.pop("rows")
    assert len(shown) >= 2
    for name, value in shown.items():
        assert evaluated[_long(name)][0].partition(" ")[0] == value
    assert seen == len([name for name in test if _is_metric(name)])


def _long(title: str) -> str:
    return re.sub(r"\bNE$", "normalised entropy", title)


def _summary(printed: str) -> tuple[str, str]:
    """Return the head of the table that ends a training, and its row of the test data."""
    lines = [line for line in printed.splitlines() if line.strip()]
    (row,) = (line for line in lines if re.match(r"test  ", line.strip()))
    return next(line for line in lines if re.match(r" +rows  ", line)), row


def _is_metric(name: str) -> bool:
    return not re.search(r"samples$|weight$|positives$|groups\(", name)
