"""Write what was inferred as an experiment file, with what was seen in its comments."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from torchrec.checks import printable
from torchrec.datasets.features import IdFeature, MultiHotFeature, SequenceFeature
from torchrec.datasets.query import sql_name
from torchrec.datasets.text_dialect import TextDialect
from torchrec.experiment._yaml import write_inline, write_key
from torchrec.experiment.propose._event_log import name_of_history
from torchrec.experiment.propose._sizes import (
    DIM_RULE,
    is_small,
    proposed_batch_size,
    proposed_decay,
    proposed_epochs,
)
from torchrec.experiment.propose.infer import Inference
from torchrec.experiment.rows import HistorySection
from torchrec.experiment.schema import (
    AverageSection,
    DataSection,
    EarlyStoppingSection,
    Experiment,
    ModelSection,
    ScheduleSection,
    TrainingSection,
)
from torchrec.files import write_file
from torchrec.models import registry

_ID_SOURCES = (
    "Ids find their rows: `plain`, as they are; `vocabulary`, those seen `min_count` times have a row "
    "each and all others share one; `hash`, any id, some share a row."
)
_REASONS = (
    "By the number of rows; what each of these buys is measured in `docs/defaults.md`. `torchrec tune` "
    "looks for better ones."
)
# Small starts of the tables are what helps most, but need steps to grow from.
_FEW_ROWS = {"name": "dlrm", "table_init": {"rule": "uniform"}, "dropout": 0.5}
_MANY_ROWS = {"batch_norm": True, "dropout": 0.2}


def propose_experiment(inference: Inference, data: DataSection, name: str) -> Experiment:
    """Return the experiment that is proposed for some data.

    Args:
        inference: what was found out about the data.
        data: files, label and rows to drop.
        name: of the experiment: its output is ``runs/name``.
    """
    chosen = _FEW_ROWS if is_small(inference.rows) else _MANY_ROWS
    return Experiment(
        data=data,
        features=inference.features,
        model=ModelSection.model_validate({"dim": inference.dim, **chosen}),
        training=_proposed_training(inference),
        output=f"runs/{name}",
    )


def _proposed_training(inference: Inference) -> TrainingSection:
    rows = inference.rows
    epochs = proposed_epochs(rows)
    training = TrainingSection(
        epochs=epochs,
        batch_size=proposed_batch_size(rows),
    )
    decay = proposed_decay(rows)
    if decay:
        training.embedding_updates = "dense" if inference.updates_all_rows else "lazy"
        training.embedding_weight_decay = decay
        if inference.updates_all_rows:
            training.average = AverageSection(kind="ema", decay=0.98)
    if epochs > 1:
        training.schedule = ScheduleSection(decay="plateau", factor=0.3, patience=1)
        training.early_stopping = EarlyStoppingSection(metric=["auc", "logloss"], patience=4)
    return training


def write_experiment(
    path: str | os.PathLike[str],
    inference: Inference,
    data: DataSection,
    *,
    overwrite: bool = False,
) -> Experiment:
    """Write a commented experiment file, which `load_experiment` reads back as what is returned.

    Args:
        path: of the file to write.
        inference: what was found out about the data.
        data: files (relative ones to the working directory), label and rows to drop.
        overwrite: replace a file that exists. Default False.

    Raises:
        FileExistsError: there is a file already.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"The experiment file should be a new one. Received '{path}', which exists."
        )
    absolute = {
        part: [os.path.abspath(one) for one in getattr(data, part)]
        for part in ("train", "valid", "test")
    }
    tables = {
        name: one.model_copy(update={"files": [os.path.abspath(file) for file in one.files]})
        for name, one in data.tables.items()
    }
    data = data.model_copy(
        update={**absolute, "tables": tables, "types": data.types | inference.types}
    )
    experiment = propose_experiment(inference, data, path.stem)
    text = "".join(f"{line}\n" for line in _lines(experiment, inference, path))
    write_file(path, text)
    return experiment


def _lines(experiment: Experiment, inference: Inference, path: Path) -> Iterator[str]:
    counted = (
        f"{inference.rows:,} rows" if inference.complete else f"the first {inference.rows:,} rows"
    )
    yield f"# Proposed by `torchrec init` from {counted}. Lines that are left out have their defaults;"
    yield "# `docs/experiment.md` lists all keys. Then: torchrec train " + printable(path.name)
    yield ""
    history = _history(experiment.data, inference)
    yield from _data(experiment.data, inference, path.parent, history)
    yield ""
    yield from _features(inference, history)
    yield ""
    yield from _model(experiment.model)
    yield ""
    yield from _training(experiment.training)
    yield ""
    yield f"output: {write_inline(experiment.output)}"


class _History(NamedTuple):
    """What users did before each row, as a column that is made and a feature that reads it."""

    name: str
    section: HistorySection
    feature: SequenceFeature


def _history(data: DataSection, inference: Inference) -> _History | None:
    """Return a history of the items of each user; None where rows are no events, or hold lists of such items."""
    log, features = inference.event_log, inference.features
    readers = {feature.column or name: name for name, feature in features.items()}
    if log is None or not {log.user, log.item} <= readers.keys():
        return None
    item = features[readers[log.item]]
    assert isinstance(item, IdFeature)
    table = item.table or readers[log.item]
    for other in features.values():
        if isinstance(other, MultiHotFeature | SequenceFeature) and other.table == table:
            return None
    columns = [column.name for column in inference.columns]
    label = inference.label.strip("`")
    where = "true"
    if label in columns and data.sampled_negatives is None:  # drawn when histories are made
        where = f"{sql_name(label)} = 1"
    section = HistorySection(item=log.item, user=log.user, time=log.time, where=where)
    options = item.model_dump(include={"ids", "rows", "out_of_range", "min_count"})
    feature = SequenceFeature.model_validate({"table": table, **options})
    return _History(name_of_history(log.item, [*columns, *features]), section, feature)


