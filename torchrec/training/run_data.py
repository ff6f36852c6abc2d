"""The data of an experiment: sources by split, the transform fitted to them, and loaders."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torchrec.bundle import load_transform
from torchrec.datasets.features import AnyFeature, TextType
from torchrec.datasets.files import DataFile
from torchrec.datasets.loader import Loader
from torchrec.datasets.source import TableSource
from torchrec.datasets.split import Split, TimeSplit
from torchrec.datasets.text_types import MisfitError
from torchrec.datasets.transform import FeatureTransform, GroupedTransform, TransformCounts
from torchrec.datasets.transform.labels import Label
from torchrec.datasets.utils import Batch
from torchrec.experiment.build import new_transform
from torchrec.experiment.propose import Inference, infer_features
from torchrec.experiment.schema import DataSection, Experiment, TrainingSection
from torchrec.experiment.sources import Sources, require_ranked_labels, sources_of
from torchrec.metrics import GroupedMetrics
from torchrec.runs import Fitted
from torchrec.training.ancestor import bundle_of
from torchrec.training.world import ALONE, World

if TYPE_CHECKING:
    import pyarrow as pa

_EVALUATION_BATCH = 4096


class Resolved(NamedTuple):
    """An experiment whose data have been looked at: with features and types, and what was learned."""

    experiment: Experiment
    sources: Sources
    fitted: Fitted
    notices: list[str]


class RunData:
    """What a run reads.

    Args:
        experiment: says what.
        fitted: what an earlier process of the run learned of the data. Default: it is learned anew.
        with_test: whether the test is to be read at all. Default True.
        world: the ranks that share each batch. Default: this process alone.

    Attributes:
        experiment: with what was inferred: features, and types of columns of text.
        fitted: what was learned of the data, for a process that resumes the run.
        transform: fitted to the training data.
        evaluated: the same, with counts of its own, for validation and test.
        train, valid, test: batches; None where there is no such data.
        batch_sizes: of training, and of validation and test.
        train_batches: in an epoch; None if only reading tells, and nothing asks for it.
        notices: what a person should know.
    """

    def __init__(
        self,
        experiment: Experiment,
        fitted: Fitted | None = None,
        with_test: bool = True,
        world: World = ALONE,
    ) -> None:
        self._world = world
        data, options = experiment.data, experiment.training
        resolved = learned(experiment) if fitted is None else _recalled(experiment, fitted)
        self.experiment, self.fitted = resolved.experiment, resolved.fitted
        self.transform = self.fitted.transform
        train, valid, test = resolved.sources
        self.notices = _read_twice(data, resolved.sources)
        for source in (train, *resolved.sources.given):
            self.notices += source.notices
        self.notices += resolved.notices
        size = evaluation_batch_size(options)
        self.batch_sizes = (options.batch_size, size)
        rows = self.fitted.rows
        self.train_batches = None if rows is None else -(-rows // options.batch_size)
        self.train = Loader(
            train,
            self.transform,
            options.batch_size,
            shuffle_window=data.shuffle_window,
            seed=options.seed,
            workers=data.workers,
            rank=world.rank,
            world_size=world.size,
            share_batches=True,
        )
        self.evaluated = copy.copy(self.transform)
        self.evaluated.counts = TransformCounts(list(self.transform.features))
        metrics = self.experiment.group_metrics
        self._groups = GroupedMetrics(metrics).columns if metrics else []
        self.valid = self._evaluation_batches("validation", valid, size)
        self.test = self._evaluation_batches("test", test if with_test else None, size)
        self._notice_ties(train.split)
        if metrics:
            require_ranked_labels(self.experiment, {"validation": valid, "test": test})
        if options.early_stopping is not None:
            self._check_stopping(valid, options.early_stopping.metrics)

    def _evaluation_batches(
        self, name: str, source: TableSource | None, size: int
    ) -> Loader | None:
        """Return the batches of validation or test in the order of the files; None without rows."""
        if source is None:
            return None
        if not source.has_rows():
            self.notices.append(f"There are no rows for {name}: it is left out.")
            return None
        transform: FeatureTransform | GroupedTransform = self.evaluated
        if self._groups:
            source.require(self._groups, "`metrics`")
            transform = GroupedTransform(self.evaluated, self._groups)
        return Loader(
            source,
            transform,
            size,
            shuffle_window=0,
            rank=self._world.rank,
            world_size=self._world.size,
            workers=self.experiment.data.workers,
            share_batches=True,
        )

    def sample(self) -> Batch:
        """Return a batch of the training data, of which nothing is counted."""
        transform = copy.copy(self.transform)
        transform.counts = TransformCounts(list(transform.features))
        return next(iter(Loader(self.train.source, transform, self.batch_sizes[0], workers=0)))

    def _notice_ties(self, split: Split | None) -> None:
        """Say so where rows of one time make parts of other sizes than were asked for."""
        if not isinstance(split, TimeSplit) or split.shares is None:
            return
        wanted = self.experiment.data.split
        asked = {"valid": wanted.valid, "test": wanted.test}
        found = dict(zip(asked, split.shares, strict=True))
        if any(found[part] and abs(found[part] - asked[part]) > 0.05 for part in asked):
            parts = ", ".join(f"{share:.0%} for `{part}`" for part, share in found.items() if share)
            self.notices.append(
                f"Many rows have the same `{split.column}`, and rows of one time stay together: "
                f"`data.split` gives {parts or 'nothing'}, {1 - sum(found.values()):.0%} for training."
            )

    def _check_stopping(self, valid: TableSource | None, metrics: Sequence[str]) -> None:
        """Refuse early stopping by a metric that the validation data cannot have."""
        if valid is None:
            raise ValueError(
                "`training.early_stopping` should have validation data to go by: `data.valid`, or "
                "`data.split.valid` above 0. Received none."
            )
        data = self.experiment.data
        if self.valid is None:
            whence = "`data.valid`" if data.valid else "`data.split`"
            raise ValueError(
                "`training.early_stopping` should have validation data to go by. Received no rows: "
                f"{whence} leaves none; give files with rows as `data.valid`, or leave "
                "`training.early_stopping` out."
            )
        if data.label is None:  # what is not defined is said when it is measured
            return
        classes = label_classes(valid, data.label)
        needing_both = [metric for metric in metrics if metric != "logloss"]
        if needing_both and len(classes) == 1:
            raise ValueError(
                f"`training.early_stopping` should have validation data with labels 0 and 1, as "
                f"{needing_both[0]} needs both. Received only {min(classes)}: give other `data.valid`, another "
                "`data.split` (such as more for `valid`), `metric: logloss`, or leave it out."
            )


def evaluation_batch_size(options: TrainingSection) -> int:
    """Return how many rows are evaluated at once."""
    return max(options.batch_size, _EVALUATION_BATCH)


def learned(experiment: Experiment) -> Resolved:
    """Fit the transform; of text files with inferred features, with types that all values fit.

    Args:
        experiment: says which data, and maybe which model training goes on from: what its transform has
            learned stays.

    Returns:
        The experiment with what was inferred, and what was learned.

    Raises:
        ValueError: for what is wrong with the data.
    """
    types: dict[str, TextType] = {}
    goes_on = experiment.continue_from
    before = None if goes_on is None else load_transform(bundle_of(goes_on))
    if before is not None and experiment.features is None:
        experiment = experiment.model_copy(update={"features": before.features})
    while True:
        try:
            return _fitted(experiment, sources_of(experiment, types), types, before)
        except MisfitError as misfit:  # noqa: PERF203
            if experiment.features is not None or not misfit.wider:
                raise
            types |= misfit.wider


def _fitted(
    experiment: Experiment,
    sources: Sources,
    types: dict[str, TextType],
    before: FeatureTransform | None,
) -> Resolved:
    """Infer features where none are given, and fit the transform."""
    data, features = experiment.data, experiment.features
    inference, notices = None, []
    if features is None:
        inference = _inferred(sources, data)
        notices = inference.warnings
        features, types = _without(inference.features, data.weight), types | inference.types
        sources = sources.retyped(types) if types else sources
    if inference is None or inference.positives in (0, 1):  # of the rows that were looked at
        _check_labels(sources.train, experiment)
    transform, train = new_transform(experiment, features), sources.train
    if inference is not None and inference.complete and data.weight is None:
        # All of their rows have been read: labels and types are right, and their number is known.
        transform.fit(train.scan(transform.input_columns))
        rows: int | None = inference.rows
    else:
        tables = _Counted(train.scan(transform.columns))
        transform.fit(tables)
        if inference is not None and train.files[0].format != "parquet":
            for _ in tables:  # what fitting did not need may have values that do not fit
                pass
        rows = train.rows if tables.rows is None else tables.rows
    if before is not None:
        transform = transform.grown_from(before)
    if rows is None and experiment.training.schedule.decay != "constant":
        rows = sum(table.num_rows for table in train.scan(transform.columns[-1:]))
    found = Fitted(transform, data.types | types, rows)
    return Resolved(_completed(experiment, found), sources, found, notices)


def _recalled(experiment: Experiment, fitted: Fitted) -> Resolved:
    """Take what an earlier process fitted, so that the data are read as they were."""
    sources = sources_of(experiment, fitted.types)
    return Resolved(_completed(experiment, fitted), sources, fitted, [])


def _completed(experiment: Experiment, fitted: Fitted) -> Experiment:
    """Return an experiment with the features and types that were inferred."""
    data = experiment.data.model_copy(update={"types": dict(fitted.types)})
    return experiment.model_copy(update={"data": data, "features": fitted.transform.features})


class _Counted:
    """Tables whose rows are counted as they are read.

    Attributes:
        rows: of all tables; None until the last has been read.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._tables = iter(tables)
        self._seen = 0
        self.rows: int | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        for table in self._tables:
            self._seen += table.num_rows
            yield table
        self.rows = self._seen


