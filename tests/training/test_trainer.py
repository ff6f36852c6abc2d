"""The trainer against plain PyTorch, and against itself when it was interrupted."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from tests.training.clicks import (
    ClickModel,
    Notes,
    Source,
    assert_same,
    everything,
    make_batch,
    make_trainer,
    valid_batches,
)
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.datasets.features import SparseFeature
from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.utils import Batch
from torchrec.metrics import BinaryMetrics
from torchrec.training import Checkpoints, MetricsLog, Observer, Task, Trainer
from torchrec.training.phases import PHASES


def plain_loop(model: nn.Module, batches: list[Batch], clip: float | None = None) -> None:
    dense = [p for name, p in model.named_parameters() if not name.startswith("ebc")]
    optimizer = torch.optim.Adam(dense, lr=0.01, fused=True)
    for batch in batches:
        logits = model(batch.dense_features, batch.sparse_features).squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(dense, clip)
        optimizer.step()
        optimizer.zero_grad()


def epochs(source: Source, count: int) -> list[Batch]:
    batches = []
    for source.epoch in range(count):
        batches += list(source)
    return batches


@pytest.mark.parametrize("clip", [None, 0.05])
def test_does_what_a_plain_loop_does(clip: float | None) -> None:
    """Bit for bit; dropout draws from the seed."""
    model = ClickModel()
    other = copy.deepcopy(model)
    make_trainer(model, seed=3, clip_norm=clip).fit(Source())
    torch.manual_seed(3)
    plain_loop(other, epochs(Source(), 2), clip)
    assert_same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("rule", ["sgd", "adam", "rowwise_adagrad", None])
def test_accumulation_is_the_large_batch(rule: str | None) -> None:
    """Of fused and other tables; with a smaller last group, and a smaller batch in it."""
    big = ClickModel(rule, dropout=0.0)
    small = copy.deepcopy(big)
    parts = epochs(Source(batches=5, size=20), 1)
    joined = [
        Batch(
            torch.cat([b.dense_features for b in group]),
            _joined([b.sparse_features for b in group]),
            torch.cat([b.labels for b in group]),
        )
        for group in (parts[:2], parts[2:4], parts[4:])
    ]
    one = make_trainer(big, epochs=1, clip_norm=0.1)
    two = make_trainer(small, epochs=1, clip_norm=0.1, accumulate=2)
    assert one.fit(joined).steps == two.fit(parts).steps == 3
    for name, value in everything(big, one.optimizer).items():
        torch.testing.assert_close(
            torch.as_tensor(everything(small, two.optimizer)[name]), torch.as_tensor(value),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def _joined(parts: list[Any]) -> Any:
    from torchrec import KeyedJaggedTensor

    keys = parts[0].keys()
    return KeyedJaggedTensor(
        keys,
        torch.cat([part[key].values() for key in keys for part in parts]),
        lengths=torch.cat([part[key].lengths() for key in keys for part in parts]),
    )


def test_schedule_moves_tables_and_dense_alike() -> None:
    model = ClickModel(lr=0.5)
    notes = Notes()
    schedule = {"warmup_steps": 2, "decay": "linear", "final": 0.5}

    class Tables(Observer):
        rates: ClassVar[list[float]] = []

        def stepped(self, step: int, samples: int) -> None:
            self.rates.append(model.ebc.fused_optimizer.param_groups[0]["lr"])

    tables = Tables()
    trainer = make_trainer(
        model, epochs=1, schedule=schedule, log_every=1, observers=[notes, tables]
    )
    trainer.fit(Source(batches=7))
    factors = [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5]
    assert [r.learning_rate for r in notes.of("train")] == pytest.approx(
        [0.01 * f for f in factors]
    )
    assert tables.rates == pytest.approx([0.5 * f for f in factors])
    # Another trainer of the same model begins where this one did.
    assert model.ebc.fused_optimizer.param_groups[0]["lr"] == 0.5
    assert trainer.optimizer.param_groups[-1]["lr"] == 0.01


def test_schedule_needs_a_length() -> None:
    trainer = make_trainer(ClickModel(), schedule={"decay": "cosine"})
    with pytest.raises(
        ValueError, match=r"`schedule.decay` should be constant or plateau for data whose leng"
    ):
        trainer.fit(iter([make_batch(4, 1)]))


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "sgd"])
def test_optimizers_learn(name: str) -> None:
    rate = 0.1 if name in ("sgd", "adagrad") else 0.01
    trainer = make_trainer(
        ClickModel(),
        rule=name,
        learning_rate=rate,
        epochs=8,
        weight_decay=1e-5,
    )
    before = trainer.evaluate(valid_batches())
    trainer.fit(Source(batches=20))
    after = trainer.evaluate(valid_batches())
    assert after.logloss < before.logloss - 0.05
    assert after.auc > 0.7


def test_given_optimizer_is_used() -> None:
    model = ClickModel()
    dense = list(model.over.parameters())
    given = torch.optim.RMSprop(dense, lr=0.01)
    make_trainer(model, given, epochs=1).fit(Source())
    assert len(given.state) == len(dense)
    assert (
        model.ebc.fused_optimizer.state_dict()["state"]["embedding_bags.user.weight"]["step"] == 7
    )


def test_bf16_learns_and_keeps_weights_in_fp32() -> None:
    model = ClickModel(dropout=0.0)
    seen: list[tuple[bool, torch.dtype]] = []
    model.over[0].register_forward_hook(
        lambda module, args, out: seen.append((module.training, out.dtype))
    )
    trainer = make_trainer(model, precision="bf16", epochs=5)
    result = trainer.fit(Source(batches=20), valid_batches())
    # Measured is the model that will be saved, which predicts in float32.
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert result.valid is not None
    assert result.valid.auc > 0.7


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.slow  # Inductor builds C++
def test_compiled_is_close_to_eager() -> None:
    model = ClickModel(dropout=0.0)
    other = copy.deepcopy(model)
    make_trainer(model, epochs=1).fit(Source())
    make_trainer(other, epochs=1, compile=True).fit(Source())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_equal_seeds_give_equal_runs() -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(7)
        trainer = make_trainer(ClickModel(), seed=seed)
        trainer.fit(Source())
        found.append(everything(trainer.model, trainer.optimizer))
    assert_same(found[0], found[1])
    assert not torch.equal(found[0]["over.0.weight"], found[2]["over.0.weight"])


def test_early_stopping_needs_its_metric() -> None:
    with pytest.raises(ValueError, match="`valid` should be given for early stopping"):
        make_trainer(ClickModel(), early_stopping={"metric": "auc"}).fit(Source())
    batch = make_batch(5, 1)
    batch.labels.zero_()
    with pytest.raises(ValueError, match="Received auc, which is not: all labels are 0"):
        make_trainer(ClickModel(), early_stopping={"metric": "auc"}).fit(Source(), [batch])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_no_number_names_the_step(bad: float, tmp_path: Path) -> None:
    """Found at the record, or before a checkpoint is written, whichever is first."""
    batches = epochs(Source(), 1)
    batches[4].dense_features[3, 1] = bad
    for every in (None, 6):
        trainer = make_trainer(
            ClickModel(),
            checkpoint_every=every,
            checkpoints=Checkpoints(tmp_path / str(every)),
        )
        with pytest.raises(ValueError, match=r"should be a number. Received \S+ in step 5: lower"):
            trainer.fit(batches)
        assert trainer.checkpoints is not None
        assert trainer.checkpoints.latest() is None


def test_loss_that_is_no_number_is_the_reason_wherever_it_is_seen() -> None:
    """The metrics work off what they were given when their buffer is full, before any record."""
    batches = epochs(Source(), 1)
    batches[2].dense_features[3, 1] = math.nan
    trainer = make_trainer(ClickModel(), tasks=Task(metrics=partial(BinaryMetrics, buffer=20)))
    with pytest.raises(ValueError, match=r"should be a number. Received nan in step 3: lower"):
        trainer.fit(batches)

    class Refusing(BinaryMetrics):
        def update(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
            raise ValueError("not these")

    with pytest.raises(ValueError, match="not these"):
        make_trainer(ClickModel(), tasks=Task(metrics=Refusing)).fit(Source())


def test_nan_in_an_evaluation_names_the_step_and_batch() -> None:
    valid = valid_batches()
    valid[1].dense_features[:] = math.nan
    with pytest.raises(
        ValueError, match=r"Evaluation after step 7: .* Received nan in update 2, sample 0"
    ):
        make_trainer(ClickModel()).fit(Source(), valid)


def test_a_trainer_trains_once() -> None:
    """Learning rates have fallen by then, and metrics have begun."""
    model = ClickModel()
    trainer = make_trainer(model, schedule={"decay": "linear"})
    trainer.fit(Source())
    for resume in (False, True):
        with pytest.raises(ValueError, match="that has begun, and made 14 steps: make another"):
            trainer.fit(Source(), resume=resume)
    assert make_trainer(model).fit(Source()).steps == 14


def test_no_data() -> None:
    with pytest.raises(
        ValueError, match=r"`train` should give batches each time it is iterated. R"
    ):
        make_trainer(ClickModel()).fit([])
    with pytest.raises(ValueError, match="Received none in epoch 2"):
        make_trainer(ClickModel()).fit(iter([make_batch(4, 1)]))
    with pytest.raises(ValueError, match="`data` should have samples to evaluate on"):
        make_trainer(ClickModel()).evaluate([])


def test_records_say_what_happened() -> None:
    notes = Notes()
    counts = iter([{"unknown": i} for i in range(100)])
    trainer = make_trainer(
        ClickModel(dropout=0.0),
        log_every=3,
        evaluate_every=5,
        observers=[notes],
        id_counts=lambda: next(counts),
    )
    model = copy.deepcopy(trainer.model)
    result = trainer.fit(Source(), valid_batches())
    assert notes.steps == list(range(1, 15))
    assert [r.step for r in notes.of("train")] == [3, 6, 7, 9, 12, 14]
    assert [r.step for r in notes.of("valid")] == [5, 7, 10, 14]
    assert [round(r.epoch, 3) for r in notes.of("train")] == [0.429, 0.857, 1.0, 1.286, 1.714, 2.0]
    # Asked once a record of training, before and after an evaluation: 1 belongs to steps 4 and 5.
    told = [(r.split, r.ids["unknown"]) for r in notes.records]
    assert told[:6] == [
        ("train", 0), ("valid", 2), ("train", 1 + 3), ("train", 4), ("valid", 6), ("train", 5 + 7)
    ]  # fmt: skip
    first = notes.records[0]
    logits, labels = _predictions_while_learning(model, epochs(Source(), 1)[:3])
    assert first.loss == pytest.approx(first.report.logloss, rel=1e-6)
    assert first.report.auc == pytest.approx(roc_auc_score(labels, logits))
    assert first.samples == first.report.samples == 48
    assert result.samples == 2 * (6 * 16 + 13)
    assert result.train.samples == 6 * 16 + 13
    assert result.samples_per_second > 0
    assert set(first.time) == set(PHASES)
    assert all(share > 0 for share in first.time.values())
    assert 0.3 < sum(first.time.values()) <= 1.0001


def _predictions_while_learning(model: nn.Module, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    found: list[Tensor] = []
    model.register_forward_hook(lambda module, args, out: found.append(out.detach().squeeze(1)))
    plain_loop(model, batches)
    return torch.cat(found), torch.cat([batch.labels for batch in batches])


class Interrupted(Exception):  # noqa: N818
    pass


class Interrupt(Observer):
    """Breaks training off after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, samples: int) -> None:
        if step == self.step:
            raise Interrupted


