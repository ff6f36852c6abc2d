"""Every key of `model` and `training` in an experiment file changes what it says it does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from tests.training.killing import write_clicks
from torchrec.experiment.files import check_experiment
from torchrec.experiment.schema import TrainingSection
from torchrec.models import registry
from torchrec.models.registry import ModelSection
from torchrec.runs import RunFolder, RunResult
from torchrec.training import FitOptions, Observer
from torchrec.training.run import run_experiment

pytestmark = pytest.mark.once

SMALL = {"dim": 4}
TOWER = {**SMALL, "layers": [8], "dense_layers": [6]}
USUAL = {"batch_size": 128, "learning_rate": 0.02, "baselines": False, "threads": 1}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What can be seen of a run from outside."""

    result: RunResult
    folder: RunFolder
    threads: int

    @property
    def scores(self) -> Mapping[str, float | None]:
        """Of the validation data: all that the model has learnt is in there."""
        assert self.result.valid is not None
        return self.result.valid

    def names(self, pattern: str) -> list[str]:
        """Paths of files in the folder of the run."""
        found = self.folder.path.rglob(pattern)
        return sorted(path.relative_to(self.folder.path).as_posix() for path in found)


class Threads(Observer):
    """Notes on how many threads steps are made."""

    number = 0

    def stepped(self, step: int, samples: int) -> None:
        self.number = torch.get_num_threads()


