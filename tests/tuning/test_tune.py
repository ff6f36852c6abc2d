"""The search for options: validation data alone, the same wherever it was stopped, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import torchrec.tuning.search as search_file
from rowwise import cli
from torchrec.experiment.files import load_experiment
from torchrec.experiment.schema import Experiment
from torchrec.training.run import run_experiment
from torchrec.tuning import (
    Choice,
    Range,
    Tuning,
    TuningOptions,
    default_space,
    parse_space,
    read_tuning,
    tune,
)

pytestmark = pytest.mark.once

SPACE = {
    "training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
    "model.dropout": {"low": 0.0, "high": 0.4, "step": 0.2},
    "model.dim": [2, 4],
}


def write_rows(path: Path, rows: int = 600, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    user, item, x = (
        random.integers(0, 9, rows),
        random.integers(0, 7, rows),
        random.normal(size=rows),
    )
    chance = 1 / (1 + np.exp(-(np.sin(user) + np.cos(item) + x)))
    click = (random.random(rows) < chance).astype(int)
    table = pa.table({"at": range(rows), "user": user, "item": item, "x": x, "click": click})
    pq.write_table(table, path)
    return table


def experiment(folder: Path, text: str = "", data: str = "") -> Experiment:
    write_rows(folder / "clicks.parquet")
    path = folder / "clicks.yaml"
    path.write_text(
        f"data: {{train: clicks.parquet, label: click{data}}}\n"
        "features: {user: {type: sparse, rows: 20}, item: {type: sparse, rows: 20}, x: {type: dense}}\n"
        "model: {name: deepfm, dim: 4, layers: [8]}\n"
        f"training: {{epochs: 2, batch_size: 100, learning_rate: 0.01}}\n{text}"
    )
    return load_experiment(path)


def search(what: Experiment, folder: Path, trials: int = 5, **options: object) -> Tuning:
    space = parse_space(SPACE, what, "clicks.yaml")
    resume = bool(options.pop("resume", False))
    given = TuningOptions(trials=trials, **options)  # type: ignore[arg-type]
    return tune(what, folder, given, space=space, resume=resume, say=lambda line: None)


def outcomes(found: Tuning) -> list[object]:
    return [(t.number, t.state, dict(t.values), t.value, list(t.curve)) for t in found.trials]


def test_train_gives_the_numbers_of_the_best_trial(tmp_path: Path) -> None:
    found = search(experiment(tmp_path), tmp_path / "search")
    best = found.best
    assert best is not None
    assert best.value == max(t.value for t in found.trials if t.state == "complete")
    assert found.trials[0].values == {}
    result = run_experiment(load_experiment(found.experiment), tmp_path / "run", observers=[])
    assert result.valid is not None
    assert result.valid["auc"] == best.value


def test_the_first_trial_is_the_experiment_as_it_is(tmp_path: Path) -> None:
    what = experiment(tmp_path)
    found = search(what, tmp_path / "search", trials=1)
    result = run_experiment(what, tmp_path / "run", observers=[])
    assert result.valid is not None
    assert found.trials[0].value == result.valid["auc"]


def test_a_search_says_once_which_ids_training_never_had(tmp_path: Path) -> None:
    write_rows(tmp_path / "clicks.parquet")
    later = write_rows(tmp_path / "later.parquet")
    pq.write_table(later.set_column(1, "user", pa.array(range(600))), tmp_path / "later.parquet")
    path = tmp_path / "clicks.yaml"
    path.write_text(
        "data: {train: clicks.parquet, valid: later.parquet, label: click}\n"
        "features: {user: {type: sparse, ids: vocabulary}, item: {type: sparse, ids: vocabulary}}\n"
        "model: {name: deepfm, dim: 4, layers: [8]}\n"
        "training: {epochs: 2, batch_size: 100}\n"
    )
    what, said = load_experiment(path), []
    space = parse_space({"model.dim": [2, 4]}, what, "clicks.yaml")
    tune(what, tmp_path / "search", TuningOptions(trials=2), space=space, say=said.append)
    told = [line.partition(" come")[0] for line in said if "come never" in line]
    assert told == ["98% of the ids of 'user' on valid"]


def test_files_of_the_test_are_not_opened(tmp_path: Path) -> None:
    what = experiment(tmp_path, data=", test: absent.parquet")
    assert len(search(what, tmp_path / "search", trials=2).trials) == 2


def test_rows_of_the_test_are_not_read(tmp_path: Path) -> None:
    """Their labels are no labels, so that whoever read one would fail."""
    split = ", split: {by: time, column: at, valid: 0.2, test: 0.2}"
    what = experiment(tmp_path, data=split)
    table = write_rows(tmp_path / "clicks.parquet")
    labels = table["click"].to_numpy().copy()
    labels[-120:] = 7
    pq.write_table(table.set_column(4, "click", pa.array(labels)), tmp_path / "clicks.parquet")
    found = search(what, tmp_path / "search", trials=2)
    with pytest.raises(ValueError, match="should hold 0 and 1"):
        run_experiment(load_experiment(found.experiment), tmp_path / "run", observers=[])


def test_equal_seeds_give_equal_searches(tmp_path: Path) -> None:
    what = experiment(tmp_path)
    one, two = search(what, tmp_path / "a"), search(what, tmp_path / "b")
    assert outcomes(one) == outcomes(two)
    assert outcomes(search(what, tmp_path / "c", seed=1))[1:] != outcomes(one)[1:]


@pytest.mark.parametrize("after", [1, 3])
def test_a_search_that_was_killed_goes_on_as_it_would_have(tmp_path: Path, after: int) -> None:
    what = experiment(tmp_path)
    whole = search(what, tmp_path / "a", trials=8)
    search(what, tmp_path / "b", trials=after)
    with open(tmp_path / "b" / "trials.jsonl", "a") as file:
        file.write('{"number": 2, "state"')  # half a line
    assert outcomes(search(what, tmp_path / "b", trials=8, resume=True)) == outcomes(whole)


def test_interrupted_in_the_midst_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, stepped = experiment(tmp_path), search_file._Watch.stepped
    calls = 0

    def interrupt(self: search_file._Watch, step: int, samples: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        stepped(self, step, samples)

    monkeypatch.setattr(search_file._Watch, "stepped", interrupt)
    with pytest.raises(KeyboardInterrupt):
        search(what, tmp_path / "a")
    monkeypatch.undo()
    left = read_tuning(tmp_path / "a")
    assert left is not None
    assert len(left.trials) == 1
    assert left.experiment.is_file()
    assert outcomes(search(what, tmp_path / "a", resume=True)) == outcomes(
        search(what, tmp_path / "b")
    )


def test_timeout_keeps_what_is_over(tmp_path: Path) -> None:
    found = search(experiment(tmp_path), tmp_path / "a", trials=1000, timeout=1.5)
    assert len(found.trials) < 1000


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_hopeless_trials_are_given_up(tmp_path: Path, pruner: str) -> None:
    what = experiment(tmp_path)
    what.training.epochs = 4
    states = [t.state for t in search(what, tmp_path / pruner, trials=12, pruner=pruner).trials]
    assert "pruned" in states
    assert states[0] == "complete"
    never = search(what, tmp_path / "none", trials=12, pruner="none")
    assert {t.state for t in never.trials} == {"complete"}


def test_a_trial_that_fails_is_one_of_them(tmp_path: Path) -> None:
    what = experiment(tmp_path)
    space = {"training.learning_rate": Choice((0.01, 1e30))}
    found = tune(what, tmp_path / "a", TuningOptions(trials=6), space=space, say=lambda line: None)
    failed = [t for t in found.trials if t.state == "failed"]
    assert failed
    assert all(t.values["training.learning_rate"] == 1e30 for t in failed)
    assert all(t.reason for t in failed)


def test_metrics(tmp_path: Path) -> None:
    what = experiment(tmp_path)
    trial = search(what, tmp_path / "a", trials=1, metric=["auc", "logloss"]).trials[0]
    assert trial.value == pytest.approx(trial.metrics["auc"] - trial.metrics["logloss"])
    trial = search(what, tmp_path / "b", trials=1, metric="logloss").trials[0]
    assert trial.value == -trial.metrics["logloss"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"`tune` should vary one key or more"),
        (
            {"training.learning_rat": [0.1]},
            r"Received `training\.learning_rat`.*`training\.learning_rate`",
        ),
        ({"data.workers": [1, 2]}, r"keys of `model` and `training`\. Received `data\.workers`"),
        ({"training.seeds": [1, 2]}, r"metrics of a trial depend on\. Received `training\.seeds`"),
        ({"training.threads": [1, 2]}, r"Received `training\.threads`, on which none does"),
        ({"model.dim": [0, 8]}, r"`model\.dim` should be a whole number above 0\. Received 0"),
        ({"model.dim": [8, 8]}, r"one value or more, each once"),
        ({"model.dim": 8}, r"a list of values, or a section with `low` and `high`"),
        ({"model.dropout": {"low": 0, "hihg": 0.5}}, r"Received `hihg`.*`high`"),
        (
            {"model.dropout": {"low": 0.1}},
            r"`model\.dropout\.high` should be a number\. Received none",
        ),
        ({"model.dropout": {"low": 0.5, "high": 0.1}}, r"`model\.dropout\.low` should be below"),
        (
            {"model.dropout": {"low": 0, "high": 0.1, "log": True}},
            r"should be above 0, as the scale is log",
        ),
        (
            {"model.dropout": {"low": 0.1, "high": 0.2, "log": 1}},
            r"`model\.dropout\.log` should be true or",
        ),
        (
            {"model.dropout": {"low": 0.1, "high": 0.2, "step": 1}},
            r"`model\.dropout\.step` should be above 0",
        ),
        (
            {"model.dropout": {"low": 0, "high": 3}},
            r"`model\.dropout` should be a number.* Received 3",
        ),
    ],
)
def test_spaces_that_are_none(tmp_path: Path, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space(given, experiment(tmp_path), "clicks.yaml")


def test_ranges_of_integers_are_those_of_keys_that_take_no_others(tmp_path: Path) -> None:
    given = {"training.epochs": {"low": 1, "high": 4}, "model.dropout": {"low": 0, "high": 0.5}}
    space = parse_space(given, experiment(tmp_path), "clicks.yaml")
    assert space["training.epochs"] == Range(1, 4, whole=True)
    assert space["model.dropout"] == Range(0, 0.5)


@pytest.mark.parametrize("model", ["deepfm", "dlrm", "dlrm_dcn", "fm", "lr"])
def test_default_spaces_hold_the_experiment_and_what_the_model_takes(
    tmp_path: Path, model: str
) -> None:
    what = experiment(tmp_path)
    values = what.model_dump(mode="json") | {"model": {"name": model}}
    what = Experiment.model_validate(values)
    space = default_space(what)
    parse_space(
        {
            k: list(d.values) if isinstance(d, Choice) else {"low": d.low, "high": d.high}
            for k, d in space.items()
        },
        what,
        "clicks.yaml",
    )
    learning_rate = space["training.learning_rate"]
    assert isinstance(learning_rate, Range)
    assert learning_rate.low <= 0.01 <= learning_rate.high
    assert ("model.dropout" in space) == (model not in ("fm", "lr"))
    assert ("model.dim" in space) == (model != "lr")  # which takes any, and has weights alone


def test_an_experiment_may_hold_its_space(tmp_path: Path) -> None:
    what = experiment(tmp_path, "tune: {model.dim: [2, 4]}\n")
    assert what.tune == {"model.dim": [2, 4]}
    assert "tune" not in what.model_dump()


def test_other_searches_are_refused(tmp_path: Path) -> None:
    what = experiment(tmp_path)
    search(what, tmp_path / "a", trials=1)
    with pytest.raises(ValueError, match=r"should be new\. Received .* --resume"):
        search(what, tmp_path / "a")
    with pytest.raises(ValueError, match=r"`seed` should be 0, as when the search .* Received 3"):
        search(what, tmp_path / "a", resume=True, seed=3)
    what.training.epochs = 3
    with pytest.raises(ValueError, match=r"`training\.epochs` should be 2, as when"):
        search(what, tmp_path / "a", resume=True)
    with pytest.raises(ValueError, match=r"--resume should be given for the folder of a search"):
        search(what, tmp_path / "other", resume=True)


def test_validation_data_are_needed(tmp_path: Path) -> None:
    what = experiment(tmp_path, data=", split: {valid: 0.0}")
    with pytest.raises(ValueError, match=r"should have validation data to go by"):
        search(what, tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, r"`trials` should be"),
        ({"metric": "aucc"}, r"`metric` should be one of .*'aucc'.*auc"),
        ({"pruner": "best"}, r"`pruner` should be one of median, halving, none"),
        ({"timeout": 0}, r"`timeout` should be above 0"),
    ],
)
def test_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuningOptions(**options)  # type: ignore[arg-type]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment(
        tmp_path, "tune: {model.dim: [2, 4], training.learning_rate: {low: 0.01, high: 0.1}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", "clicks.yaml", "--trials", "4"]) == 0
    told = capsys.readouterr().out
    assert "trial 4/4" in told
    assert "torchrec train runs/clicks-tune/best.yaml" in told
    folder = tmp_path / "runs/clicks-tune"
    page = (folder / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    for text in ("Trials", "Evaluations", "Importance", "model.dim", "learning rate"):
        assert text in page
    assert [
        json.loads(line)["number"] for line in (folder / "trials.jsonl").read_text().splitlines()
    ] == [1, 2, 3, 4]
    assert cli.main(["tune", "clicks.yaml", "--trials", "5", "--resume"]) == 0
    assert "4 of 5 trials were made before" in capsys.readouterr().out
    (tmp_path / "space.yaml").write_text("model.dims: [2]\n")
    assert cli.main(["tune", "clicks.yaml", "--space", "space.yaml", "-o", "other"]) == 2
    assert "space.yaml: `tune` should have keys" in capsys.readouterr().err
