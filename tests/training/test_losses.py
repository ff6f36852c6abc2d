"""Losses by name: against their formulas, sample by sample and pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchrec.datasets.transform import Target
from torchrec.datasets.utils import Batch
from torchrec.metrics import RegressionMetrics
from torchrec.metrics.multiclass import MulticlassMetrics
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.training.losses import continuation, cross_entropy, focal, pairwise
from torchrec.training.task import Task, predictions_of

pytestmark = pytest.mark.once


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_focal_is_its_formula() -> None:
    logits, targets = torch.randn(9), torch.randint(0, 2, (9,)).float()
    expected = []
    for z, y in zip(logits.tolist(), targets.tolist(), strict=True):
        p = sigmoid(z) if y else 1 - sigmoid(z)
        expected.append(-((1 - p) ** 2) * math.log(p))
    torch.testing.assert_close(focal(logits, targets), torch.tensor(expected))


def test_losses_of_classes_are_their_formulas() -> None:
    logits, targets = torch.randn(9, 4), torch.randint(0, 5, (9,)).float()
    expected = [
        -sum(
            math.log(sigmoid(z) if y > k else 1 - sigmoid(z))
            for k, z in enumerate(row.tolist())
            if k <= y
        )
        for row, y in zip(logits, targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(continuation(logits, targets), torch.tensor(expected))
    one = logits[:, 0], targets.clamp(max=1)  # of two classes, as a task of width 1 has them
    torch.testing.assert_close(continuation(*one), continuation(one[0].unsqueeze(1), one[1]))
    within = targets.clamp(max=3)
    chosen = torch.stack([row[int(y)] for row, y in zip(logits, within, strict=True)])
    torch.testing.assert_close(cross_entropy(logits, within), logits.logsumexp(1) - chosen)


@pytest.mark.parametrize("size", [0.01, 3.0])
def test_classes_in_order_have_probabilities_whatever_the_logits(size: float) -> None:
    logits, targets = size * torch.randn(99, 4), torch.randint(0, 5, (99,)).float()
    scores = Target("stars", "ordinal", classes=5).scores(logits)
    assert (scores > 0).all()
    torch.testing.assert_close(scores.sum(1), torch.ones(99))
    chosen = scores.gather(1, targets.long().unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(continuation(logits, targets), -chosen.log(), rtol=1e-4, atol=1e-6)


def slow_pairwise(scores: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
    found = []
    for i in range(len(scores)):
        costs = [
            math.log1p(math.exp(float(scores[j] - scores[i])))
            for j in range(len(scores))
            if groups[j] == groups[i] and targets[j] < targets[i]
        ]
        found.append(sum(costs) / len(costs) if costs else 0.0)
    return torch.tensor(found)


@pytest.mark.parametrize("kinds", [1, 3, 40])
def test_pairwise_compares_within_groups(kinds: int) -> None:
    torch.manual_seed(kinds)
    scores = torch.randn(40)
    targets, groups = torch.randint(0, 3, (40,)).float(), torch.randint(0, kinds, (40,)) - 7
    losses = pairwise(scores, targets, groups)
    torch.testing.assert_close(losses, slow_pairwise(scores, targets, groups))
    double = scores.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: pairwise(s, targets, groups), double)


def batch(**parts) -> Batch:
    none = KeyedJaggedTensor([], torch.empty(0, dtype=torch.int64), lengths=torch.empty(0).int())
    return Batch(torch.zeros(4, 1), none, **parts)


CLICKS, BUYS = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])


def test_samples_count_only_where_another_target_is_not_zero() -> None:
    outputs = torch.randn(4, 2)
    tasks = [Task("click"), Task("buy", given="click")]
    weights = torch.tensor([2.0, 3.0, 5.0, 7.0])
    for given in (None, weights):
        data = batch(targets={"click": CLICKS, "buy": BUYS}, weights=given)
        _, buy = predictions_of(outputs, tasks, data)
        each = [1.0] * 4 if given is None else weights.tolist()
        p = [sigmoid(z) for z in outputs[:, 1].tolist()]
        expected = -(each[1] * math.log(p[1]) + each[2] * math.log(1 - p[2])) / sum(each)
        assert buy.loss(sum(each)).item() == pytest.approx(expected, rel=1e-5)
        metrics = tasks[1].metrics()
        buy.measure(metrics)
        assert metrics.compute().weight == each[1] + each[2]
        assert metrics.compute().positives == each[1]


def test_losses_of_click_and_buy_add_up_to_the_likelihood_of_both() -> None:
    outputs = torch.randn(4, 2)
    data = batch(targets={"click": CLICKS, "buy": BUYS})
    both = predictions_of(outputs, [Task("click"), Task("buy", given="click")], data)
    likelihood = 0.0
    for (click, buy), c, b in zip(outputs.sigmoid().tolist(), CLICKS, BUYS, strict=True):
        likelihood += math.log((1 - click) if not c else click * (buy if b else 1 - buy))
    assert sum(one.loss(4).item() for one in both) == pytest.approx(-likelihood / 4, rel=1e-5)


def test_weights_of_tasks_and_classes() -> None:
    outputs, data = torch.randn(4, 1), batch(targets={"t": CLICKS})
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs[:, 0], CLICKS, reduction="none"
    )

    def loss(**options) -> Tensor:
        return predictions_of(outputs, [Task("t", **options)], data)[0].loss(4)

    torch.testing.assert_close(loss(weight=0.25), 0.25 * losses.mean())
    classes = torch.tensor([0.5, 3.0, 3.0, 0.5])
    torch.testing.assert_close(loss(class_weights=(0.5, 3.0)), (classes * losses).mean())


def test_logits_of_sampled_negatives_are_shifted_in_training_alone() -> None:
    outputs, data = torch.randn(4, 1), batch(targets={"t": CLICKS})
    (found,) = predictions_of(outputs, [Task("t", negatives=0.1)], data)
    assert torch.equal(found.outputs, outputs[:, 0])
    odds = found.of_training().outputs.double().exp() / outputs[:, 0].double().exp()
    torch.testing.assert_close(odds, torch.full((4,), 10.0, dtype=torch.float64), rtol=1e-5, atol=0)


def test_tasks_take_as_many_numbers_as_they_are_wide() -> None:
    outputs = torch.randn(4, 5)
    tasks = [
        Task("click"),
        Task("stars", loss="cross_entropy", score=_softmax, metrics=MulticlassMetrics, width=3),
        Task("seconds", loss="huber", metrics=RegressionMetrics),
    ]
    stars = torch.tensor([0.0, 2.0, 1.0, 2.0])
    data = batch(targets={"click": CLICKS, "stars": stars, "seconds": torch.rand(4)})
    click, classes, seconds = predictions_of(outputs, tasks, data)
    assert torch.equal(click.outputs, outputs[:, 0])
    assert torch.equal(classes.outputs, outputs[:, 1:4])
    assert torch.equal(seconds.outputs, outputs[:, 4])
    metrics = MulticlassMetrics()
    classes.measure(metrics)
    likelihood = torch.nn.functional.cross_entropy(outputs[:, 1:4], stars.long()).item()
    assert metrics.compute().logloss == pytest.approx(likelihood, rel=1e-5)
    with pytest.raises(ValueError, match=r"an output a sample and task, \(B, T\) = \(4, 5\)"):
        predictions_of(outputs[:, :3], tasks, data)
    with pytest.raises(
        ValueError, match=r"`stars` should be a class, 0 to 2. Received 3.0 in b, s"
    ):
        tasks[1].check(batch(targets={"stars": stars + 1}), "b")


def _softmax(outputs: Tensor) -> Tensor:
    return outputs.softmax(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "pairwise"}, "`group` of task 't' should be given for the loss 'pairwise'"),
        ({"group": "user"}, "and for no other. Received 'user' for 'binary_cross_entropy'"),
        ({"given": "t"}, "`given` of task 't' should be another target"),
        ({"weight": 0.0}, "`weight` of task 't' should be above 0. Received 0.0"),
        ({"negatives": 0.0}, "should be a share above 0 and at most 1. Received 0.0"),
        (
            {"negatives": 0.5, "loss": "focal"},
            "`negatives` of task 't' should be given for the loss",
        ),
        ({"class_weights": (1.0, -1.0)}, "should be finite and not negative. Received -1.0"),
    ],
)
def test_options_that_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Task("t", **options)


def test_what_batches_lack_is_named() -> None:
    data = batch(targets={"t": CLICKS})
    with pytest.raises(ValueError, match="the target 'click', which says where task 't' counts"):
        predictions_of(torch.zeros(4), [Task("t", given="click")], data)
    with pytest.raises(ValueError, match="the groups 'user' for the loss of task 't'"):
        predictions_of(torch.zeros(4), [Task("t", loss="pairwise", group="user")], data)
