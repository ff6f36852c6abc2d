"""The experiment file: its sections, keys, types and defaults, each with what it means.

The descriptions are the reference: `docs/experiment.md` and the comments of `torchrec init` come
from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import nn

from torchrec.checks import did_you_mean
from torchrec.datasets.features import AnyFeature, DenseFeature, IdFeature, TextType
from torchrec.datasets.files import check_delimiter
from torchrec.datasets.text_dialect import TextDialect, check_encoding
from torchrec.experiment.distributed import DistributedSection
from torchrec.experiment.rows import (
    Columns,
    HistorySection,
    Paths,
    SampledNegativesSection,
    Seed,
    SplitSection,
    TableSection,
    Threads,
)
from torchrec.experiment.section import Section
from torchrec.experiment.tasks import (
    GroupMetrics,
    TaskSection,
    check_within_groups,
    metric_of_groups,
    metrics_of,
    with_shared_column,
)
from torchrec.models.registry import ModelSection as ModelSection
from torchrec.models.registry import TableRule
from torchrec.types import optimizer_value


class DataSection(Section):
    """Where the samples are, and which column is the label."""

    train: Paths = Field(
        min_length=1,
        description="files or patterns such as `clicks/*.parquet`, one or a list; relative to the "
        "experiment file",
    )
    valid: Paths = Field(
        default=[], description="the same, for validation; none: a part of `train`"
    )
    test: Paths = Field(default=[], description="the same, for testing; none: a part of `train`")
    format: Literal["auto", "parquet", "csv", "tsv", "json"] = Field(
        default="auto", description="what the files are; `auto` goes by their suffix"
    )
    columns: list[str] | None = Field(
        default=None, description="names of the columns of CSV or TSV files that have no header"
    )
    delimiter: str | None = Field(
        default=None,
        description="the character between the columns of text files, or several, such as `::`; none: "
        "a comma, in TSV files a tab",
    )
    decimal: Literal[".", ","] = Field(
        default=".", description="the sign before the decimals of numbers in CSV or TSV files"
    )
    missing: list[str] = Field(
        default=[],
        description="texts that stand for a missing value in every column of CSV or TSV files, such as "
        "`-999`; what does anyway: features.md",
    )
    quote: Literal['"', "none"] = Field(
        default='"',
        description='what may enclose a value of CSV or TSV files; `none`: a `"` is a character like '
        "others, and each line a sample",
    )
    encoding: str = Field(
        default="utf-8",
        description="of the characters of CSV or TSV files, such as `latin-1`, `cp1252` or `utf-16`",
    )
    times: list[str] = Field(
        default=[],
        description="how times are written in CSV or TSV files, such as `%d.%m.%Y %H:%M`, beside those of "
        "ISO 8601: as for `strptime` of Python",
    )
    bad_lines: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="what becomes of lines of CSV or TSV files with more or fewer values than columns; what "
        "is skipped is counted",
    )
    types: dict[str, TextType] = Field(
        default={},
        description="what columns of CSV or TSV files hold where their first lines do not show it: "
        "`integer`, `number` or `string`, by column",
    )
    query: str | None = Field(
        default=None,
        description="SQL (of DuckDB) that gives the samples: over `data`, the rows of the files, numbered by "
        "`row`, and `tables`; in the order of `row`, if the result has it",
    )
    tables: dict[str, TableSection] = Field(
        default={},
        description="further tables for `query` or `join`, by name: files, or a section",
    )
    join: dict[str, Columns] = Field(
        default={},
        description="tables whose columns are joined to the rows, by a file or the name of one of `tables`: "
        "the column that both have, or a list, as in `{movies.csv: movie_id}`",
    )
    cache: bool = Field(
        default=False,
        description="whether text files are made Parquet once, in `.data` beside the run, and read from "
        "there: for small models and many epochs, or many runs",
    )
    histories: dict[str, HistorySection] = Field(
        default={},
        description="columns to make, by name: what the user of each row did before it, as a feature of type "
        "sequence reads it",
    )
    label: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="the column of 0 and 1 to predict, or an expression such as `rating > 3`; none: what "
        "`tasks` say",
    )
    weight: str | None = Field(
        default=None,
        description="a column of how much each sample counts, in losses and metrics; none: 1 each",
    )
    negatives: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="share of the training samples with label 0 that are kept, chosen by chance; the "
        "probabilities are corrected for it, and evaluation keeps all",
    )
    sampled_negatives: SampledNegativesSection | None = Field(
        default=None,
        description="rows to make of items that users have not had, where the data hold only what "
        "happened; `label` then names their column, `positive`; none: none",
    )
    drop: str | None = Field(
        default=None, description="an expression such as `rating == 3`: rows to leave out"
    )
    split: SplitSection = Field(
        default=SplitSection(),
        description="how `train` is divided where files for a part are not given",
    )
    shuffle_window: PositiveInt = Field(
        default=131_072, description="how many samples are shuffled together, in memory"
    )
    workers: Threads = Field(default=2, description="threads that read and transform")

    @model_validator(mode="after")
    def _check(self) -> DataSection:
        if self.delimiter is not None:
            check_delimiter(self.delimiter, "data.delimiter")
        check_encoding(self.encoding, "data.encoding")
        if self.sampled_negatives is not None and self.negatives < 1:
            raise ValueError(
                "`data.negatives` should be 1 with `data.sampled_negatives`, which says how many there are. "
                f"Received {self.negatives}."
            )
        if self.join and self.query is not None:
            raise ValueError(
                "`data.join` should be left out with `data.query`, which can join tables itself. Received both."
            )
        unread = [name for name in self.tables if name not in self.join]
        if unread and self.query is None:
            raise ValueError(
                "`data.tables` should be given with `data.query` or `data.join`, which read them. Received "
                f"'{unread[0]}', which neither does."
            )
        return self

    @property
    def dialect(self) -> TextDialect:
        """How text files are written."""
        return TextDialect(**{each.name: getattr(self, each.name) for each in fields(TextDialect)})


class ScheduleSection(Section):
    """The learning rates over time, as factors of those configured."""

    warmup_steps: NonNegativeInt = Field(
        default=0, description="steps over which the learning rates rise from 0"
    )
    decay: Literal["constant", "linear", "cosine", "exponential", "plateau"] = Field(
        default="constant",
        description="how they fall afterwards: until the last step, or on a plateau, which is an "
        "evaluation that is not the best so far",
    )
    final: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="the factor that they fall to"
    )
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="what a plateau multiplies them by"
    )
    patience: NonNegativeInt = Field(
        default=0, description="evaluations without improvement that a plateau bears"
    )

    @model_validator(mode="after")
    def _check(self) -> ScheduleSection:
        if self.decay == "constant" and self.final != 0:
            raise ValueError(
                "`training.schedule.final` should be given for learning rates that fall. Received "
                f"{self.final} for `training.schedule.decay` constant."
            )
        if self.decay == "exponential" and self.final == 0:
            raise ValueError(
                "`training.schedule.final` should be above 0 for exponential decay. Received 0."
            )
        for name, default in (("factor", 0.1), ("patience", 0)):
            if self.decay != "plateau" and getattr(self, name) != default:
                raise ValueError(
                    f"`training.schedule.{name}` should be given for `training.schedule.decay` "
                    f"plateau. Received {getattr(self, name)} for {self.decay}."
                )
        return self


class AverageSection(Section):
    """The average of the weights over the steps, of tables too, which is evaluated, kept and saved."""

    kind: Literal["ema", "swa"] = Field(
        description="forgetting older steps exponentially, or the mean of the last ones"
    )
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.999, description="share of the average that `ema` keeps a step"
    )
    start: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.75, description="share of the steps before `swa` begins"
    )

    @model_validator(mode="after")
    def _check(self) -> AverageSection:
        for name, default, kind in (("decay", 0.999, "ema"), ("start", 0.75, "swa")):
            if self.kind != kind and getattr(self, name) != default:
                raise ValueError(
                    f"`training.average.{name}` should be given for `training.average.kind` {kind}. "
                    f"Received {getattr(self, name)} for {self.kind}."
                )
        return self


class EarlyStoppingSection(Section):
    """Stop when `metric` of the validation data has not improved for `patience` evaluations.

    Of several metrics it is the sum of their changes, those with a minus that are the better the
    lower: `[auc, logloss]` goes by AUC - logloss.
    """

    metric: str | Annotated[list[str], Field(min_length=1)] = Field(
        default="auc",
        description="what should improve: `auc`, `ne` or `logloss`; of several tasks with their names, as "
        "`click.auc`, of numbers `mse` or `mae`, of classes `accuracy` or `logloss`; "
        "or one of `metrics`",
    )
    patience: PositiveInt = Field(
        default=2, description="evaluations without improvement before the end"
    )
    min_delta: NonNegativeFloat = Field(default=0.0, description="what counts as an improvement")

    @model_validator(mode="after")
    def _check(self) -> EarlyStoppingSection:
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(
                f"`training.early_stopping.metric` should name metrics that differ. Received "
                f"{self.metric}."
            )
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)


class TrainingSection(Section):
    """How the model is trained."""

    epochs: PositiveInt = Field(default=1, description="passes over the training data")
    batch_size: PositiveInt = Field(default=1024, description="samples a step")
    learning_rate: PositiveFloat = Field(default=1e-3, description="of the dense parameters")
    optimizer: Annotated[
        Literal["adam", "adamw", "adagrad", "sgd"], BeforeValidator(optimizer_value)
    ] = Field(default="adam", description="of the dense parameters")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="of the dense parameters")
    embedding_learning_rate: PositiveFloat | None = Field(
        default=None, description="of the tables; none: `learning_rate`"
    )
    embedding_optimizer: TableRule = Field(default="adam", description="of the tables")
    embedding_updates: Literal["lazy", "dense"] = Field(
        default="lazy",
        description="which rows of the tables a step updates: `lazy` those of the batch, `dense` all, "
        "as by the same optimizer outside of the backward pass; of adagrad, rowwise_adagrad and sgd "
        "without weight decay the two are the same",
    )
    embedding_weight_decay: NonNegativeFloat = Field(
        default=0.0,
        description="of the rows of the tables that a step updates: of adamw decoupled from the "
        "gradient, else an L2 penalty",
    )
    embedding_l2: NonNegativeFloat = Field(
        default=0.0,
        description="L2 penalty of the rows that the samples of the batch look up, in the gradient of "
        "the loss: half of it times the mean over the samples of the sum of their squares",
    )
    schedule: ScheduleSection = Field(
        default=ScheduleSection(), description="the learning rates over time"
    )
    clip_norm: PositiveFloat | None = Field(
        default=None, description="largest norm of the dense gradients; none: no limit"
    )
    accumulate: PositiveInt = Field(
        default=1, description="batches whose gradients are summed for a step"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the dense layers' products; weights stay fp32"
    )
    compile: bool = Field(default=False, description="use `torch.compile`")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="share by which labels move towards 1/2 in the loss that is trained on; "
        "metrics go by the labels",
    )
    average: AverageSection | None = Field(
        default=None, description="of the weights over the steps; none: the last ones are kept"
    )
    early_stopping: EarlyStoppingSection | None = Field(
        default=None, description="end before the last epoch; none: never"
    )
    evaluate_every: PositiveInt | None = Field(
        default=None, description="steps between evaluations; none: once an epoch"
    )
    checkpoint_every: PositiveInt | None = Field(
        default=None, description="steps between checkpoints; none: once an epoch"
    )
    keep_checkpoints: PositiveInt = Field(default=2, description="how many of the latest are kept")
    log_every: PositiveInt = Field(default=50, description="steps between lines of `metrics.jsonl`")
    tensorboard: bool = Field(default=False, description="write TensorBoard events as well")
    baselines: bool | None = Field(
        default=None,
        description="whether a constant and a logistic regression stand beside the result; none: the "
        "regression not beyond 5,000,000 rows",
    )
    seed: Seed = Field(default=0, description="of weights, shuffling and dropout")
    seeds: Annotated[int, Field(gt=0, le=1000)] = Field(
        default=1,
        description="how many, from `seed` on, to train with one after the other: several tell by how "
        "much chance moves the metrics",
    )
    ensemble: bool = Field(
        default=False,
        description="with several seeds, save the mean of their models' logits as one model",
    )
    threads: Threads | None = Field(
        default=None,
        description="of PyTorch; none: one or several, whichever the first steps show to be faster",
    )

    @model_validator(mode="after")
    def _check(self) -> TrainingSection:
        if self.ensemble and self.seeds == 1:
            raise ValueError(
                "`training.ensemble` should be given with several models to average: "
                "`training.seeds` of 2 or more. Received true with 1."
            )
        if self.seed + self.seeds > 2**63:
            raise ValueError(
                f"`training.seed` should leave numbers for the {self.seeds} of `training.seeds`, the "
                f"last below 2**63. Received {self.seed}."
            )
        return self


def _check_table_name(name: str, feature: AnyFeature) -> None:
    """Refuse a table that a collection of modules cannot hold by its name, as `train` or `type`."""
    if isinstance(feature, IdFeature):
        table: str | None = feature.table or name
        remedy = f"as `table: t_{feature.table or name}`"
        key = f"features.{name}.table"
    else:
        table = name if isinstance(feature, DenseFeature) and feature.buckets else None
        remedy, key = f"with `column: {feature.column or name}`", f"features.{name}"
    if table is not None and hasattr(nn.ModuleDict(), table):
        raise ValueError(
            f"`{key}` should be another name than '{table}', which PyTorch's nn.ModuleDict needs for "
            f"itself: give it one, {remedy}."
        )


class Experiment(Section):
    """One experiment: data, tasks, features, model, training, output."""

    data: DataSection = Field(description="where the samples are, and which column is the label")
    tasks: dict[str, TaskSection] | None = Field(
        default=None,
        description="several things to learn of a sample, in place of `data.label`",
    )
    features: dict[str, AnyFeature] | None = Field(
        default=None,
        description="what each column is to the model; none: inferred as `torchrec init` does",
    )
    model: ModelSection = Field(
        default_factory=lambda: ModelSection(), description="which model, and its options"
    )
    training: TrainingSection = Field(
        default=TrainingSection(), description="how the model is trained"
    )
    distributed: DistributedSection = Field(
        default=DistributedSection(), description="how ranks share the work, under `torchrun`"
    )
    continue_from: str | None = Field(
        default=None,
        description="a run, or its model, whose weights, vocabularies and maps of ids training begins "
        "with, as `torchrec train --from`; relative to the working directory; none: anew",
    )
    metrics: GroupMetrics = Field(
        default=[],
        description="what is measured of validation and test besides AUC, NE, log loss and calibration: "
        "`gauc(user)`, `ndcg@10(user)`, `recall@10(user)`, `precision@10(user)`, `hit@10(user)`, `mrr(user)`, "
        "within the rows of each value of a column, on average; one that names no column takes that of the "
        "others; of several tasks of each that has no `metrics` of its own",
    )
    output: str = Field(
        min_length=1,
        default="runs/experiment",
        description="the run folder, relative to the working directory; by default `runs/` and "
        "the name of the experiment file",
    )

    # What is written into runs has none: it is done with then.
    tune: dict[str, object] | None = Field(
        default=None,
        exclude=True,
        description="what `torchrec tune` varies: by key of model and training, as "
        "`training.learning_rate`, a list of values, or a section with `low` and `high`, and maybe `log: "
        "true` and `step`; none: what suits the model",
    )

    @property
    def group_metrics(self) -> list[str]:
        """What is measured within groups, of any task, each once."""
        found = {} if self.tasks else dict.fromkeys(self.metrics)
        for task in (self.tasks or {}).values():
            found |= dict.fromkeys(self.metrics if task.metrics is None else task.metrics)
        return list(found)

    def with_metrics(self, metrics: Sequence[str]) -> Experiment:
        """Return an experiment that measures further metrics within groups, of all tasks but those of classes.

        Args:
            metrics: as ``"ndcg@10(user)"``.

        Raises:
            ValueError: if one is none, or no task can have it.

        Example:
            >>> tasks = {"buy": {"label": "buy", "metrics": []}, "watch": {"label": "s", "kind": "regression"}}
            >>> values = {"data": {"train": "/log.csv"}, "tasks": tasks, "metrics": ["gauc(user)"]}
            >>> measured = Experiment.model_validate(values).with_metrics(["hit@1(list)"])
            >>> measured.tasks["buy"].metrics, measured.tasks["watch"].metrics
            (['hit@1(list)'], ['gauc(user)', 'hit@1(list)'])
        """
        more = [metric_of_groups(text) for text in with_shared_column(metrics)]
        if more and self.tasks and all(task.target.classes for task in self.tasks.values()):
            raise ValueError(
                f"`metrics` should be of tasks that order samples by one score. Received {more[0]} for "
                f"{', '.join(self.tasks)}, of classes."
            )

        def joined(known: Sequence[str]) -> dict[str, list[str]]:
            return {"metrics": list(dict.fromkeys([*known, *more]))}

        if self.tasks is None:
            return self.model_copy(update=joined(self.metrics))
        tasks = {
            name: task
            if task.target.classes is not None
            else task.model_copy(
                update=joined(self.metrics if task.metrics is None else task.metrics)
            )
            for name, task in self.tasks.items()
        }
        return self.model_copy(update={"tasks": tasks})

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        check_within_groups(self.metrics, self.tasks)
        if self.features is not None and not self.features:
            raise ValueError(
                "`features` should name at least one feature, or be left out to be inferred. "
                "Received none."
            )
        self._check_tasks()
        self._check_stopping()
        if self.continue_from is not None and self.distributed.first_weights == "by_part":
            raise ValueError(
                "`continue_from` should be given with `distributed.first_weights` whole, as its weights "
                f"are. Received '{self.continue_from}' with by_part."
            )
        for name, feature in (self.features or {}).items():
            for part in (name, getattr(feature, "table", None)):
                if part is not None and (not part or "." in part):
                    raise ValueError(
                        "Features and tables should have names without dots, as they are parts of "
                        f"other names. Received '{part}': give it another name, with "
                        f"`column: {feature.column or name}`."
                    )
            _check_table_name(name, feature)
        return self

    def _check_tasks(self) -> None:
        """Refuse tasks that contradict one another, or the label."""
        tasks = self.tasks
        if (self.data.label is None) == (not tasks):
            received = "neither" if not tasks else "both"
            raise ValueError(
                "`data.label` should be given, the column of 0 and 1 to predict, or an expression such as "
                f"`rating > 3`; or `tasks` in its place. Received {received}."
            )
        if self.training.baselines and tasks is not None:
            raise ValueError(
                "`training.baselines` should be given for one `data.label`. Received true for tasks "
                f"{', '.join(tasks)}."
            )
        if self.data.negatives < 1 and tasks is not None:
            raise ValueError(
                "`data.negatives` should be given for one `data.label`, whose probabilities are "
                f"corrected for it. Received {self.data.negatives} for tasks {', '.join(tasks)}."
            )
        for name, task in (tasks or {}).items():
            if not name or "." in name:
                raise ValueError(
                    f"`tasks` should have names without dots. Received '{name}': they are parts of the "
                    "names of metrics."
                )
            self._check_given(name, task)

    def _check_stopping(self) -> None:
        """Refuse metrics that no task has."""
        stopping, tasks = self.training.early_stopping, self.tasks
        known = metrics_of(tasks, self.metrics)
        for metric in () if stopping is None else stopping.metrics:
            if metric not in known:
                near = did_you_mean(metric, known, quote="`")
                raise ValueError(
                    f"`training.early_stopping.metric` should be one of {', '.join(known)}, or a list "
                    f"of them. Received '{metric}'{near or '.'}"
                )

    def _check_given(self, name: str, task: TaskSection) -> None:
        if task.given is None:
            return
        other = (self.tasks or {}).get(task.given)
        if other is None or other is task or other.kind != "click":
            raise ValueError(
                f"`tasks.{name}.given` should be another task of kind click. Received "
                f"'{task.given}'."
            )
        if self.model.name == "esmm":
            raise ValueError(
                f"`tasks.{name}.given` should be left out with model esmm, which learns of all "
                f"samples: give '{name}' a label that is 1 only where that of '{task.given}' is, such as "
                f"`{other.label} == 1 and {task.label} == 1`."
            )
