"""A run with several seeds: each a run like any other, and what came of all."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rowwise import cli
from rowwise.cli.stopping import Stopped, stopping
from tests.distributed.ranks import Workers
from tests.training.killing import ending
from tests.training.test_run import Notes, experiment, run
from torchrec.experiment.schema import Experiment
from torchrec.inference import load
from torchrec.report import write_report
from torchrec.runs import RunFolder, RunResult, read_run
from torchrec.training import Observer, Record, Task
from torchrec.training.evaluation import evaluate
from torchrec.training.run import run_experiment
from torchrec.training.run_data import RunData
from torchrec.training.seeds import joined

pytestmark = pytest.mark.once


def seeded(clicks: Path, **training: Any) -> Experiment:
    return experiment(
        clicks,
        model={"dropout": 0.1},
        training={"seed": 4, "seeds": 2, "checkpoint_every": 5, "threads": 1, **training},
    )


@pytest.fixture(scope="module")
def ended(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "seeds")
    run(seeded(clicks), folder.path)
    return folder


def test_members_are_runs_like_any_other(ended: RunFolder, clicks: Path, tmp_path: Path) -> None:
    members = ended.members()
    assert [member.path.name for member in members] == ["seed-4", "seed-5"]
    for seed, member in zip((4, 5), members, strict=True):
        alone = run(
            seeded(clicks, seed=seed, seeds=1, baselines=seed == 4), tmp_path / f"alone-{seed}"
        )
        assert ending(member.path) == ending(tmp_path / f"alone-{seed}")
        assert (alone.seed, alone.seeds) == (seed, ())
    assert ending(members[0].path) != ending(members[1].path)


def test_the_result_has_means_and_deviations(ended: RunFolder) -> None:
    result = ended.read_result()
    results = [member.read_result() for member in ended.members()]
    assert result.seeds == (4, 5)
    assert result.test is not None
    for split in ("train", "valid", "test"):
        found = [getattr(one, split) for one in results]
        deviation = result.deviation[split]
        assert deviation is not None
        for name in found[0]:
            values = [scores[name] for scores in found]
            assert getattr(result, split)[name] == pytest.approx(fmean(values))
            assert deviation[name] == pytest.approx(stdev(values))
        assert deviation["auc"] is not None
        assert deviation["auc"] > 0
    assert result.baselines == results[0].baselines != {}
    assert results[1].baselines == {}
    assert result.samples == sum(one.samples or 0 for one in results)
    assert json.loads(ended.result.read_text())["seeds"] == [4, 5]


def test_what_one_seed_could_not_measure_has_no_mean() -> None:
    one = RunResult({"auc": 0.5, "ne": 1.0}, {"auc": 0.5}, None, 10.0, 2.0, steps=3, threads=1)
    other = dataclasses.replace(one, train={"auc": 0.7, "ne": None}, threads=2, notes=("odd",))
    found = joined([1, 2], [one, other])
    assert found.train == {"auc": pytest.approx(0.6), "ne": None}
    assert found.deviation["train"] == {"auc": pytest.approx(0.02**0.5), "ne": None}
    assert (found.test, found.deviation["test"]) == (None, None)
    assert (found.steps, found.samples, found.threads) == (6, None, None)
    assert found.notes == ("seed 2: odd",)


class Stop(Observer):
    """Stops a run at a step, of one of its seeds."""

    def __init__(self, seeds: int, step: int) -> None:
        self.seeds, self.step = seeds, step

    def said(self, message: str) -> None:
        self.seeds -= message.startswith("seed ")

    def stepped(self, step: int, samples: int) -> None:
        if self.seeds == 0 and step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("seeds", "step"), [(1, 3), (1, 12), (2, 3), (2, 12)])
def test_resuming(seeds: int, step: int, ended: RunFolder, clicks: Path, tmp_path: Path) -> None:
    """In the first and in the second seed, before and after its first checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        run_experiment(seeded(clicks), tmp_path / "run", observers=[Stop(seeds, step)])
    folder = RunFolder(tmp_path / "run")
    where = "from step 10" if step > 10 else "begins anew"
    with (
        pytest.raises(Stopped, match=f"in seed-{3 + seeds}: stopped.*{where}"),
        stopping(folder.path),
    ):
        raise KeyboardInterrupt
    assert [member.has_ended() for member in folder.members()] == [True] * (seeds - 1) + [False]
    run(seeded(clicks), folder.path, resume=True)
    for member, other in zip(folder.members(), ended.members(), strict=True):
        assert ending(member.path) == ending(other.path)
    assert folder.read_result().deviation == ended.read_result().deviation
    assert run(seeded(clicks), folder.path, resume=True) == folder.read_result()