Runs = Callable[[dict[str, Any], dict[str, Any]], Outcome]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Makes a run of a model and of how it is trained; equal ones once."""
    base = tmp_path_factory.mktemp("options")
    write_clicks(base / "clicks.parquet")
    features = {
        "user": {"type": "sparse", "ids": "hash", "rows": 60},
        "tags": {"type": "multi_hot", "ids": "plain", "rows": 20},
        "price": {"type": "dense"},
    }
    data = {
        "train": [str(base / "clicks.parquet")],
        "label": "click",
        "split": {"valid": 0.2, "test": 0},
    }
    known: dict[str, Outcome] = {}

    def run(model: dict[str, Any], training: dict[str, Any]) -> Outcome:
        values = {"data": data, "features": features, "model": model, "training": training}
        text = json.dumps(values)
        if text not in known:
            folder, threads = RunFolder(base / f"run-{len(known)}"), Threads()
            what = check_experiment({**values, "output": "unused"}, "experiment.yaml")
            result = run_experiment(what, folder.path, observers=[threads])
            known[text] = Outcome(result, folder, threads.number)
        return known[text]

    return run


# Model -> option -> another value than that of a small model.
COMMON: dict[str, Any] = {
    "table_init": {"rule": "normal", "std": 0.5},
    "layer_init": {"rule": "uniform", "bound": 0.5},
}
OF_TOWERS: dict[str, Any] = {
    **COMMON,
    "dim": 6,
    "dense_layers": [5],
    "layers": [8, 8],
    "dropout": 0.3,
    "embedding_dropout": 0.3,
    "batch_norm": True,
    "activation": "tanh",
}
HEADS = {**TOWER, "cross_layers": 2, "cross_rank": 2, "tower_layers": [4]}
OF_HEADS: dict[str, Any] = {
    **OF_TOWERS,
    "interaction": "fm",
    "cross_layers": 1,
    "cross_rank": 1,
    "tower_layers": [5],
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lr": (SMALL, COMMON),
    "fm": (SMALL, {**COMMON, "dim": 6}),
    "deepfm": (TOWER, {**OF_TOWERS, "linear": True}),
    "dlrm": (TOWER, {**OF_TOWERS, "vectors": False}),
    "dlrm_dcn": (TOWER, {**OF_TOWERS, "cross_layers": 1, "cross_rank": 1}),
    "shared_bottom": (HEADS, OF_HEADS),
    "mmoe": (HEADS, {**OF_HEADS, "experts": 2}),
    "ple": (HEADS, {**OF_HEADS, "levels": 2, "shared_experts": 1, "task_experts": 1}),
}
SLOW = (
    "shared_bottom",
    "mmoe",
    "ple",
)  # the quick suite has the options of one model with the same tower


def test_every_option_of_every_model_is_here() -> None:
    # `esmm` needs two tasks: `tests/training/test_several_tasks.py`.
    assert {*MODELS, "esmm"} == set(registry.names())
    for name, (_, options) in MODELS.items():
        fields = set(type(ModelSection(name=name)).model_fields) - {"name"}
        # A weight an id has no dimension: that of another model may stand there.
        assert set(options) | ({"dim"} if name == "lr" else set()) == fields, name


@pytest.mark.parametrize(
    ("name", "option"),
    [
        pytest.param(name, option, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, (_, all_) in MODELS.items()
        for option in all_
    ],
)
def test_of_a_model_has_an_effect(name: str, option: str, runs: Runs) -> None:
    usual, options = MODELS[name]
    one = runs({"name": name, **usual}, USUAL)
    other = runs({"name": name, **usual, option: options[option]}, USUAL)
    assert one.scores != other.scores


def test_the_name_of_a_model_has_an_effect(runs: Runs) -> None:
    found = [runs({"name": name, **usual}, USUAL).scores for name, (usual, _) in MODELS.items()]
    assert all(one not in found[:number] for number, one in enumerate(found))


# What is learnt is another: option -> what it is beside, and its value.
LEARNT: dict[str, tuple[dict[str, Any], Any]] = {
    "epochs": ({}, 2),
    "batch_size": ({}, 64),
    "learning_rate": ({"embedding_learning_rate": 0.02}, 0.1),
    "optimizer": ({}, "adagrad"),
    "weight_decay": ({}, 0.5),
    "embedding_learning_rate": ({}, 0.1),
    "embedding_optimizer": ({}, "rowwise_adagrad"),
    "embedding_updates": ({}, "dense"),
    "embedding_weight_decay": ({}, 0.5),
    "embedding_l2": ({}, 0.5),
    "schedule": ({}, {"decay": "linear"}),
    "clip_norm": ({}, 0.01),
    "accumulate": ({}, 2),
    "precision": ({}, "bf16"),
    "label_smoothing": ({}, 0.3),
    "average": ({}, {"kind": "ema", "decay": 0.5}),
    "early_stopping": ({"epochs": 3}, {"metric": "logloss", "min_delta": 9.0}),
    "seed": ({}, 1),
}


@pytest.mark.parametrize("option", LEARNT)
def test_of_training_changes_what_is_learnt(option: str, runs: Runs) -> None:
    beside, value = LEARNT[option]
    model = {"name": "deepfm", **TOWER}
    one, other = (runs(model, {**USUAL, **beside, **changed}) for changed in ({}, {option: value}))
    assert one.scores != other.scores


# What is seen is another, and what is learnt the same: option -> as above, what is seen, and what it is.
SEEN: dict[str, tuple[dict[str, Any], Any, Callable[[Outcome], Any], Any]] = {
    "evaluate_every": ({}, 8, lambda run: _records(run, "valid"), [8, 16, 19]),
    "log_every": ({}, 8, lambda run: _records(run, "train"), [8, 16, 19]),
    "checkpoint_every": ({}, 8, lambda run: run.names("step-*"), 2),
    "keep_checkpoints": ({"checkpoint_every": 4}, 1, lambda run: run.names("step-*"), 1),
    "tensorboard": ({}, True, lambda run: run.names("tensorboard/events*"), 1),
    "baselines": ({}, True, lambda run: list(run.result.baselines), ["constant", "lr"]),
    "threads": ({}, 3, lambda run: run.threads, 3),
}


def _records(run: Outcome, split: str) -> list[int]:
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    return [line["step"] for line in lines if line["split"] == split]


@pytest.mark.parametrize("option", SEEN)
def test_of_training_changes_what_is_seen(option: str, runs: Runs) -> None:
    beside, value, seen, expected = SEEN[option]
    model = {"name": "deepfm", **TOWER}
    one, other = (runs(model, {**USUAL, **beside, **changed}) for changed in ({}, {option: value}))
    found = seen(other)
    assert found != seen(one)
    assert (len(found) if isinstance(expected, int) and isinstance(found, list) else found) == (
        expected
    )
    assert one.scores == other.scores


def test_seeds_and_their_ensemble(runs: Runs) -> None:
    model = {"name": "deepfm", **TOWER}
    several = runs(model, {**USUAL, "seeds": 2})
    together = runs(model, {**USUAL, "seeds": 2, "ensemble": True})
    assert [member.path.name for member in several.folder.members()] == ["seed-0", "seed-1"]
    assert (several.folder.model.is_dir(), together.folder.model.is_dir()) == (False, True)
    assert several.scores == together.scores != together.result.ensemble["valid"]


def test_every_option_of_training_is_here() -> None:
    elsewhere = {"compile"}  # of a trainer, beside this: test_options.py
    assert elsewhere < {field.name for field in dataclasses.fields(FitOptions)}
    here = {*LEARNT, *SEEN, "seeds", "ensemble", *elsewhere}
    assert here == set(TrainingSection.model_fields)