def _inferred(sources: Sources, data: DataSection) -> Inference:
    """Propose features for the training data."""
    if data.label is None:
        raise ValueError(
            "`features` should be given with `tasks`: `torchrec init --label` with one of their labels "
            "proposes some. Received none."
        )
    try:
        return infer_features(sources.train, data.label, data.drop, others=sources.given)
    except ValueError:
        if not sources.train.has_rows():  # which is said in the words of the experiment
            raise _without_rows(data) from None
        raise


def _without(features: dict[str, AnyFeature], weight: str | None) -> dict[str, AnyFeature]:
    """Return features but those that read the weights of the samples."""
    return {name: one for name, one in features.items() if (one.column or name) != weight}


def _check_labels(train: TableSource, experiment: Experiment) -> None:
    """Refuse training data that have not both labels."""
    data = experiment.data
    labels = {} if data.label is None else {"data.label": data.label}
    for name, task in (experiment.tasks or {}).items():
        if task.kind == "click":
            labels[f"tasks.{name}.label"] = task.label
    for key, label in labels.items():
        classes = label_classes(train, label)
        if not classes:
            raise _without_rows(data)
        if len(classes) == 1:
            raise ValueError(
                f"`data.train` should have labels 0 and 1 to learn from. Received only "
                f"{min(classes)}: check `{key}` '{label}', `data.drop` and `data.split`."
            )