@pytest.mark.parametrize(("seeds", "step"), [(1, 3), (2, 3), (2, 12)])
def test_resuming_with_other_data(seeds: int, step: int, clicks: Path, tmp_path: Path) -> None:
    """Is refused once a seed has learnt of the former; before, the run begins anew."""
    data = tmp_path / "clicks.parquet"
    table = pq.read_table(clicks)
    pq.write_table(table, data, row_group_size=500)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(seeded(data), tmp_path / "run", observers=[Stop(seeds, step)])
    pq.write_table(table.slice(500), data, row_group_size=500)
    if seeds > 1:
        with pytest.raises(ValueError, match="Received another content"):
            run(seeded(data), tmp_path / "run", resume=True)
        return
    run(seeded(data), tmp_path / "run", resume=True)
    run(seeded(data), tmp_path / "new")
    for member, other in zip(
        RunFolder(tmp_path / "run").members(), RunFolder(tmp_path / "new").members(), strict=True
    ):
        assert ending(member.path) == ending(other.path)


def test_resuming_with_other_seeds_is_refused(ended: RunFolder, clicks: Path) -> None:
    with pytest.raises(ValueError, match=r"`training.seeds` should be 2, as when the run in"):
        run(seeded(clicks, seeds=3), ended.path, resume=True)


