"""Metrics by name, in one module."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from torchrec.metrics.metric_module import (
    REC_METRICS_MAPPING,
    RecMetricModule,
    generate_metric_module,
)
from torchrec.metrics.metrics_config import (
    MetricsConfig,
    RecMetricDef,
    RecMetricEnum,
    RecTaskInfo,
    SessionMetricDef,
)

pytestmark = pytest.mark.once

# Names that the API has no metric for.
WITHOUT_METRIC = {RecMetricEnum.LOG_LOSS, RecMetricEnum.SERVING_AE_LOSS}
ARGUMENTS: dict[RecMetricEnum, dict[str, Any]] = {
    RecMetricEnum.TENSOR_WEIGHTED_AVG: {"description": "_watched"},
    RecMetricEnum.MULTICLASS_RECALL: {"number_of_classes": 3},
    RecMetricEnum.SEGMENTED_NE: {"num_groups": 3},
    RecMetricEnum.AUC: {"grouped_auc": True},
}


def test_every_name_of_the_api_has_its_metric() -> None:
    assert set(REC_METRICS_MAPPING) == set(RecMetricEnum) - WITHOUT_METRIC
    assert len(set(REC_METRICS_MAPPING.values())) == len(REC_METRICS_MAPPING) == 37


def test_all_metrics_work_in_one_module() -> None:
    task = RecTaskInfo(
        name="click",
        label_name="y",
        prediction_name="p",
        weight_name="w",
        tensor_name="watched",
        session_metric_def=SessionMetricDef("session", top_threshold=2),
    )
    classes = RecTaskInfo(name="kind", label_name="c", prediction_name="scores", weight_name="w")
    module = generate_metric_module(
        RecMetricModule,
        MetricsConfig(
            rec_tasks=[task, classes],
            rec_metrics={
                name: RecMetricDef(
                    rec_tasks=[classes if name is RecMetricEnum.MULTICLASS_RECALL else task],
                    arguments=ARGUMENTS.get(name, {}),
                )
                for name in RecMetricEnum
                if name not in WITHOUT_METRIC
            },
        ),
        batch_size=6,
        world_size=1,
        my_rank=0,
        state_metrics_mapping={},
        device=torch.device("cpu"),
    )
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        module.update(
            {
                "y": torch.randint(0, 2, (6,), generator=draw).float(),
                "p": torch.rand(6, generator=draw),
                "w": torch.rand(6, generator=draw),
                "c": torch.randint(0, 3, (6,), generator=draw).float(),
                "scores": torch.rand(6, 3, generator=draw),
                "watched": torch.rand(6, generator=draw),
                "session": torch.tensor([0, 0, 0, 1, 1, 1]),
                "session_id": torch.tensor([0, 0, 0, 1, 1, 1]),
                "grouping_keys": torch.tensor([0, 1, 2, 0, 1, 2]),
                "latest_imp": torch.tensor([1.0]),
                "total_latest_imp": torch.tensor([1.0]),
            }
        )
    found = module.compute()
    namespaces = {name.split("-")[0] for name in found}
    assert len(namespaces) == 36  # two of the 37 are means with the namespace weighted_avg
    other = copy.deepcopy(module)
    other.reset()
    states = module.get_pre_compute_states()
    assert len(states) == 37
    other.load_pre_compute_states(states)
    assert str(dict(other.compute())) == str(dict(found))
    assert all(torch.as_tensor(value).isfinite().all() for value in found.values())