SETTINGS = {
    "plain": {},
    "stopping": {"early_stopping": {"metric": "auc", "patience": 1}, "evaluate_every": 2},
    "accumulating": {"accumulate": 2, "schedule": {"warmup_steps": 3, "decay": "cosine"}},
    "plateau": {
        "schedule": {"decay": "plateau", "factor": 0.5, "patience": 1, "warmup_steps": 2},
        "evaluate_every": 1,
        "learning_rate": 0.5,  # steps that are too long
    },
    "moving average": {"average": {"kind": "ema", "decay": 0.6}, "evaluate_every": 2},
    "mean of the last": {
        "average": {"kind": "swa", "start": 0.4},
        "early_stopping": {"metric": "logloss", "patience": 3},
    },
    "sgd with adagrad": {"rule": "adagrad", "clip_norm": 0.1, "weight_decay": 1e-3},
}


def _trainer(folder: Path, settings: dict[str, Any], *more: Observer) -> Trainer:
    torch.manual_seed(0)
    return make_trainer(
        ClickModel("rowwise_adagrad" if "rule" in settings else "adam"),
        checkpoint_every=2,
        log_every=3,
        epochs=3,
        **settings,
        checkpoints=Checkpoints(folder / "checkpoints"),
        observers=[MetricsLog(folder / "metrics.jsonl"), *more],
    )


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timings = ("seconds", "samples_per_second", "time", "checksum")
    return [{k: v for k, v in line.items() if k not in timings} for line in lines]