def _data(
    data: DataSection, inference: Inference, folder: Path, history: _History | None
) -> Iterator[str]:
    yield "data:"
    for part in ("train", "valid", "test"):
        paths = [_relative(one, folder) for one in getattr(data, part)]
        if paths:
            yield f"  {part}: {write_inline(paths)}"
    for key in ("format", *(field.name for field in fields(TextDialect))):
        value = getattr(data, key)
        if value != DataSection.model_fields[key].default:
            yield f"  {key}: {write_inline(value)}"
    if data.query is not None:
        yield f"  query: {write_inline(data.query)}"
    if data.tables:
        yield "  tables:"
    for name, section in data.tables.items():
        values = section.model_dump(mode="json", exclude_defaults=True)
        values["files"] = [_relative(one, folder) for one in section.files]
        yield f"    {name}: {write_inline(values)}"
    if data.types:
        yield from _comment("What columns hold where the first lines do not show it:", "  ")
        yield f"  types: {write_inline(data.types)}"
    yield f"  label: {write_inline(data.label)}  # 1 in {100 * inference.positives:.1f} % of the rows"
    if data.sampled_negatives is not None:
        sampled = data.sampled_negatives.model_dump(mode="json", exclude_defaults=True)
        yield from _comment(
            "Every row happened; beside each are rows that are drawn, which did not:", "  "
        )
        yield f"  sampled_negatives: {write_inline(sampled)}"
    if data.drop is not None:
        yield f"  drop: {write_inline(data.drop)}"
    if history is not None:
        yield from _comment(
            f"For a feature of the last items of the user before each row (pip install 'rowwise[query]'), "
            f"take `histories` and `{history.name}` below:",
            "  ",
        )
        values = history.section.model_dump(mode="json", exclude_defaults=True)
        yield "  # histories:"
        yield f"  #   {write_key(history.name)}: {write_inline(values)}"
    if data.valid and data.test:
        return
    yield "  split:  # of train, for what has no files of its own"
    yield f"    by: {data.split.by}"
    if data.split.column is not None:
        yield f"    column: {write_inline(data.split.column)}"
    elif inference.time_column is not None:
        yield "    # To test on what came after the training data, as in use, instead:"
        yield "    # by: time"
        yield f"    # column: {write_inline(inference.time_column)}"
    for key in ("valid", "test", "seed"):
        value = getattr(data.split, key)
        if key != "seed" or value:
            yield f"    {key}: {write_inline(value)}"


def _features(inference: Inference, history: _History | None) -> Iterator[str]:
    yield "features:"
    yield from _comment(_ID_SOURCES, "  ")
    yield ""
    notes = inference.notes
    for name, feature in inference.features.items():
        yield from _comment(notes[feature.column or name], "  ")
        values = feature.model_dump(mode="json", exclude_defaults=True)
        yield f"  {write_key(name)}: {write_inline({'type': feature.type, **values})}"
    if history is not None:
        table, values = (
            history.feature.table,
            history.feature.model_dump(mode="json", exclude_defaults=True),
        )
        yield from _comment(
            f"With `data.histories`; ids of `{table}`, whose table it shares:", "  "
        )
        yield f"  # {write_key(history.name)}: {write_inline({'type': 'sequence', **values})}"
    left_out = [
        column
        for column in inference.columns
        if column.feature is None and column.name != inference.label
    ]
    if left_out:
        yield ""
        yield "  # Left out:"
    for column in left_out:
        seen = f" ({column.seen})" if column.seen else ""
        yield from _comment(f"{column.name}: {column.reason}{seen}", "  ", "  ")


def _model(model: ModelSection) -> Iterator[str]:
    yield "model:"
    others = [name for name in registry.names() if name != model.name]
    yield f"  name: {model.name}  # or {', '.join(others)}"
    yield f"  dim: {model.dim}"
    yield from _comment(DIM_RULE, "  ")
    chosen = model.model_dump(mode="json", exclude_unset=True)
    for key in ("table_init", "batch_norm", "dropout"):
        if key in chosen:
            yield f"  {key}: {write_inline(chosen[key])}"


def _training(training: TrainingSection) -> Iterator[str]:
    yield "training:"
    yield from _comment(_REASONS, "  ")
    for key in ("epochs", "batch_size", "learning_rate"):
        yield f"  {key}: {write_inline(getattr(training, key))}"
    if training.embedding_weight_decay:
        for key in ("embedding_updates", "embedding_weight_decay"):
            yield f"  {key}: {write_inline(getattr(training, key))}"
    if training.average is not None:
        average = training.average.model_dump(mode="json", exclude_defaults=True)
        yield f"  average: {write_inline(average)}"
    if training.early_stopping is not None:
        schedule = training.schedule.model_dump(mode="json", exclude_defaults=True)
        yield f"  schedule: {write_inline(schedule)}"
        stopping = training.early_stopping.model_dump(mode="json", exclude={"min_delta"})
        yield f"  early_stopping: {write_inline(stopping)}"


def _relative(path: str, folder: Path) -> str:
    """Return a path as the file has it: relative to its folder if it is below that."""
    relative = os.path.relpath(path, folder)
    return path if relative.startswith("..") else relative


def _comment(text: str, *indents: str) -> list[str]:
    first = indents[0]
    return textwrap.wrap(
        printable(text),  # a line break in a name would end the comment
        width=100,
        initial_indent=f"{first}# {''.join(indents[1:])}",
        subsequent_indent=f"{first}#   {''.join(indents[1:])}",
        break_long_words=False,
        break_on_hyphens=False,
    )
