"""Metrics of several ranks: the numbers of one process on all samples, from one exchange."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed.ranks import run
from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
from torchrec.metrics.metrics_config import (
    MetricsConfig,
    RecComputeMode,
    RecMetricDef,
    RecMetricEnum,
    RecTaskInfo,
)

pytestmark = pytest.mark.once

TASKS = [
    RecTaskInfo(name=f"t{i}", label_name=f"l{i}", prediction_name=f"p{i}", weight_name=f"w{i}")
    for i in range(2)
]
KINDS = [RecMetricEnum.NE, RecMetricEnum.MSE, RecMetricEnum.AUC]


def _module(
    rank: int, ranks: int, mode: RecComputeMode, kinds: list[RecMetricEnum], **options: Any
) -> RecMetricModule:
    definition = RecMetricDef(rec_tasks=TASKS, window_size=8 * ranks)
    return generate_metric_module(
        RecMetricModule,
        MetricsConfig(
            rec_tasks=TASKS,
            rec_metrics=dict.fromkeys(kinds, definition),
            rec_compute_mode=mode,
            **options,
        ),
        batch_size=4,
        world_size=ranks,
        my_rank=rank,
        state_metrics_mapping={},
        device=torch.device("cpu"),
    )


def _out(rank: int, step: int) -> dict[str, Tensor]:
    # Uneven, and the last rank has nothing in the first steps: labels are dyadic, so that sums are exact.
    draw = torch.Generator().manual_seed(100 * rank + step)
    size = 0 if rank == dist.get_world_size() - 1 and step < 2 else 1 + (rank + step) % 4
    found: dict[str, Tensor] = {}
    for i in range(2):
        found[f"l{i}"] = torch.randint(0, 2, (size,), generator=draw).float()
        found[f"p{i}"] = torch.randint(1, 16, (size,), generator=draw) / 16
        found[f"w{i}"] = torch.randint(1, 4, (size,), generator=draw).float()
    return found


class _Collectives:
    """Counts what is exchanged, by whatever collective."""

    KINDS = (
        "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "reduce", "gather",
        "all_to_all", "all_to_all_single", "broadcast", "reduce_scatter_tensor", "barrier",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count = 0
        self._kinds = {name: getattr(dist, name) for name in self.KINDS}

    def __enter__(self) -> _Collectives:
        for name, collective in self._kinds.items():
            setattr(dist, name, partial(self._counted, collective))
        return self

    def __exit__(self, *args: object) -> None:
        for name, collective in self._kinds.items():
            setattr(dist, name, collective)

    def _counted(self, collective: Any, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return collective(*args, **kwargs)


def _of_all_ranks(mode: RecComputeMode) -> list[tuple[Any, Any]]:
    """Return pairs of what should be alike, whose first comes from the ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    module = _module(rank, ranks, mode, KINDS, compute_on_all_ranks=True)
    first_only = _module(rank, ranks, mode, KINDS[:2])
    one = _module(0, 1, mode, KINDS, compute_on_all_ranks=True)
    found: list[tuple[Any, Any]] = []
    # Nobody has anything yet.
    found.append((len(module.compute()), len(one.rec_metrics.local_compute())))
    for step in range(3):
        module.update(_out(rank, step))
        first_only.update(_out(rank, step))
    for each in range(ranks):
        for step in range(3):
            one.update(_out(each, step))
    expected = {k.replace("local_", ""): v for k, v in one.rec_metrics.local_compute().items()}
    with _Collectives() as collectives:
        computed = dict(module.compute())
        found.append((collectives.count, 2))
        collectives.count = 0
        reported = dict(first_only.compute())
        found.append((collectives.count, 1))
    found.append((bool(reported), rank == 0))
    for name, value in expected.items():
        if "lifetime" in name:
            found.append((computed[name].tolist(), pytest.approx(value.tolist(), rel=1e-12)))
    found += _windows(computed, ranks, mode)
    found += _checkpoint(module, expected, mode)
    return found


def _windows(
    computed: dict[str, Tensor], ranks: int, mode: RecComputeMode
) -> list[tuple[Any, Any]]:
    """The window of all is that of each rank, one after another."""
    errors = weights = 0.0
    for rank in range(ranks):
        alone = _module(0, 1, mode, [RecMetricEnum.MSE])
        for step in range(3):
            alone.update(_out(rank, step))
        states = alone.rec_metrics.metrics()[0].computations()[-1].states()
        errors += states["window_error_sum"][-1].item()
        weights += states["window_weighted_num_samples"][-1].item()
    return [(computed["mse-t1|window_mse"].item(), errors / weights)]


def _checkpoint(
    module: RecMetricModule, expected: dict[str, Tensor], mode: RecComputeMode
) -> list[tuple[Any, Any]]:
    """A checkpoint is of all ranks, and counts once when it is loaded on all of them."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.sync()
    saved = {name: value.clone() for name, value in module.state_dict().items()}
    module.unsync()
    after = module.state_dict()
    found: list[tuple[Any, Any]] = [
        (after[name].tolist(), value.tolist()) for name, value in before.items()
    ]
    other = _module(rank, ranks, mode, KINDS, compute_on_all_ranks=True)
    other.load_state_dict(saved)
    found += [(other.state_dict()[name].tolist(), value.tolist()) for name, value in saved.items()]
    name = "mse-t1|lifetime_mse"
    found.append((other.compute()[name].tolist(), expected[name].tolist()))
    for step in range(3, 5):
        other.update(_out(rank, step))
        module.update(_out(rank, step))
    computed = module.compute()[name].tolist()
    found.append((other.compute()[name].tolist(), pytest.approx(computed, rel=1e-12)))
    return found


@pytest.mark.parametrize(
    "ranks", [2, pytest.param(4, marks=pytest.mark.slow)], ids=lambda ranks: f"W={ranks}"
)
def test_numbers_are_those_of_one_process(ranks: int) -> None:
    for mode in (
        RecComputeMode.FUSED_TASKS_COMPUTATION,
        RecComputeMode.UNFUSED_TASKS_COMPUTATION,
    ):
        for found in run(_of_all_ranks, ranks, mode):
            assert isinstance(found, list), found
            for left, right in found:
                assert left == right
