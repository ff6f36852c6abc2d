"""Metrics for ids that were seen in training and those that were not, and the rows behind them."""

from __future__ import annotations

import math

import numpy as np

from torchrec.report.card import Card, CardFile, View, chart_cards, table_html
from torchrec.report.cards.slices import cells_of, head_of
from torchrec.report.charts import Axis, Chart, Series, line_chart
from torchrec.report.id_counts import (
    EDGES,
    IdCounts,
    bucket_name,
    buckets_of,
    count_ids,
    id_features,
    norms_of,
)
from torchrec.report.predictions import Predictions
from torchrec.report.scale import short
from torchrec.report.slices import values_of
from torchrec.report.task_predictions import TaskPredictions

_FEATURES = 6  # with the most ids
_SAMPLE = 500  # ids whose rows are looked at, of each frequency


def _draw(view: View) -> list[Card]:
    predictions = view.predictions
    if predictions is None:
        return []
    trained = predictions.trained
    counted = count_ids(trained, id_features(trained))
    counted.sort(key=lambda one: -len(one.counts))
    if not counted:
        return []
    counted = counted[:_FEATURES]
    return [
        *chart_cards(_norms(predictions, counted)),
        *(_table(predictions, task, counted) for task in predictions.tasks if len(task.rows)),
    ]


def _table(predictions: Predictions, task: TaskPredictions, counted: list[IdCounts]) -> Card:
    rows = []
    for counts in counted:
        feature = predictions.trained.transform.features[counts.feature]
        values = values_of(counts.feature, feature, predictions.table)
        if values is None:
            continue
        buckets = buckets_of(counts.of(values.names))[values.codes]
        for bucket in np.unique(buckets):
            chosen = task.at(np.unique(values.rows[buckets == bucket]))
            if len(chosen.rows):
                name = f"{counts.feature}: {bucket_name(int(bucket))}"
                rows.append((name, cells_of(chosen, task)))
    total = counted[0].rows
    about = (
        f"By how often an id came in the {total:,} training rows that were counted. Rows with several ids "
        "count for each."
    )
    table = table_html(["feature: times", *head_of(task)], rows)
    return Card(f"Seen and unseen ids{task.of}", about, table, wide=True, task=task.name)


def _norms(predictions: Predictions, counted: list[IdCounts]) -> Chart | None:
    random = np.random.default_rng(0)
    lines = []
    like = predictions.table.slice(0, 1)
    for number, counts in enumerate(counted[:4]):
        x, y = [], []
        buckets = buckets_of(counts.counts)
        for bucket in range(1, len(EDGES) + 1):
            members = np.flatnonzero(buckets == bucket)
            if len(members) > _SAMPLE:
                members = random.choice(members, _SAMPLE, replace=False)
            norms = norms_of(predictions.trained, counts, counts.ids.take(members), like)
            if len(norms):
                x.append(math.log10(float(np.exp(np.log(counts.counts[members]).mean()))))
                y.append(float(norms.mean()))
        lines.append(Series(counts.feature, f"phase-{number}", x, y))
    return line_chart(
        "Norms by id frequency",
        "Mean length of the vectors of ids that came so often in training.",
        lines,
        x=Axis("times in training", write=lambda power: short(float(f"{10**power:.2g}"))),
        y=Axis(),
    )


CARDS = CardFile("features", 30, _draw)
