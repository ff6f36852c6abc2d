"""Metrics of groups, against loops over the groups."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import groupby

import pytest
import torch
from torch import Tensor

from torchrec.metrics.grouped import NO_GROUP, GroupedMetrics

pytestmark = pytest.mark.once

NAMES = [
    "gauc(user)",
    "ndcg@3(user)",
    "recall@2(user)",
    "precision@2(user)",
    "hit@1(user)",
    "mrr(user)",
    "ndcg@100(query)",
]


def draw(size: int, users: int, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Scores with ties, graded labels, and two kinds of groups of uneven sizes."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(size, generator=random).round(decimals=1)
    labels = (torch.rand(size, generator=random) * 4).floor().sub(1).clamp(min=0)
    user = (torch.rand(size, generator=random).square() * users).long() - 5
    return scores, labels, {"user": user, "query": torch.arange(size) // 7}


def one_group(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Return the metrics of one group: pairs of score and label."""
    ordered = [y for _, y in sorted(samples, key=lambda x: (-x[0], x[1]))]
    found: dict[str, float] = {}
    positives = sum(y > 0 for y in ordered)
    if positives < len(ordered) and positives and len({s for s, _ in samples}) > 1:
        pairs = [(a, b) for a, y in samples if y > 0 for b, z in samples if z == 0]
        found["gauc"] = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    if positives:
        for k in (3, 100):
            gain, best = (
                sum(y / math.log2(i + 2) for i, y in enumerate(order[:k]))
                for order in (ordered, sorted(ordered, reverse=True))
            )
            found[f"ndcg@{k}"] = gain / best
        hits = sum(y > 0 for y in ordered[:2])
        found["recall@2"], found["precision@2"] = hits / positives, hits / 2
        found["hit@1"] = float(ordered[0] > 0)
        found["mrr"] = 1 / (1 + next(i for i, y in enumerate(ordered) if y > 0))
    return found


def in_loops(scores: Tensor, labels: Tensor, group: Tensor) -> dict[str, float]:
    rows = sorted(zip(group.tolist(), scores.tolist(), labels.tolist(), strict=True))
    of_groups = [
        one_group([(s, y) for _, s, y in part]) for _, part in groupby(rows, lambda row: row[0])
    ]
    found = {}
    for name in of_groups[0].keys() | of_groups[-1].keys():
        values = [values[name] for values in of_groups if name in values]
        found[name] = sum(values) / len(values)
    return found


def test_metrics_are_those_of_loops_over_groups() -> None:
    scores, labels, groups = draw(600, 40)
    metrics = GroupedMetrics(NAMES)
    for start in range(0, 600, 77):
        part = slice(start, start + 77)
        parts = {name: ids[part] for name, ids in groups.items()}
        metrics.update(scores[part], labels[part], groups=parts)
    report = metrics.compute()
    user, query = (in_loops(scores, labels, ids) for ids in groups.values())
    expected = {name: (user if "user" in name else query)[name.split("(")[0]] for name in NAMES}
    assert dict(report) == pytest.approx(expected, rel=1e-6)
    assert list(report) == NAMES
    assert report.counts == {"groups(user)": len(groups["user"].unique()), "groups(query)": 86}
    assert metrics.columns == ["user", "query"]


def test_who_tells_nothing_apart_gains_nothing_by_the_order_of_the_rows() -> None:
    metrics = GroupedMetrics(["hit@1(user)", "mrr(user)", "ndcg@1(user)"])
    metrics.update(
        torch.zeros(4), torch.tensor([1.0, 0, 0, 0]), groups={"user": torch.ones(4).long()}
    )
    assert dict(metrics.compute()) == {"hit@1(user)": 0.0, "mrr(user)": 0.25, "ndcg@1(user)": 0.0}


def test_weights_are_of_pairs_and_leave_out() -> None:
    """The positive is above one negative of weight 3, and below one of weight 1; a fourth row counts nothing."""
    scores, labels = torch.tensor([0.5, 0.3, 0.8, 0.9]), torch.tensor([1.0, 0, 0, 0])
    metrics = GroupedMetrics(["gauc(user)", "mrr(user)"])
    weights = torch.tensor([1.0, 3.0, 1.0, 0.0])
    metrics.update(scores, labels, weights, groups={"user": torch.ones(4).long()})
    assert dict(metrics.compute()) == {"gauc(user)": 0.75, "mrr(user)": 0.5}


