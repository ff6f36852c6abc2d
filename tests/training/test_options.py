"""Every option of a trainer changes what it says it does, or is refused."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.clicks import ClickModel, Source, make_batch, make_trainer, valid_batches
from torchrec.experiment.schema import TrainingSection
from torchrec.training import (
    AverageOptions,
    EarlyStoppingOptions,
    FitOptions,
    Observer,
    Record,
    ScheduleOptions,
    Task,
    Trainer,
)

pytestmark = pytest.mark.once


class Outcome(Observer):
    """What can be seen of a training from outside; itself where its states are kept."""

    def __init__(self) -> None:
        self.records: dict[str, list[int]] = {"train": [], "valid": []}
        self.saved: list[int] = []
        self.steps = 0
        self.compiled = False
        self.weights = torch.empty(0)
        self.dtypes: set[torch.dtype] = set()

    def stepped(self, step: int, samples: int) -> None:
        self.steps = step

    def recorded(self, record: Record) -> None:
        self.records[record.split].append(record.step)

    def latest(self) -> None:
        return None

    def save(self, step: int, state: Any, best: int | None = None) -> None:
        self.saved.append(step)

    def load(self, step: int) -> Any:
        raise NotImplementedError

    def save_best(self, step: int, weights: Any) -> None:
        self.best = {name: value.clone() for name, value in weights.items()}

    def load_best(self, step: int, into: object) -> Any:
        return self.best

    def tidy(self) -> None:
        raise NotImplementedError


def outcome(**options: Any) -> Outcome:
    torch.manual_seed(0)
    model, found = ClickModel(), Outcome()
    model.over[0].register_forward_hook(
        lambda module, args, out: found.dtypes.add(out.dtype) if module.training else None
    )
    compiling = torch.compile

    def compiled(module: Any) -> Any:
        found.compiled = True
        return module

    torch.compile = compiled  # type: ignore[assignment]
    try:
        trainer = make_trainer(model, observers=[found], checkpoints=found, **options)
        trainer.fit(Source(batches=7), valid_batches())
    finally:
        torch.compile = compiling
    found.weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return found


@functools.cache
def usual() -> Outcome:
    return outcome()


def change(found: Outcome) -> float:
    return float((found.weights - usual().weights).abs().max())


# Option -> a value, what it changes, and what that is then; None: it only has to be another.
EFFECTS: dict[str, tuple[Any, str, Any]] = {
    "epochs": (3, "steps", 21),
    "accumulate": (2, "steps", 8),
    "clip_norm": (0.01, "weights", None),
    "precision": ("bf16", "dtypes", {torch.bfloat16}),
    "compile": (True, "compiled", True),
    "label_smoothing": (0.2, "weights", None),
    "schedule": ({"decay": "linear"}, "weights", None),
    "average": ({"kind": "ema"}, "weights", None),
    "early_stopping": ({"metric": "logloss", "min_delta": 9.0, "patience": 1}, "steps", 14),
    "evaluate_every": (3, "valid", [3, 6, 7, 9, 12, 14]),
    "checkpoint_every": (4, "saved", [4, 7, 8, 12, 14]),
    "log_every": (5, "train", [5, 7, 10, 14]),
    "seed": (1, "weights", None),
}
USUAL = {
    "steps": 14,
    "dtypes": {torch.float32},
    "compiled": False,
    "valid": [7, 14],
    "saved": [7, 14],
    "train": [7, 14],
}


def seen(found: Outcome, name: str) -> Any:
    return found.records[name] if name in found.records else getattr(found, name)


def test_every_option_is_here() -> None:
    assert EFFECTS.keys() == {field.name for field in dataclasses.fields(FitOptions)}
    for name, expected in USUAL.items():
        assert seen(usual(), name) == expected


@pytest.mark.parametrize("option", EFFECTS)
def test_has_an_effect(option: str) -> None:
    value, name, expected = EFFECTS[option]
    more = {"epochs": 9} if option == "early_stopping" else {}
    found = outcome(**{option: value}, **more)
    if expected is None:
        assert change(found) > 1e-4
    else:
        assert seen(found, name) == expected
        assert expected != USUAL[name] or option == "early_stopping"  # of 63 steps


SCHEDULES = {
    "warmup_steps": ({}, {"warmup_steps": 5}),
    "decay": ({"final": 0.1, "decay": "linear"}, {"final": 0.1, "decay": "exponential"}),
    "final": ({"decay": "linear"}, {"decay": "linear", "final": 0.5}),
    "factor": ({"decay": "plateau"}, {"decay": "plateau", "factor": 0.5}),
    "patience": ({"decay": "plateau"}, {"decay": "plateau", "patience": 2}),
}


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(ScheduleOptions)])
def test_of_a_schedule_has_an_effect(option: str) -> None:
    # Steps that are too long, so that some evaluations are no better than those before.
    often = {"learning_rate": 0.5, "evaluate_every": 1}
    one, other = (outcome(schedule=schedule, **often).weights for schedule in SCHEDULES[option])
    assert float((one - other).abs().max()) > 1e-4


AVERAGES = {
    "kind": ({"kind": "ema"}, {"kind": "swa"}),
    "decay": ({"kind": "ema", "decay": 0.5}, {"kind": "ema", "decay": 0.25}),
    "start": ({"kind": "swa"}, {"kind": "swa", "start": 0.5}),
}


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(AverageOptions)])
def test_of_an_average_has_an_effect(option: str) -> None:
    one, other = (outcome(average=average).weights for average in AVERAGES[option])
    assert float((one - other).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ({"kind": "mean"}, r"`average.kind` should be one of ema, swa. Received 'mean'"),
        ({"kind": "ema", "decay": 1.0}, r"`average.decay` should be in \(0, 1\). Received 1.0"),
        ({"kind": "swa", "start": 1.0}, r"`average.start` should be in \[0, 1\). Received 1.0"),
        (
            {"kind": "swa", "decay": 0.9},
            r"`average.decay` should be given for .* ema. Received 0.9",
        ),
        (
            {"kind": "ema", "start": 0.5},
            r"`average.start` should be given for .* swa. Received 0.5",
        ),
    ],
    ids=str,
)
def test_wrong_averages_are_named(average: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AverageOptions(**average)


@pytest.mark.parametrize(
    ("stopping", "steps"),
    [
        ({"metric": "logloss", "patience": 1, "min_delta": 9.0}, 14),
        ({"metric": "logloss", "patience": 3, "min_delta": 9.0}, 28),
        ({"metric": "logloss", "patience": 1, "min_delta": 0.005}, 35),
        ({"metric": "auc", "patience": 1, "min_delta": 0.005}, 14),
    ],
    ids=["", "patience", "min_delta", "metric"],
)
def test_of_early_stopping_has_an_effect(stopping: dict[str, Any], steps: int) -> None:
    found = outcome(epochs=5, early_stopping=stopping)
    assert found.steps == steps


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "`epochs` should be at least 1. Received 0"),
        ({"epochs": None}, TypeError, "`epochs` should be an integer. Received None"),
        ({"accumulate": 1.5}, TypeError, "`accumulate` should be an integer. Received 1.5"),
        ({"evaluate_every": 0}, ValueError, "`evaluate_every` should be at least 1"),
        ({"checkpoint_every": -1}, ValueError, "`checkpoint_every` should be at least 1"),
        ({"log_every": True}, TypeError, "`log_every` should be an integer. Received True"),
        ({"clip_norm": 0.0}, ValueError, "`clip_norm` should be above 0. Received 0.0"),
        ({"clip_norm": "1"}, TypeError, "`clip_norm` should be a number. Received '1'"),
        ({"clip_norm": float("nan")}, ValueError, "`clip_norm` should be above 0. Received nan"),
        ({"precision": "fp16"}, ValueError, "one of fp32, bf16. Received 'fp16'"),
        (
            {"label_smoothing": 1.0},
            ValueError,
            r"`label_smoothing` should be in \[0, 1\). Received 1",
        ),
        ({"label_smoothing": "a"}, TypeError, "`label_smoothing` should be a number. Received 'a'"),
        ({"seed": -1}, ValueError, "`seed` should be at least 0"),
        ({"compile": "no"}, TypeError, "`compile` should be True or False. Received 'no'"),
        ({"compile": 1}, TypeError, "`compile` should be True or False. Received 1"),
        ({"schedule": {"decay": "linear"}}, TypeError, "`schedule` should be a ScheduleOptions. R"),
        ({"schedule": None}, TypeError, "`schedule` should be a ScheduleOptions. Received None"),
        ({"early_stopping": {"metric": "auc"}}, TypeError, "should be an EarlyStoppingOptions, or"),
        ({"average": "ema"}, TypeError, "`average` should be an AverageOptions, or None. .* 'ema'"),
        ({"early_stopping": True}, TypeError, "`early_stopping` should be .* Received True"),
        ({"seed": 2**63}, ValueError, "`seed` should be at most 9223372036854775807"),
    ],
    ids=str,
)
def test_wrong_values_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FitOptions(**options)


def test_wrong_values_of_schedule_and_stopping_are_named() -> None:
    with pytest.raises(ValueError, match=r"`schedule.decay` should be one of constant, .* 'step'"):
        ScheduleOptions(decay="step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`schedule.final` should be in \[0, 1\]. Received 2"):
        ScheduleOptions(final=2.0)
    with pytest.raises(ValueError, match=r"`schedule.warmup_steps` should be at least 0"):
        ScheduleOptions(warmup_steps=-1)
    with pytest.raises(ValueError, match=r"should name one metric or several that differ. .* \[\]"):
        EarlyStoppingOptions(metric=[])
    with pytest.raises(ValueError, match=r"several that differ. Received \['auc', 'auc'\]"):
        EarlyStoppingOptions(metric=["auc", "auc"])
    with pytest.raises(
        TypeError, match=r"`early_stopping.metric` should be a name .* \['auc', 2\]"
    ):
        EarlyStoppingOptions(metric=["auc", 2])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"`early_stopping.metric` should be a name .* Received 3"):
        EarlyStoppingOptions(metric=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`early_stopping.patience` should be at least 1"):
        EarlyStoppingOptions(patience=0)
    with pytest.raises(ValueError, match=r"`early_stopping.min_delta` should be 0 or more"):
        EarlyStoppingOptions(min_delta=-0.1)


def test_what_would_have_no_effect_is_refused(tmp_path: Path) -> None:
    model = ClickModel()
    with pytest.raises(ValueError, match="`checkpoints` should be given for `checkpoint_every`"):
        Trainer(model, options=FitOptions(checkpoint_every=5))
    with pytest.raises(ValueError, match="`valid` should be given for `evaluate_every`"):
        Trainer(model, options=FitOptions(evaluate_every=5)).fit(Source())
    with pytest.raises(ValueError, match=r"`valid` should be given for `schedule.decay` pl"):
        make_trainer(model, schedule={"decay": "plateau"}).fit(Source())
    with pytest.raises(ValueError, match="`checkpoints` should be given to resume from"):
        Trainer(model).fit(Source(), resume=True)
    with pytest.raises(ValueError, match=r"`clip_norm` should be .* Received 0.1 for one that has"):
        Trainer(model.ebc, options=FitOptions(clip_norm=0.1))
    plain = ClickModel(optimizer=None).ebc
    assert Trainer(plain, options=FitOptions(clip_norm=0.1)).options.clip_norm == 0.1
    with pytest.raises(ValueError, match=r"`schedule.final` should be .* Received 0.1 for `sched"):
        ScheduleOptions(final=0.1)
    assert ScheduleOptions(warmup_steps=3, final=0.0).decay == "constant"


@pytest.mark.parametrize("tasks", ["labels", None, ["labels"], [Task(), Task], {"labels": Task()}])
def test_tasks_of_another_kind_are_refused(tasks: Any) -> None:
    with pytest.raises(TypeError, match=r"`tasks` should be a Task, or a sequence of them. Recei"):
        Trainer(ClickModel(), tasks=tasks)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding_optimizer": "sgd"},
        {"threads": 3, "keep_checkpoints": 9, "tensorboard": True},
        {"batch_size": 7, "learning_rate": 0.5, "weight_decay": 0.1},
        {},
    ],
    ids=str,
)
def test_the_section_of_a_file_is_refused(changes: dict[str, Any]) -> None:
    """It has options of the tables, the loader and the run, which a trainer could only ignore."""
    section = TrainingSection.model_validate(changes)
    with pytest.raises(
        TypeError, match=r"`options` should be a FitOptions. Received a TrainingSec"
    ):
        Trainer(ClickModel(), options=section)  # type: ignore[arg-type]


def test_tasks_in_the_place_of_the_optimizer_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"`optimizer` should be a torch.optim.Optimizer. Received l"
    ):
        Trainer(ClickModel(), [Task()])  # type: ignore[arg-type]


def test_without_options_it_is_adam_for_an_epoch() -> None:
    model = ClickModel(dropout=0.0)
    trainer = Trainer(model)
    assert trainer.fit([make_batch(8, 1)]).steps == 1
    assert isinstance(trainer.optimizer.param_groups[-1]["params"][0], Tensor)
    assert trainer.optimizer.param_groups[-1]["lr"] == 1e-3
    adam = torch.optim.Adam(model.over.parameters())
    assert Trainer(model, adam).fit([make_batch(8, 1)]).steps == 1
    assert len(adam.state) == 4