@pytest.mark.once
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("resumable", [True, False], ids=["resumable", "repeatable"])
def test_goes_on_bit_for_bit_from_any_step(settings: str, resumable: bool, tmp_path: Path) -> None:
    def data() -> Any:
        return Source() if resumable else epochs(Source(), 1)

    whole = _trainer(tmp_path, SETTINGS[settings], Observer())
    expected = whole.fit(data(), valid_batches())
    lines = _lines(tmp_path)
    assert (whole.plateau.factor < 1) == (settings == "plateau")
    stride = {"stopping": 1, "plateau": 2}.get(settings, 3)
    for step in range(1, expected.steps + 1, stride):
        folder = tmp_path / str(step)
        folder.mkdir()
        with pytest.raises(Interrupted):
            _trainer(folder, SETTINGS[settings], Interrupt(step)).fit(data(), valid_batches())
        torch.rand(5)
        again = _trainer(folder, SETTINGS[settings], Observer())
        result = again.fit(data(), valid_batches(), resume=True)
        assert_same(
            everything(again.model, again.optimizer), everything(whole.model, whole.optimizer)
        )
        assert (result.train, result.valid) == (expected.train, expected.valid)
        assert (result.steps, result.samples) == (expected.steps, expected.samples)
        assert result.best_step == expected.best_step
        assert result.best_epoch == expected.best_epoch
        assert result.notes == expected.notes
        for part in ("monitor", "plateau", "overfitting"):
            states = [getattr(trainer, part).state_dict() for trainer in (whole, again)]
            assert states[0] == states[1]
        assert _lines(folder) == lines
        counts = [t.model.ebc.out_of_range_counts() for t in (whole, again)]
        assert counts[0] == counts[1]