def test_samples_without_a_group_are_left_out() -> None:
    ids = torch.tensor([1, 1, NO_GROUP, NO_GROUP])
    metrics = GroupedMetrics(["mrr(user)"])
    metrics.update(torch.arange(4.0), torch.tensor([1.0, 0, 0, 1]), groups={"user": ids})
    report = metrics.compute()
    assert (dict(report), report.counts) == ({"mrr(user)": 0.5}, {"groups(user)": 1})


@pytest.mark.parametrize("labels", [[], [0.0, 0.0], [1.0, 1.0]])
def test_what_no_group_has_is_not_defined(labels: list[float]) -> None:
    metrics = GroupedMetrics(["gauc(user)", "mrr(user)"])
    size = len(labels)
    groups = {"user": torch.zeros(size, dtype=torch.int64)}
    metrics.update(torch.arange(float(size)), torch.tensor(labels), groups=groups)
    report = metrics.compute()
    assert math.isnan(report["gauc(user)"])
    assert "both classes" in report.undefined["gauc(user)"]
    if sum(labels):
        assert report["mrr(user)"] == 1.0
    else:
        assert report.undefined["mrr(user)"] == "no group has a positive label"


def test_of_too_many_samples_whole_groups_are_kept_whatever_their_order() -> None:
    size, most = 6000, 500
    scores, labels, groups = draw(size, 2000)
    found = []
    for order in (
        torch.arange(size),
        torch.randperm(size, generator=torch.Generator().manual_seed(1)),
    ):
        metrics = GroupedMetrics(["gauc(user)", "mrr(user)"], max_samples=most)
        for part in order.split(300):
            metrics.update(scores[part], labels[part], groups={"user": groups["user"][part]})
        found.append(metrics.compute())
        state = metrics.state_dict()
        assert len(state["user.ids"]) <= most
        for user in state["user.ids"].unique()[:5]:
            assert int((state["user.ids"] == user).sum()) == int((groups["user"] == user).sum())
    assert found[0] == found[1]
    everything = GroupedMetrics(["gauc(user)", "mrr(user)"])
    everything.update(scores, labels, groups={"user": groups["user"]})
    kept, whole = found[0], everything.compute()
    assert 50 < kept.counts["groups(user)"] < whole.counts["groups(user)"] / 4
    for name in whole:
        assert abs(kept[name] - whole[name]) < 2 / math.sqrt(kept.counts["groups(user)"])