def _without_rows(data: DataSection) -> ValueError:
    left_out = f"`data.drop` '{data.drop}' and " if data.drop else ""
    return ValueError(
        f"`data.train` should have rows to train on. Received none: {left_out}`data.split` leave no row."
    )


def _read_twice(data: DataSection, sources: Sources) -> list[str]:
    """Say which files of validation and test are files of training as well."""
    notices = []
    for name, paths, source in (
        ("valid", data.valid, sources.valid),
        ("test", data.test, sources.test),
    ):
        if not paths or source is None:
            continue
        both = _copies(source.files, sources.train.files)
        if both:
            notices.append(
                f"`data.{name}` has files of `data.train`, or copies, '{both[0]}' among them: its "
                "metrics tell of samples that were trained on."
            )
    return notices


def _copies(files: Sequence[DataFile], of: Sequence[DataFile]) -> list[str]:
    """Return the paths of files that are, or hold the same bytes as, some of others."""
    paths, sizes = {file.path for file in of}, {os.path.getsize(file.path) for file in of}
    digests: set[str] = set()
    found = []
    for file in files:
        alike = file.path not in paths and os.path.getsize(file.path) in sizes
        if alike and not digests:
            digests = {other.fingerprint() for other in of}
        if file.path in paths or (alike and file.fingerprint() in digests):
            found.append(file.path)
    return found


def label_classes(source: TableSource, label: str) -> set[int]:
    """Return which of 0 and 1 are among the labels; nothing is read once both are.

    Args:
        source: the rows.
        label: column or expression of the label.
    """
    reader = Label(label)
    found: set[int] = set()
    for table in source.scan(reader.columns):
        labels = reader.read(table)
        found |= {int(labels.min()), int(labels.max())}
        if len(found) == 2:
            break
    return found
