"""The AUC of all samples in constant memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed.ranks import run
from torchrec.metrics.auc import AUCMetric
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo
from torchrec.metrics.past_scores import PastScores, areas, compressed
from torchrec.ops.metrics import reference

pytestmark = pytest.mark.once

TASKS = [RecTaskInfo(name=name) for name in ("a", "b")]


def draw(size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two tasks with ties, fractional labels in the second, and weights."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, size, generator=random).round(decimals=2)
    labels = (torch.rand(2, size, generator=random) < scores).float()
    labels[1] *= 0.5
    return scores, labels, torch.rand(2, size, generator=random).round(decimals=1)


def make(window: int, rank: int = 0, world_size: int = 1, **options: Any) -> AUCMetric:
    return AUCMetric(
        world_size=world_size,
        my_rank=rank,
        batch_size=8,
        tasks=TASKS,
        compute_mode=RecComputeMode.FUSED_TASKS_COMPUTATION,
        window_size=window,
        lifetime_auc=True,
        **options,
    )


def feed(metric: AUCMetric, samples: tuple[Tensor, Tensor, Tensor], sizes: list[int]) -> None:
    for parts in zip(*(x.split(sizes, -1) for x in samples), strict=True):
        metric.update(predictions=parts[0], labels=parts[1], weights=parts[2])


def lifetime(metric: AUCMetric) -> list[float]:
    found = metric.compute()
    return [found[f"auc-{task.name}|lifetime_auc"].item() for task in TASKS]


@pytest.mark.parametrize("window", [3, 50, 300], ids=lambda w: f"window={w}")
def test_it_is_that_of_all_samples_whatever_the_window(window: int) -> None:
    """Batches of which some are larger than the window, one is empty, and some stay in it."""
    samples = draw(200)
    metric = make(window)
    feed(metric, samples, [60, 0, 1, 79, 60])
    expected = reference.roc_areas(*samples).tolist()
    assert lifetime(metric) == pytest.approx(expected, rel=1e-6)
    last = reference.roc_areas(*(x[:, -window:] for x in samples))
    assert metric.compute()["auc-a|window_auc"].item() == pytest.approx(last[0].item(), rel=1e-6)
    metric.reset()
    assert lifetime(metric) == [0.5, 0.5]


def test_a_nan_is_of_its_task_alone_and_for_good() -> None:
    samples = draw(40)
    samples[0][1, 3] = math.nan
    metric = make(10)
    feed(metric, samples, [20, 20])
    first, second = lifetime(metric)
    assert (math.isnan(first), math.isnan(second)) == (False, True)
    assert not metric.compute()["auc-b|window_auc"].isnan()


def test_it_goes_on_from_a_checkpoint() -> None:
    samples = draw(120)
    early, late = (tuple(x.split(60, -1)[i] for x in samples) for i in (0, 1))
    saved = make(25)
    feed(saved, early, [30, 30])
    again = make(25)
    again.load_state_dict(saved.state_dict())
    feed(again, late, [30, 30])
    assert lifetime(again) == pytest.approx(reference.roc_areas(*samples).tolist(), rel=1e-6)


def _on_a_rank() -> list[float]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    samples = draw(120)
    metric = make(30, rank, world_size, compute_on_all_ranks=True)
    feed(metric, tuple(x[:, rank::world_size] for x in samples), [10] * (120 // world_size // 10))  # type: ignore[arg-type]
    metric.sync()
    saved = {name: x.clone() for name, x in metric.state_dict().items()}
    metric.unsync()
    before = lifetime(metric)
    again = make(30, rank, world_size, compute_on_all_ranks=True)
    again.load_state_dict(saved)  # on all ranks, and yet counted once
    return [*before, *lifetime(again)]


def test_a_checkpoint_without_it_or_for_one_without_is_refused_unless_told_so() -> None:
    kept = make(20)
    feed(kept, draw(40), [20, 20])
    without = AUCMetric(world_size=1, my_rank=0, batch_size=8, tasks=TASKS, window_size=20)
    with pytest.raises(RuntimeError, match=r"Missing key.*past_scores"):
        make(20).load_state_dict(without.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*past_scores"):
        without.load_state_dict(kept.state_dict())
    before = lifetime(kept)
    kept.load_state_dict(without.state_dict(), strict=False)
    assert lifetime(kept) == before


@pytest.mark.parametrize("world_size", [2])
def test_ranks_report_that_of_all_of_their_samples(world_size: int) -> None:
    expected = reference.roc_areas(*draw(120)).tolist()
    for found in run(_on_a_rank, world_size):
        assert isinstance(found, list), found
        assert found == pytest.approx([*expected, *expected], rel=1e-6)


def _normal(size: int, random: torch.Generator, distance: float) -> tuple[Tensor, Tensor]:
    """Scores of two normal distributions of unit variance, whose means are so far apart."""
    labels = torch.rand(1, size, generator=random).round()
    return torch.randn(1, size, generator=random) + distance * labels, labels


def test_compressed_it_is_within_its_bound() -> None:
    random = torch.Generator().manual_seed(0)
    past, resolution = PastScores(1, resolution=200), 200
    columns = []
    for _ in range(4):
        scores, labels = _normal(140_000, random, 1.0)
        past.add(scores, labels, torch.ones_like(scores))
        columns.append((scores, labels))
    packed = past.packed()
    assert packed.shape[1] <= 8 * resolution
    exact = reference.roc_areas(*(torch.cat(x, -1) for x in zip(*columns, strict=True)), None)
    error = abs(areas([packed], 1) - exact).item()
    assert error < 2 / resolution * 4
    assert error < 1e-4  # of a smooth distribution far less
    assert compressed([packed, packed], 1, resolution=200).shape[1] <= 8 * resolution


MANY_SAMPLES = """
import json, torch
from torchrec.metrics.auc import AUCMetric
from torchrec.metrics.metrics_config import RecTaskInfo
from torchrec.training.memory import peak_rss_bytes

torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)
metric = AUCMetric(1, 0, 1_000_000, [RecTaskInfo(name="a")], window_size=100_000, lifetime_auc=True)
peaks = []
for step in range(100):
    labels = torch.rand(1_000_000, generator=random).round()
    scores = torch.randn(1_000_000, generator=random) + labels
    metric.update(predictions={"a": scores}, labels={"a": labels}, weights=None)
    if step in (20, 99):
        peaks.append(peak_rss_bytes())
print(json.dumps([*peaks, metric.compute()["auc-a|lifetime_auc"].item()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_of_a_hundred_million_samples_it_is_that_of_the_formula_in_constant_memory() -> None:
    """Of normal scores at a distance d the AUC is Phi(d / sqrt 2); by chance it differs by 3e-5."""
    done = subprocess.run([sys.executable, "-c", MANY_SAMPLES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last, found = json.loads(done.stdout)
    assert found == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=1.5e-4)
    assert last - first < 60e6  # bytes; what has come since is 800 MB
