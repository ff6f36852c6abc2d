"""How metrics are asked for in a text: `auc`, `gauc(user)`, `ndcg@10(user)`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

_FORM = re.compile(r"\s*([a-z_]+)\s*(?:@\s*([0-9]+)\s*)?(?:\(\s*([^()]*?)\s*\)\s*)?")

# Of all samples; of groups; of the first k of groups.
OVERALL = ("ne", "auc", "logloss", "calibration", "mse", "mae")
GROUPED = ("gauc", "mrr")
GROUPED_AT_K = ("ndcg", "recall", "precision", "hit")

_TITLES = {
    "auc": "AUC", "ne": "normalised entropy", "logloss": "log loss", "mse": "MSE", "mae": "MAE"
}  # fmt: skip


@dataclass(frozen=True)
class MetricSpec:
    """A metric as it is asked for.

    Attributes:
        name: of the metric.
        k: how many of the first samples of a group it looks at; None where it looks at all.
        group: the column whose values are the groups; None where it is of all samples.

    Example:
        >>> parse_metric("ndcg@10(user)")
        MetricSpec(name='ndcg', k=10, group='user')
        >>> str(parse_metric(" gauc( user ) "))
        'gauc(user)'
    """

    name: str
    k: int | None = None
    group: str | None = None

    def __str__(self) -> str:
        """Return how it is written."""
        at = "" if self.k is None else f"@{self.k}"
        of = "" if self.group is None else f"({self.group})"
        return f"{self.name}{at}{of}"


def parse_metric(text: str) -> MetricSpec:
    """Read how a metric is asked for: ``name``, ``name(group)`` or ``name@k(group)``.

    Args:
        text: what is written.

    Raises:
        ValueError: if there is no such metric, or it lacks its k or its group, or has one too many.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(
            "A metric should be written like auc, gauc(user) or ndcg@10(user), with a column in "
            f"brackets. Received '{text}'."
        )
    name, at, group = found.groups()
    _require_known(name, text)
    if name in OVERALL and (at is not None or group is not None):
        raise ValueError(
            f"`{name}` is of all samples and should be written without @ and brackets. Received '{text}'."
        )
    if name in GROUPED and at is not None:
        raise ValueError(
            f"`{name}` looks at all samples of a group and should be written without @. Received '{text}'."
        )
    if name in GROUPED_AT_K and (at is None or int(at) < 1):
        raise ValueError(
            f"`{name}` should say how many of the first it looks at, as {name}@10(user). Received '{text}'."
        )
    if name not in OVERALL and not group:
        raise ValueError(
            f"`{name}` should name the column whose values are its groups, as "
            f"{MetricSpec(name, None if at is None else int(at), 'user')}. Received '{text}'."
        )
    return MetricSpec(name, None if at is None else int(at), group or None)


def task_and_metric(name: str) -> tuple[str, str]:
    """Return what the metrics of several tasks are called, parted into task and metric; of one task "" comes first.

    Example:
        >>> task_and_metric("click.auc"), task_and_metric("mrr(user.id)")
        (('click', 'auc'), ('', 'mrr(user.id)'))
    """
    head, bracket, column = name.partition("(")
    task, _, metric = head.rpartition(".")
    return task, f"{metric}{bracket}{column}"


def by_task(names: Iterable[str]) -> dict[str, list[str]]:
    """Return metrics by what stands before them, which is the task and a dot, or nothing.

    Example:
        >>> by_task(["click.auc", "watch.mse", "click.ne"]), by_task(["auc"])
        ({'click.': ['auc', 'ne'], 'watch.': ['mse']}, {'': ['auc']})
    """
    found: dict[str, list[str]] = {}
    for task, metric in map(task_and_metric, names):
        found.setdefault(f"{task}." if task else "", []).append(metric)
    return found


def title_of(name: str, *, short: bool = False) -> str:
    """Return what tables call a metric, which may be one of several tasks.

    Args:
        name: of the metric.
        short: whether it heads a column. Default False.

    Example:
        >>> title_of("logloss"), title_of("click.ne"), title_of("click.ne", short=True)
        ('log loss', 'click normalised entropy', 'click NE')
    """
    task, metric = task_and_metric(name)
    title = "NE" if short and metric == "ne" else _TITLES.get(metric, metric)
    return f"{task} {title}".lstrip()


def _require_known(name: str, text: str) -> None:
    known = [*OVERALL, *GROUPED, *GROUPED_AT_K]
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f": did you mean {close[0]}?" if close else "."
        raise ValueError(f"A metric should be one of {', '.join(known)}. Received '{text}'{hint}")