def test_resuming_what_is_over_changes_nothing(tmp_path: Path) -> None:
    whole = _trainer(tmp_path, SETTINGS["stopping"])
    expected = whole.fit(Source(), valid_batches())
    again = _trainer(tmp_path, SETTINGS["stopping"])
    result = again.fit(Source(), valid_batches(), resume=True)
    assert (result.train, result.valid, result.steps) == (
        expected.train, expected.valid, expected.steps
    )  # fmt: skip
    assert_same(again.model.state_dict(), whole.model.state_dict())


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    _trainer(tmp_path, {}).fit(Source(), valid_batches())
    second = _trainer(tmp_path, {})
    assert second.fit(Source(), valid_batches()).steps == 21


class StopsAt(Observer):
    """Breaks off, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, samples: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt


def test_data_that_changed_between_epochs_are_refused(tmp_path: Path) -> None:
    """A checkpoint between epochs has no place in the data, but is of some data."""
    path = tmp_path / "clicks.csv"

    def loader(rows: int) -> Loader:
        path.write_text("user,click\n" + "".join(f"{i % 5},{i % 2}\n" for i in range(rows)))
        transform = FeatureTransform({"user": SparseFeature(rows=9)}, "click")
        source = TableSource(path)
        return Loader(source, transform.fit(source.scan()), 8)

    def trainer(stop: int) -> Trainer:
        model = nn.Module()
        model.ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(9, 1, "user", feature_names=["user"], optimizer="sgd", lr=0.1)
            ]
        )
        model.forward = lambda dense, sparse: model.ebc(sparse).values()
        return make_trainer(
            model,
            epochs=2,
            checkpoints=Checkpoints(tmp_path),
            observers=[StopsAt(stop)],
        )

    with pytest.raises(KeyboardInterrupt):
        trainer(stop=7).fit(loader(40))
    with pytest.raises(ValueError, match=r"clicks.csv' should be as .* was when the state was sav"):
        trainer(stop=99).fit(loader(48), resume=True)
    assert trainer(stop=99).fit(loader(40), resume=True).steps == 10


def test_only_what_the_optimizer_has_is_clipped() -> None:
    """A gradient that was left at a frozen parameter is not in the norm."""
    frozen, left = ClickModel(dropout=0.0), ClickModel(dropout=0.0)
    left.load_state_dict(frozen.state_dict())
    left.over[0].weight.grad = torch.full_like(left.over[0].weight, 1e6)
    for model in (frozen, left):
        model.over[0].requires_grad_(False)
        sgd = torch.optim.SGD(model.over[2:].parameters(), lr=0.5)
        make_trainer(model, sgd, epochs=3, clip_norm=0.01).fit(Source(batches=20))
    assert_same(frozen.state_dict(), left.state_dict())


class BreaksOff(ClickModel):
    """Breaks off in a look-up of some number, as Ctrl-C does, once."""

    def __init__(self, at: int, **options: Any) -> None:
        super().__init__(**options)
        self.at, self.count = at, 0

    def forward(self, *args: Any) -> Tensor:
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt
        return super().forward(*args)


@pytest.mark.parametrize("rule", ["sgd", "adam", None])
@pytest.mark.parametrize("at", [2, 3], ids=["second of three", "third of three"])
def test_what_a_step_had_collected_when_it_broke_off_is_dropped(rule: str | None, at: int) -> None:
    """No other trainer of the model, nor a plain loop, has gradients of batches that it never saw."""
    torch.manual_seed(0)
    model = BreaksOff(at, optimizer=rule, dropout=0.0)
    other = copy.deepcopy(model)
    other.at = 0
    with pytest.raises(KeyboardInterrupt):
        make_trainer(model, accumulate=3).fit(Source(seed=5))
    assert_same(model.state_dict(), other.state_dict())
    assert all(parameter.grad is None for parameter in model.parameters())
    for each in (model, other):
        make_trainer(each, accumulate=3).fit(Source())
    assert_same(model.state_dict(), other.state_dict())


def test_what_was_collected_before_is_not_trained_on() -> None:
    model = ClickModel(dropout=0.0)
    other, batch = copy.deepcopy(model), make_batch(8, 1)
    with model.ebc.fused_optimizer.accumulate():
        model(batch.dense_features, batch.sparse_features).sum().backward()
    for each in (model, other):
        make_trainer(each).fit(Source())
    assert_same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("at", [1, 2, 9])
def test_a_trainer_that_broke_off_does_not_begin_again(at: int) -> None:
    """Not even within its first step: some tables may have been updated, and metrics have begun."""
    trainer = make_trainer(BreaksOff(at))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Source())
    with pytest.raises(ValueError, match=rf"has begun, and made {at - 1} steps: make another"):
        trainer.fit(Source())


def test_what_is_refused_before_the_start_is_no_start() -> None:
    trainer = make_trainer(ClickModel(), schedule={"decay": "linear"})
    batches = epochs(Source(), 1)
    with pytest.raises(ValueError, match=r"`schedule.decay` should be constant or plateau for"):
        trainer.fit(iter(batches))
    assert trainer.fit(batches, batches=7).steps == 14


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (0, ValueError, "`batches` should be at least 1. Received 0"),
        (-1, ValueError, "`batches` should be at least 1. Received -1"),
        (1.5, TypeError, "`batches` should be an integer. Received 1.5"),
        (True, TypeError, "`batches` should be an integer. Received True"),
        ("7", TypeError, "`batches` should be an integer. Received '7'"),
    ],
    ids=str,
)
def test_wrong_numbers_of_batches_are_refused(
    batches: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_trainer(ClickModel()).fit(Source(), batches=batches)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_more_batches_than_was_said_are_refused(accumulate: int) -> None:
    """Before they are learned from: the schedule would be over, and the epoch beyond its end."""

    class Short(Source):
        def __len__(self) -> int:
            return 5

    for train, said in ((Source(), 5), (Short(), None)):
        notes = Notes()
        trainer = make_trainer(ClickModel(), accumulate=accumulate, log_every=1, observers=[notes])
        with pytest.raises(ValueError, match=r"`batches`, .* Received 5, and more in epoch 1"):
            trainer.fit(train, batches=said)
        assert notes.steps == list(range(1, 5 // accumulate + 1))
        assert max(record.epoch for record in notes.records) <= 1.0
    assert make_trainer(ClickModel(), epochs=1).fit(Source(), batches=7).steps == 7


def test_optimizers_of_other_parameters_are_refused() -> None:
    model, fused = ClickModel(), ClickModel().ebc
    over = dict(model.over.named_parameters(prefix="over"))
    for name in over:
        rest = [param for other, param in over.items() if other != name]
        with pytest.raises(ValueError, match=rf"and no others. Received one without '{name}'\."):
            Trainer(model, torch.optim.SGD(rest, lr=0.1))
    for more, what in (
        (model.ebc.embedding_bags["item"].weight, r"with 'ebc.embedding_bags.item.weight'\."),
        (nn.Parameter(torch.zeros(3)), r"with one of shape \(3,\) that the model does not have\."),
    ):
        with pytest.raises(ValueError, match=what):
            Trainer(model, torch.optim.SGD([*over.values(), more], lr=0.1))
    with pytest.raises(ValueError, match=r"None would be right, as the model has none of these"):
        Trainer(fused, torch.optim.SGD(fused.parameters(), lr=0.1))
    model.over[0].requires_grad_(False)
    given = torch.optim.SGD(model.over[2:].parameters(), lr=0.1)
    assert Trainer(model, given).fit([make_batch(4, 1)]).steps == 1


def test_a_checkpoint_does_not_grow_with_log_every(tmp_path: Path) -> None:
    for log_every in (10, 10_000_000):
        folder = tmp_path / str(log_every)
        trainer = make_trainer(
            ClickModel(), epochs=1, log_every=log_every, checkpoints=Checkpoints(folder)
        )
        trainer.fit(Source())
        assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 1_000_000


def test_one_loader_for_both_is_refused() -> None:
    source = Source()
    with pytest.raises(ValueError, match="`valid` should be another loader than `train`"):
        make_trainer(ClickModel()).fit(source, source)


def test_data_that_break_leave_the_model_in_its_mode() -> None:
    trainer = make_trainer(ClickModel())

    def broken() -> Iterator[Batch]:
        yield make_batch(4, 1)
        raise OSError("gone")

    trainer.model.train()
    with pytest.raises(OSError, match="gone"):
        trainer.evaluate(broken())
    assert trainer.model.training


def test_stopping_at_the_end_of_an_epoch_completes_it() -> None:
    trainer = make_trainer(
        ClickModel(), epochs=9, evaluate_every=7, early_stopping={"patience": 1, "min_delta": 0.9}
    )
    result = trainer.fit(Source(batches=7), valid_batches())
    assert (result.steps, result.epochs) == (14, 2)


def test_a_batch_without_samples_is_named() -> None:
    with pytest.raises(ValueError, match=r"batches with samples. Received none for step 2"):
        make_trainer(ClickModel()).fit([make_batch(4, 1), make_batch(0, 1)])


def test_outputs_that_are_no_logits_are_named() -> None:
    class Two(ClickModel):
        def forward(self, *args: Any) -> Tensor:
            return super().forward(*args).reshape(-1).repeat(2)

    with pytest.raises(
        ValueError, match=r"a logit a sample, \(B,\) or .* of 4 samples. Received \(8,"
    ):
        make_trainer(Two()).fit([make_batch(4, 1)])


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"The model should have parameters to train. Received none"
    ):
        make_trainer(model)


def test_tables_without_a_learning_rate_are_named() -> None:
    model = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(9, 1, "user", feature_names=["user"], optimizer="adam")]
    )
    with pytest.raises(ValueError, match=r"`lr` of table 'user' should be given .* Received None"):
        make_trainer(model)


def test_observers_of_one_class_keep_their_own_state(tmp_path: Path) -> None:
    class Counter(Observer):
        def __init__(self, by: int) -> None:
            self.by, self.count = by, 0

        def stepped(self, step: int, samples: int) -> None:
            self.count += self.by

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: Any) -> None:
            self.count = state.get("count", 0)

    for stop in (9, 99):
        counters = [Counter(1), Counter(100)]
        trainer = make_trainer(
            ClickModel(),
            epochs=2,
            checkpoints=Checkpoints(tmp_path),
            observers=[*counters, StopsAt(stop)],
        )
        with pytest.raises(KeyboardInterrupt) if stop == 9 else nullcontext():
            trainer.fit(Source(batches=7), resume=True)
    assert [counter.count for counter in counters] == [14, 1400]
