"""Reports: mappings of names to numbers."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Hashable

import pytest
import torch

from torchrec.metrics import BinaryMetrics, Report
from torchrec.metrics.report import join_reports

pytestmark = pytest.mark.once

REPORT = Report(
    {"auc": 0.7, "ne": math.nan},
    counts={"samples": 9, "weight": 4.5},
    undefined={"ne": "all labels are 0"},
    better={"auc": "higher"},
    curves={"edges": [0.0, 1.0]},
)


def test_is_a_mapping_of_the_metrics_and_has_attributes() -> None:
    assert list(REPORT) == ["auc", "ne"]
    assert (REPORT["auc"], REPORT.auc, REPORT.samples) == (0.7, 0.7, 9)
    assert "samples" not in REPORT
    with pytest.raises(AttributeError, match=r"one of \['auc', 'ne'\]. Received 'acu'"):
        _ = REPORT.acu


@pytest.mark.parametrize("of", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_is_copied_whole(of: object) -> None:
    assert repr(of(REPORT)) == repr(REPORT)  # type: ignore[operator]


def test_are_equal_if_every_part_is() -> None:
    """A metric that is not defined is so in both, whichever NaN it is; the curves count."""
    again = Report(
        dict(REPORT.numbers) | {"ne": float("nan")},
        REPORT.counts,
        REPORT.undefined,
        REPORT.better,
        REPORT.curves,
    )
    assert again == REPORT
    assert copy.deepcopy(REPORT) == REPORT
    for part, value in (
        ("numbers", {"auc": 0.7, "ne": 1.0}),
        ("numbers", {"auc": math.nan, "ne": math.nan}),
        ("counts", {"samples": 9}),
        ("undefined", {"ne": "all labels are 1"}),
        ("better", {"auc": "lower"}),
        ("curves", {"edges": [0.0, 2.0]}),
    ):
        assert dataclasses.replace(REPORT, **{part: value}) != REPORT  # type: ignore[arg-type]
    plain = Report({"auc": 0.7})
    assert plain != {"auc": 0.7}
    assert dict(plain) == {"auc": 0.7}


def test_has_no_hash() -> None:
    assert not isinstance(REPORT, Hashable)
    with pytest.raises(TypeError, match="unhashable type: 'Report'"):
        hash(REPORT)


def test_a_count_with_the_name_of_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`counts` should have other names .* 'samples' in both"):
        Report({"auc": 0.5, "samples": 5.0}, counts={"weight": 3, "samples": 3})


def test_metrics_with_the_names_of_other_attributes_are_got_by_name() -> None:
    report = Report({"items": 1.0, "numbers": 2.0, "click.auc": 3.0})
    assert [report[name] for name in report] == [1.0, 2.0, 3.0]
    assert report.to_json() == {"items": 1.0, "numbers": 2.0, "click.auc": 3.0}
    assert dict(report.items()) == dict(report.numbers)


def test_json_has_none_for_what_is_not_finite_and_a_weight_only_where_samples_have_one() -> None:
    assert REPORT.to_json() == {"auc": 0.7, "ne": None, "samples": 9, "weight": 4.5}
    even = Report({"auc": math.inf}, counts={"samples": 9, "weight": 9.0})
    assert even.to_json() == {"auc": None, "samples": 9}


def test_reports_of_several_tasks_are_one_with_prefixes() -> None:
    both = join_reports({"click": REPORT, "seconds": Report({"mse": 2.0}, better={"mse": "lower"})})
    assert dict(both) == {"click.auc": 0.7, "click.ne": REPORT["ne"], "seconds.mse": 2.0}
    assert both.undefined == {"click.ne": "all labels are 0"}
    assert both.better == {"click.auc": "higher", "seconds.mse": "lower"}
    assert both.counts == {"click.samples": 9, "click.weight": 4.5}
    assert both.curves == {"click.edges": [0.0, 1.0]}
    assert join_reports({"click": REPORT}) is REPORT


def test_curves_only_where_asked_for() -> None:
    metrics = BinaryMetrics()
    metrics.update(torch.tensor([1.0, -1.0]), torch.tensor([1, 0]))
    assert metrics.compute().curves == {}
    assert metrics.compute(curves=True).curves["positives"] == metrics.curves().positives