def test_a_failure_leaves_no_folder(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss"):
        run(seeded(clicks, learning_rate=1e30, optimizer="sgd"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_says_which_seed_trains(clicks: Path, tmp_path: Path) -> None:
    class Steps(Notes):
        def recorded(self, record: Record) -> None:
            self.messages.append(record.split)

    notes = Steps()
    run_experiment(seeded(clicks), tmp_path / "run", observers=[notes])
    first, second = notes.messages.index("seed 4, 1 of 2"), notes.messages.index("seed 5, 2 of 2")
    assert "test" in notes.messages[first:second]
    assert "test" in notes.messages[second:]


def test_a_single_one_is_named_where_it_is_needed(ended: RunFolder) -> None:
    sentence = re.escape(
        f"it is of 2 seeds, each of which is a run: take one, as '{ended.path}/seed-4'"
    )
    with pytest.raises(FileNotFoundError, match=sentence):
        load(ended.path)
    assert load(ended.path / "seed-4").experiment.training.seed == 4
    page = write_report(ended.path).read_text()
    assert "seed-4" in page
    assert "Metrics are means over seeds" in page


def test_one_that_has_not_ended_has_no_report(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(seeded(clicks), tmp_path / "run", observers=[Stop(1, 12)])
    with pytest.raises(ValueError, match=r"should have ended.* take one, as '.*seed-4'"):
        read_run(tmp_path / "run")
    assert read_run(tmp_path / "run" / "seed-4").lines


def test_commands(clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "experiment.yaml", tmp_path / "run"
    file.write_text(
        f"data: {{train: ['{clicks}'], label: click}}\nmodel: {{dim: 4, layers: [8]}}\n"
    )
    cli.main(["train", str(file), "-o", str(folder), "training.seeds=2", "training.threads=1"])
    said = " ".join(capsys.readouterr().out.split())
    result = RunFolder(folder).read_result()
    assert result.test is not None
    deviation = result.deviation["test"]
    assert deviation is not None
    assert f"{result.test['auc']:.4f} ± {deviation['auc']:.4f}" in said
    assert "Means and standard deviations of 2 seeds, 0 to 1." in said
    assert f"torchrec evaluate {folder}/seed-0 OTHER_DATA" in said
    for name in ("", "seed-0", "seed-1"):
        assert (folder / name / "report.html").is_file()
    code = cli.main(["evaluate", str(folder), str(clicks)])
    assert code == 2
    assert f"take one, as '{folder}/seed-0'" in capsys.readouterr().err


def test_an_ensemble_averages_logits(ended: RunFolder, clicks: Path, tmp_path: Path) -> None:
    what = seeded(clicks, ensemble=True)
    result = run(what, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for member, other in zip(folder.members(), ended.members(), strict=True):
        assert ending(member.path) == ending(other.path)
    rows = pq.read_table(clicks)
    one, other = (load(member.path).logits(rows) for member in folder.members())
    predictor = load(folder.path)
    logits = predictor.logits(rows)
    assert torch.equal(logits, (one + other) / 2)
    assert not torch.equal(one, other)
    assert torch.equal(predictor.predict(rows), torch.sigmoid(logits))
    assert predictor.experiment.training.ensemble
    data = RunData(what)
    for split, batches in (("valid", data.valid), ("test", data.test)):
        assert batches is not None
        found, reached = result.ensemble[split], getattr(result, split)
        assert found is not None
        assert found.keys() == reached.keys()
        assert found == evaluate(predictor.model, [Task()], batches, lambda x: x).report.to_json()
        assert found["logloss"] < reached["logloss"]  # by convexity, of any models that differ
    assert ended.read_result().ensemble == {}
    assert json.loads(folder.result.read_text())["ensemble"] == result.ensemble


def test_the_ensemble_is_made_again_by_a_run_that_broke_off_there(
    clicks: Path, tmp_path: Path
) -> None:
    class StopThere(Observer):
        def began(self, message: str) -> None:
            if message == "averaging the logits of 2 models":
                raise KeyboardInterrupt

    what = seeded(clicks, ensemble=True)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(what, tmp_path / "run", observers=[StopThere()])
    assert not RunFolder(tmp_path / "run").has_ended()
    assert run(what, tmp_path / "run", resume=True).ensemble["test"] is not None


def test_commands_take_an_ensemble(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    result = run(seeded(clicks, ensemble=True), folder)
    test = result.ensemble["test"]
    assert test is not None
    output = tmp_path / "scored.parquet"
    assert cli.main(["predict", str(folder), str(clicks), "-o", str(output)]) == 0
    assert pq.read_table(output).num_rows == 3000
    assert cli.main(["evaluate", str(folder), str(clicks)]) == 0
    page = write_report(folder).read_text()
    assert f"The model is the mean of their logits, with auc {test['auc']:.4f}" in page
    assert "Of all" in page  # it has predictions
    assert "2 models, whose logits are averaged" in (folder / "model" / "README.txt").read_text()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"ensemble": True, "seeds": 1}, r"`training.ensemble` .* `training.seeds` of 2 or more"),
        ({"seeds": 0}, "training.seeds"),
        ({"seed": 2**63 - 1}, r"`training.seed` should leave numbers for the 2"),
    ],
    ids=["one", "none", "too-high"],
)
def test_what_makes_no_sense_is_refused(
    training: dict[str, Any], message: str, clicks: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        seeded(clicks, **training)


def seeds_on_ranks(what: Experiment, folder: Path, resume: bool) -> tuple[RunResult, list[str]]:
    notes = Notes()
    result = run_experiment(what, folder, resume, [notes])
    return result, notes.messages


@pytest.mark.slow
def test_ranks_train_each_of_the_seeds_together(clicks: Path, tmp_path: Path) -> None:
    """To the result of one process, with an ensemble; and go on where one broke off."""
    what = seeded(clicks, ensemble=True, baselines=False)
    what = what.model_copy(update={"model": what.model.model_copy(update={"dropout": 0.0})})
    run(what, tmp_path / "one")
    folders = [RunFolder(tmp_path / name) for name in ("one", "two")]
    with Workers() as workers:
        whole = workers.run(seeds_on_ranks, 2, what, folders[1].path, False)
        assert whole[0][0] == whole[1][0]
        assert [message for message in whole[0][1] if message.startswith("seed")] == [
            "seed 4, 1 of 2", "seed 5, 2 of 2"
        ]  # fmt: skip
        assert whole[1][1] == []
        for member, expected in zip(folders[1].members(), folders[0].members(), strict=True):
            assert_close(member, expected)
            assert len(read_run(member.path).ranks) == 2
        assert_close(*folders)
        # The second broke off before it had a result.
        last = folders[1].members()[1]
        last.result.unlink()
        folders[1].result.unlink()
        shutil.rmtree(max(last.checkpoints.glob("step-*")))
        again = workers.run(seeds_on_ranks, 2, what, folders[1].path, True)
    assert "seed 4, 1 of 2: ended before" in again[0][1]
    assert again[0][0].valid == whole[0][0].valid


def assert_close(found: RunFolder, expected: RunFolder) -> None:
    weights = [load_file(each.model / "weights.safetensors") for each in (found, expected)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[1].items():
        assert (weights[0][name] - value).abs().max() < 1e-6, name