MANY_SAMPLES = """
import json, math, torch
from torchrec.metrics.grouped import GroupedMetrics
from torchrec.training.memory import peak_rss_bytes

torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)
metrics = GroupedMetrics(["gauc(user)"], max_samples=2**20)
peaks = []
for step in range(4096):
    labels = (torch.rand(4096, generator=random) < 0.3).float()
    scores = torch.randn(4096, generator=random) + labels
    metrics.update(scores, labels, groups={"user": torch.randint(200_000, (4096,), generator=random)})
    if step in (0, 1023, 4095):
        peaks.append(peak_rss_bytes())
report = metrics.compute()
print(json.dumps([*peaks, report["gauc(user)"], report.counts["groups(user)"]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_of_many_samples_it_is_that_of_the_formula_in_constant_memory() -> None:
    """Of normal scores at a distance d the AUC is Phi(d / sqrt 2). These are 16.8 million samples."""
    done = subprocess.run([sys.executable, "-c", MANY_SAMPLES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, quarter, last, found, groups = json.loads(done.stdout)
    assert 5000 < groups < 20_000
    assert abs(found - 0.5 * (1 + math.erf(0.5))) < 0.98 / math.sqrt(groups)
    kept = 20 * (2**20 + 2**17)  # bytes
    assert last - first < 4 * kept
    assert last - quarter < kept  # 250 MB have come since


def test_a_group_larger_than_what_fits_is_kept_whole() -> None:
    metrics = GroupedMetrics(["mrr(user)"], max_samples=10)
    labels = torch.zeros(100)
    labels[0] = 1.0
    metrics.update(-torch.arange(100.0), labels, groups={"user": torch.full((100,), 3)})
    assert metrics.compute()["mrr(user)"] == 1.0


def test_merged_and_from_a_state_it_is_as_if_all_had_come_to_one() -> None:
    scores, labels, groups = draw(400, 40)
    whole = GroupedMetrics(NAMES, max_samples=300)
    parts = [GroupedMetrics(NAMES, max_samples=300) for _ in range(3)]
    for i in range(3):
        rows = slice(i, None, 3)
        given = scores[rows], labels[rows], torch.ones(len(scores[rows]))
        of_rows = {name: ids[rows] for name, ids in groups.items()}
        whole.update(*given, groups=of_rows)
        parts[i].update(*given, groups=of_rows)
    for part in parts[1:]:
        again = GroupedMetrics(NAMES, max_samples=300)
        again.load_state_dict(part.state_dict())
        parts[0].merge(again)
    assert dict(parts[0].compute()) == pytest.approx(dict(whole.compute()), rel=1e-12)
    parts[0].reset()
    assert parts[0].compute().counts == {"groups(user)": 0, "groups(query)": 0}


def test_what_comes_in_inference_mode_is_reported_and_added_to_outside() -> None:
    found = []
    for inside in (True, False):
        metrics = GroupedMetrics(["gauc(user)"], max_samples=100)
        for seed in range(3):
            scores, labels, groups = draw(150, 40, seed)
            labels[::7] = 0
            with torch.inference_mode(inside and seed < 2):
                metrics.update(scores.clone(), labels, groups={"user": groups["user"]})
        again = GroupedMetrics(["gauc(user)"], max_samples=100)
        with torch.inference_mode(inside):
            again.load_state_dict(metrics.state_dict())
        again.update(scores, labels, groups={"user": groups["user"]})
        found += [metrics.compute(), again.compute()]
    assert found[:2] == found[2:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"groups": {"query": torch.zeros(2)}},
            r"the column 'user', as gauc\(user\) asks for. .*\['query'\]",
        ),
        (
            {"groups": {"user": torch.zeros(3)}},
            r"`groups\['user'\]` should be as many as scores \(2\). Received 3",
        ),
        ({"targets": torch.zeros(1)}, r"`targets` should be as many"),
        (
            {"groups": {"user": torch.tensor([1.5, 1.2])}},
            r"`groups\['user'\]` should be integers, ids of the groups. Received torch.float32",
        ),
    ],
)
def test_other_inputs_are_refused(changes: dict[str, object], message: str) -> None:
    given = {"targets": torch.zeros(2), "groups": {"user": torch.zeros(2)}, **changes}
    with pytest.raises(ValueError, match=message):
        GroupedMetrics(["gauc(user)"]).update(torch.zeros(2), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("score", "label", "message"),
    [
        (math.nan, 1.0, "`scores` should be numbers. Received nan"),
        (0.0, math.nan, "`targets` should be finite and not negative. Received nan"),
        (0.0, -1.0, "`targets` should be finite and not negative. Received -1.0"),
    ],
)
def test_what_has_no_place_in_an_order_is_refused(score: float, label: float, message: str) -> None:
    metrics = GroupedMetrics(["gauc(user)"])
    scores, labels = torch.tensor([score, 0.5]), torch.tensor([label, 1.0])
    groups = {"user": torch.tensor([3, 3])}
    with pytest.raises(ValueError, match=message):
        metrics.update(scores, labels, groups=groups)
    # Of samples that count for nothing it does not matter.
    metrics.update(scores, labels, torch.tensor([0.0, 1.0]), groups=groups)
    metrics.update(scores, labels, groups={"user": torch.tensor([NO_GROUP, 3])})
    assert metrics.compute().counts["groups(user)"] == 1


def test_metrics_of_all_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"should be among gauc, mrr, .* Received auc"):
        GroupedMetrics(["auc"])
    with pytest.raises(ValueError, match="`max_samples` should be at least 1"):
        GroupedMetrics(["mrr(user)"], max_samples=0)
