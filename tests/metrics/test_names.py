"""How metrics are written, and what is said of those that are not."""

from __future__ import annotations

import pytest

from torchrec.metrics.names import MetricSpec, parse_metric

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("auc", MetricSpec("auc")),
        ("gauc(user)", MetricSpec("gauc", None, "user")),
        ("mrr(user id)", MetricSpec("mrr", None, "user id")),
        (" ndcg @ 10 ( Kunde-Nr. ) ", MetricSpec("ndcg", 10, "Kunde-Nr.")),
        ("hit@1(q)", MetricSpec("hit", 1, "q")),
    ],
)
def test_a_metric_is_read_and_written(text: str, spec: MetricSpec) -> None:
    assert parse_metric(text) == spec
    assert parse_metric(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acu", r"one of ne, auc, .* Received 'acu': did you mean auc\?"),
        ("nothing_like_it", r"Received 'nothing_like_it'\."),
        ("auc@3", "`auc` is of all samples .* Received 'auc@3'"),
        ("auc(user)", "`auc` is of all samples"),
        ("mrr@3(user)", "`mrr` looks at all samples .* without @"),
        ("ndcg(user)", r"say how many .* as ndcg@10\(user\). Received 'ndcg\(user\)'"),
        ("ndcg@0(user)", "say how many"),
        ("hit@3", r"name the column .* as hit@3\(user\). Received 'hit@3'"),
        ("gauc", r"as gauc\(user\)"),
        ("gauc()", r"as gauc\(user\)"),
        ("ndcg@x(user)", "should be written like"),
        ("", "should be written like"),
    ],
)
def test_a_metric_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_metric(text)
