"""Tasks: other losses and metrics, weights of samples, several targets."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss, mse_loss

from tests.training.clicks import ClickModel, assert_same, everything, make_batch, make_trainer
from torchrec.datasets._batch import join
from torchrec.datasets.utils import Batch
from torchrec.metrics import BinaryMetrics, RegressionMetrics, Report
from torchrec.training import Checkpoints, MetricsLog, Observer, Record, Task
from torchrec.training.progress import describe
from torchrec.training.task import Prediction, predictions_of

pytestmark = pytest.mark.once

BOTH = (Task("click"), Task("seconds", loss="squared_error", metrics=RegressionMetrics))


class TwoOutputs(ClickModel):
    """Outputs by target, or as columns."""

    def __init__(self, named: bool = True, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.over[3] = nn.Linear(8, 2)
        self.named = named

    def forward(self, dense: Tensor, sparse: Any) -> Any:
        click, seconds = super().forward(dense, sparse).unbind(1)
        return (
            {"seconds": seconds, "click": click} if self.named else torch.stack([click, seconds], 1)
        )


def two_targets(size: int, *seed: int) -> Batch:
    batch = make_batch(size, *seed)
    targets = {"click": batch.labels, "seconds": batch.dense_features[:, 1] * 3 + batch.labels}
    return Batch(batch.dense_features, batch.sparse_features, targets=targets)


def weighted(batch: Batch) -> Batch:
    """Weights of 0, 1 and 2."""
    weights = torch.arange(batch.labels.numel()).remainder(3).float()
    return Batch(batch.dense_features, batch.sparse_features, batch.labels, weights=weights)


def repeated(batch: Batch) -> Batch:
    """Each sample as often as it weighs, and no weights."""
    assert batch.weights is not None
    times = torch.arange(batch.labels.numel()).repeat_interleave(batch.weights.long())
    chosen = batch.index_select(times)
    return Batch(chosen.dense_features, chosen.sparse_features, chosen.labels)


def plain_loop(
    model: ClickModel, batches: list[Batch], loss_of: Callable[[Any, Batch], Tensor]
) -> None:
    optimizer = torch.optim.Adam(model.over.parameters(), lr=0.01, fused=True)
    for batch in batches:
        loss_of(model(batch.dense_features, batch.sparse_features), batch).backward()
        optimizer.step()
        optimizer.zero_grad()


BATCHES = [make_batch(size, size) for size in (16, 13, 7)]


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        (Task(), binary_cross_entropy_with_logits),
        (Task(loss="squared_error", metrics=RegressionMetrics), mse_loss),
        (Task(loss=huber_loss, metrics=RegressionMetrics), huber_loss),
        (Task(loss=nn.SoftMarginLoss(reduction="none"), metrics=RegressionMetrics), nn.SoftMarginLoss()),
    ],
    ids=["binary cross-entropy", "squared error", "mean of a function", "function a sample"],
)  # fmt: skip
def test_loss_is_that_of_a_plain_loop(task: Task, loss: Callable[..., Tensor]) -> None:
    model = ClickModel(dropout=0.0)
    other = copy.deepcopy(model)
    make_trainer(model, tasks=task, epochs=1).fit(BATCHES)
    plain_loop(other, BATCHES, lambda out, batch: loss(out.squeeze(1), batch.labels))
    if not isinstance(task.loss, nn.Module):  # that one divides by the samples elsewhere
        assert_same(model.state_dict(), other.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


@pytest.mark.parametrize("weighs", [False, True], ids=["", "weights"])
def test_labels_are_smoothed_in_the_loss_alone(weighs: bool) -> None:
    """A plain loop over y (1 - s) + s/2; losses of squares and all metrics go by the targets."""
    batches = [weighted(batch) if weighs else batch for batch in BATCHES]

    def smoothed(out: Tensor, batch: Batch) -> Tensor:
        losses = binary_cross_entropy_with_logits(
            out.squeeze(1), 0.8 * batch.labels + 0.1, reduction="none"
        )
        weights = torch.ones_like(losses) if batch.weights is None else batch.weights
        return losses @ weights / weights.sum()

    model = ClickModel("sgd", dropout=0.0)
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    records: list[Record] = []

    class Notes(Observer):
        def recorded(self, record: Record) -> None:
            records.append(record)

    trainer = make_trainer(model, label_smoothing=0.2, epochs=1, observers=[Notes()], log_every=1)
    result = trainer.fit(batches, valid=batches)
    plain_loop(other, batches, smoothed)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-7)
    first, valid = records[0], records[-1]
    assert first.loss == pytest.approx(
        float(smoothed(third(*_inputs(batches[0])), batches[0]).detach()), 1e-5
    )
    assert first.report.logloss != pytest.approx(first.loss, 1e-3)
    assert valid.loss == valid.report.logloss
    true = make_trainer(model).evaluate(batches)  # of a trainer that smooths nothing
    assert dict(true) == dict(result.valid or {})


def _inputs(batch: Batch) -> tuple[Any, Any]:
    return batch.dense_features, batch.sparse_features


def test_labels_of_cross_entropies_are_smoothed_and_no_others() -> None:
    squares = Task("seconds", loss="squared_error", metrics=RegressionMetrics)
    with pytest.raises(ValueError, match=r"`label_smoothing` .* loss 'binary_cross_entropy'. Rec"):
        make_trainer(ClickModel(), tasks=squares, label_smoothing=0.1)
    prediction = Prediction(squares, torch.zeros(2), torch.tensor([0.0, 2.0]), None)
    assert prediction.loss(2, label_smoothing=0.5) == prediction.loss(2) == 2.0


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "a function"])
def test_a_sample_of_weight_two_is_two_samples(loss: str, accumulate: int) -> None:
    """In the loss and its gradient, in the metrics, and across batches of a step."""
    function = nn.BCEWithLogitsLoss(reduction="none")
    task = Task(loss=function if loss == "a function" else loss)
    batches = [weighted(batch) for batch in BATCHES]
    model = ClickModel("sgd", dropout=0.0)
    other = copy.deepcopy(model)
    one = make_trainer(model, tasks=task, accumulate=accumulate)
    two = make_trainer(other, tasks=task, accumulate=accumulate)
    mine = one.fit(batches, valid=batches)
    theirs = two.fit([repeated(b) for b in batches], valid=[repeated(b) for b in batches])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-6)
    for split in ("train", "valid"):
        found, expected = getattr(mine, split), getattr(theirs, split)
        assert dict(found) == pytest.approx(dict(expected), rel=1e-5)
        assert found.weight == expected.samples == expected.weight
        assert found.samples == 36


def test_samples_that_all_weigh_nothing_teach_nothing() -> None:
    batch = weighted(make_batch(5, 1))
    batch.weights = torch.zeros(5)
    model = ClickModel("sgd")
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(model, rule="sgd")
    with pytest.raises(ValueError, match=r"Received auc, which is not: there are no samples"):
        make_trainer(ClickModel(), early_stopping={"metric": "auc"}).fit([batch], valid=[batch])
    trainer.fit([batch])
    assert_same(model.state_dict(), before)


def test_weights_that_cannot_count_are_refused() -> None:
    batch = weighted(make_batch(5, 1))
    with pytest.raises(
        ValueError, match=r"one a sample, \(5,\), for batches with weights. Received \(\)"
    ):
        make_trainer(ClickModel(), tasks=Task(loss=nn.BCEWithLogitsLoss())).fit([batch])
    with pytest.raises(
        ValueError, match=r"all have weights, or none. Received 2 batches, 1 of them"
    ):
        make_trainer(ClickModel(), accumulate=2).fit([batch, make_batch(5, 2)])


SECONDS = Task(loss="squared_error", metrics=RegressionMetrics)
SOFT = Task(metrics=RegressionMetrics)
FREE = Task(loss=lambda out, target: (out - target.nan_to_num()) ** 2, metrics=RegressionMetrics)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("task", "part", "value", "message"),
    [
        (Task(), "weights", -1.0, "`weights` should be finite and not negative. Received -1.0"),
        (Task(), "weights", math.nan, "`weights` should be finite and not negative. Received nan"),
        (FREE, "weights", math.inf, "`weights` should be finite and not negative. Received inf"),
        (Task(), "labels", math.nan, "`labels` should be 0 or 1. Received nan"),
        (Task(), "labels", 2.0, "`labels` should be 0 or 1. Received 2.0"),
        (Task(), "labels", 0.5, "`labels` should be 0 or 1. Received 0.5"),
        (SOFT, "labels", -0.5, "`labels` should be between 0 and 1. Received -0.5"),
        (SOFT, "labels", math.nan, "`labels` should be between 0 and 1. Received nan"),
        (SECONDS, "labels", math.nan, "`labels` should be finite. Received nan"),
        (SECONDS, "labels", -math.inf, "`labels` should be finite. Received -inf"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_batch_is_named_before_it_is_learned_from(
    task: Task, part: str, value: float, message: str, accumulate: int
) -> None:
    """Though only the second batch is wrong, and the step is of both."""
    good, bad = weighted(make_batch(5, 1)), weighted(make_batch(6, 2))
    getattr(bad, part)[3] = value
    model, other = ClickModel("sgd", dropout=0.0), ClickModel("sgd", dropout=0.0)
    other.load_state_dict(model.state_dict())
    trainer = make_trainer(model, rule="sgd", tasks=task, accumulate=accumulate)
    with pytest.raises(ValueError, match=rf"{message} in batch 2 of epoch 1, sample 3\."):
        trainer.fit([good, bad])
    if accumulate == 1:
        make_trainer(other, rule="sgd", tasks=task, epochs=1).fit([good])
    assert_same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("weights", torch.ones(2), r"`weights` should be as many .* \(5\). Received 2 in batch 1"),
        (
            "weights",
            torch.ones(5, 2),
            r"`weights` should be as many .* \(5\). Received 10 in batch",
        ),
        ("labels", torch.ones(6), r"`labels` should be as many .* \(5\). Received 6 in batch 1"),
    ],
    ids=["fewer weights", "a matrix of weights", "more labels"],
)
def test_weights_and_labels_are_one_a_sample(part: str, value: Tensor, message: str) -> None:
    batch = weighted(make_batch(5, 1))
    setattr(batch, part, value)
    with pytest.raises(ValueError, match=message):
        make_trainer(ClickModel()).fit([batch])


def test_what_a_task_can_learn_from_is_not_refused() -> None:
    """Soft labels, columns, integers, and what a loss of one's own makes of NaN."""
    batch = weighted(make_batch(4, 1))
    assert batch.weights is not None
    for task, labels in (
        (SOFT, torch.tensor([0.25, 1.0, 0.0, 0.5])),
        (SECONDS, torch.tensor([-3, 400, 0, 1])),
        (Task(), torch.tensor([[True], [False], [True], [False]])),
        (Task(), torch.tensor([1, 0, 0, 1])),
    ):
        batch.labels, batch.weights = labels, batch.weights.reshape(-1, 1)
        assert make_trainer(ClickModel(), tasks=task).fit([batch]).train.samples == 4
    FREE.check(Batch(batch.dense_features, batch.sparse_features, torch.full((4,), math.nan)), "")


@pytest.mark.parametrize("named", [True, False], ids=["by target", "columns"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_several_tasks_are_a_plain_loop_over_the_sum(named: bool, accumulate: int) -> None:
    batches = [two_targets(size, size) for size in (16, 13, 16, 9)]
    model = TwoOutputs(named)
    other = copy.deepcopy(model)
    other.named = True
    make_trainer(model, tasks=BOTH, epochs=1, accumulate=accumulate).fit(batches)
    steps = batches if accumulate == 1 else [join(batches[:2]), join(batches[2:])]

    def loss_of(out: dict[str, Tensor], batch: Batch) -> Tensor:
        click = binary_cross_entropy_with_logits(out["click"], batch.targets["click"])
        return click + mse_loss(out["seconds"], batch.targets["seconds"])

    plain_loop(other, steps, loss_of)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-6)


class Keep(Observer):
    def __init__(self) -> None:
        self.records: list[Record] = []

    def recorded(self, record: Record) -> None:
        self.records.append(record)


def test_several_tasks_are_reported_by_name(tmp_path: Path) -> None:
    batches, keep = [two_targets(16, 1), two_targets(9, 2)], Keep()
    log = MetricsLog(tmp_path / "metrics.jsonl")
    model = TwoOutputs()
    result = make_trainer(model, tasks=BOTH, observers=[log, keep]).fit(batches, valid=batches)
    model.eval()
    seconds, click = RegressionMetrics(), BinaryMetrics()
    with torch.no_grad():
        for batch in batches:
            out = model(batch.dense_features, batch.sparse_features)
            seconds.update(out["seconds"], batch.targets["seconds"])
            click.update(out["click"], batch.targets["click"])
    assert result.valid is not None
    assert result.valid["seconds.mse"] == seconds.compute().mse
    assert result.valid["click.auc"] == click.compute().auc
    last = keep.records[-1]
    assert (last.split, last.report) == ("valid", result.valid)
    assert last.loss == pytest.approx(click.compute().logloss + seconds.compute().mse)
    line = json.loads(log.path.read_text().splitlines()[-1])
    assert line["seconds.mse"] == result.valid["seconds.mse"]
    assert f"click AUC {result.valid['click.auc']:.4f}" in describe(last)


def test_loss_of_an_evaluation_without_a_metric_for_it() -> None:
    """The mean over the samples, by weight, whatever the batches."""
    batches, keep = [weighted(batch) for batch in BATCHES], Keep()
    task = Task(loss=nn.BCEWithLogitsLoss(reduction="none"))
    valid = [*batches, make_batch(0, 1)]
    make_trainer(ClickModel(), tasks=task, observers=[keep]).fit(batches, valid=valid)
    last = keep.records[-1]
    assert last.loss == pytest.approx(last.report.logloss, rel=1e-6)


def test_score_is_what_the_metrics_are_given() -> None:
    model, batch = ClickModel(), make_batch(9, 1)
    task = Task(score="sigmoid", metrics=RegressionMetrics)
    report = make_trainer(model, tasks=task).evaluate([batch])
    model.eval()
    chances = torch.sigmoid(model(batch.dense_features, batch.sparse_features).squeeze(1))
    assert report.mse == pytest.approx((chances - batch.labels).square().mean().item())
    doubled = Task(score=lambda out: 2 * out, metrics=RegressionMetrics)
    once = Task(metrics=RegressionMetrics)
    zeros = Batch(batch.dense_features, batch.sparse_features, torch.zeros(9))
    reports = [make_trainer(model, tasks=each).evaluate([zeros]) for each in (doubled, once)]
    assert reports[0].mae == pytest.approx(2 * reports[1].mae)


class Interrupted(Exception):  # noqa: N818
    pass


class Interrupt(Observer):
    def stepped(self, step: int, samples: int) -> None:
        if step == 5:
            raise Interrupted


def test_several_tasks_go_on_bit_for_bit(tmp_path: Path) -> None:
    batches = [two_targets(size, size) for size in (16, 13, 9)]

    def trainer(folder: str, *observers: Observer) -> Any:
        torch.manual_seed(0)
        options: dict[str, Any] = {"checkpoint_every": 2, "log_every": 3, "epochs": 3}
        stopping = {"metric": "seconds.mse", "patience": 9}
        return make_trainer(
            TwoOutputs(dropout=0.2),
            tasks=BOTH,
            checkpoints=Checkpoints(tmp_path / folder),
            observers=observers,
            early_stopping=stopping,
            **options,
        )

    whole = trainer("whole")
    expected = whole.fit(batches, valid=batches)
    with pytest.raises(Interrupted):
        trainer("parts", Interrupt()).fit(batches, valid=batches)
    again = trainer("parts")
    result = again.fit(batches, valid=batches, resume=True)
    assert_same(everything(again.model, again.optimizer), everything(whole.model, whole.optimizer))
    assert (result.train, result.valid) == (expected.train, expected.valid)
    with pytest.raises(ValueError, match=r"targets \['click', 'seconds'\], as when .* \['click'\]"):
        make_trainer(TwoOutputs(), tasks=BOTH[:1], checkpoints=Checkpoints(tmp_path / "parts")).fit(
            batches, resume=True
        )


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("click.acu", r"one of click.ne, click.auc, .* Received click.acu; did you mean 'click.auc'\?"),
        ("auc", r"should be one of click.ne, .* Received auc"),
        ("click.calibration", "better the higher, or the lower: .* Received click.calibration"),
    ],
)  # fmt: skip
def test_stopping_by_what_no_report_has_is_refused(metric: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(TwoOutputs(), tasks=BOTH, early_stopping={"metric": metric})


def test_stopping_by_a_metric_of_ones_own(tmp_path: Path) -> None:
    """Whatever has the methods of `Metrics`; its direction is in the report."""

    class Hits(RegressionMetrics):
        def compute(self, curves: bool = False) -> Report:
            report = super().compute()
            return Report({"hits": -report.mse}, report.counts, better={"hits": "higher"})

    task = Task(loss="squared_error", metrics=Hits)
    stopping = {"metric": "hits", "patience": 1}
    result = make_trainer(ClickModel(), tasks=task, epochs=99, early_stopping=stopping).fit(
        [make_batch(40, 1)], valid=[make_batch(40, 2)]
    )
    assert 1 < result.epochs < 99
    assert result.best_step == result.steps - 1
    assert result.valid is not None
    assert list(result.valid) == ["hits"]


@pytest.mark.parametrize("name", ["loss", "step", "checksum"])
def test_metrics_with_the_name_of_something_else_are_refused(name: str) -> None:
    class Own(RegressionMetrics):
        def compute(self, curves: bool = False) -> Report:
            return Report({name: 0.0})

    with pytest.raises(ValueError, match=rf"other names than the fields of .* Received '{name}'"):
        make_trainer(ClickModel(), tasks=Task(metrics=Own))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"target": 3}, TypeError, "`target` should be a name. Received 3"),
        ({"target": None}, TypeError, "`target` should be a name. Received None"),
        ({"target": ""}, ValueError, "`target` should be a name. Received an empty one"),
        ({"loss": ["x"]}, ValueError, r"`loss` of task 'labels' should be a f.* Received \['x'\]"),
        ({"loss": None}, ValueError, "`loss` of task 'labels' should be a f.* Received None"),
        ({"score": {}}, ValueError, r"`score` of task 'labels' should be a f.* Received \{\}"),
        ({"metrics": BinaryMetrics()}, TypeError, "`metrics` of task 'labels' should make metrics"),
        ({"metrics": "auc"}, TypeError, "`metrics` of task 'labels' should .* Received 'auc'"),
        ({"metrics": dict}, TypeError, "`metrics` of task 'labels' should .* Received <class 'dict'"),
    ],
)  # fmt: skip
def test_arguments_of_tasks_are_checked(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Task(**wrong)


@pytest.mark.parametrize("metrics", [BinaryMetrics, partial(BinaryMetrics, buffer=9)])
def test_metrics_of_logits_are_given_nothing_else(metrics: Any) -> None:
    with pytest.raises(ValueError, match=r"`score` of task 'x' should be 'identity' for BinaryM"):
        Task("x", score="sigmoid", metrics=metrics)
    with pytest.raises(ValueError, match=r"`metrics` of task 'x' should .* as RegressionMetrics"):
        Task("x", loss="squared_error", metrics=metrics)
    # Of functions nobody knows; and metrics of numbers take either.
    assert Task("x", loss="squared_error", score=torch.logit, metrics=metrics).loss
    assert Task("x", loss="squared_error", score="sigmoid", metrics=RegressionMetrics).loss


def test_wrong_tasks_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`loss` of task 'x' should be a function or one of binary_"
    ):
        Task("x", loss="hinge")
    with pytest.raises(
        ValueError, match=r"`score` of task 'x' should be .* identity, sigmoid. Received"
    ):
        Task("x", score="softmax")
    for tasks in ([], [Task("a"), Task("a")]):
        with pytest.raises(
            ValueError, match=r"one or more, of targets that differ. Received the ta"
        ):
            make_trainer(ClickModel(), tasks=tasks)
    with pytest.raises(ValueError, match=r"the target 'x'. Received targets \['labels'\]"):
        make_trainer(ClickModel(), tasks=Task("x")).fit([make_batch(4, 1)])
    matrix = Task("x", loss=lambda out, target: torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"one a sample, \(3,\), or their mean. Received \(2, 2\)"):
        matrix.loss_of(torch.zeros(3), torch.zeros(3), None, 3)


def test_wrong_outputs_are_refused() -> None:
    batch = two_targets(3, 1)
    with pytest.raises(
        ValueError, match=r"\(B, T\) = \(3, 2\), or a dictionary .* Received \(3,\)"
    ):
        predictions_of(torch.zeros(3), BOTH, batch)
    with pytest.raises(
        ValueError, match=r"for the target 'seconds'. Received outputs for \['click'"
    ):
        predictions_of({"click": torch.zeros(3)}, BOTH, batch)
    with pytest.raises(ValueError, match=r"a sample for 'click', .* of 3 samples. Received \(2,\)"):
        predictions_of({"click": torch.zeros(2), "seconds": torch.zeros(3)}, BOTH, batch)
    with pytest.raises(ValueError, match=r"Received list"):
        predictions_of([1.0] * 3, BOTH[:1], batch)
    (half,) = predictions_of({"click": torch.zeros(3, 1).bfloat16()}, BOTH[:1], batch)
    assert (half.outputs.dtype, half.outputs.shape) == (torch.float32, (3,))
    assert torch.equal(half.targets, batch.targets["click"])
