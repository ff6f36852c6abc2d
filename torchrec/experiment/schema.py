"""The experiment file: its sections, keys, types and defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from torchrec.datasets.features import AnyFeature

Paths = list[str]
ModelName = Literal["dlrm", "dlrm_dcn", "deepfm"]


class Section(BaseModel):
    """A section of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class SplitSection(Section):
    """How `data.train` is divided where `data.valid` or `data.test` are not given."""

    by: Literal["fraction", "time"] = "fraction"
    valid: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test: Annotated[float, Field(ge=0, lt=1)] = 0.1
    column: str | None = None
    seed: NonNegativeInt = 0


class DataSection(Section):
    """Where the samples are, and which column is the label."""

    train: Paths
    valid: Paths = []
    test: Paths = []
    format: Literal["auto", "parquet", "csv", "tsv"] = "auto"
    columns: list[str] | None = None
    label: str
    drop: str | None = None
    split: SplitSection = SplitSection()
    shuffle_window: PositiveInt = 131_072
    workers: PositiveInt = 2


class ModelSection(Section):
    """Which model, and its sizes."""

    name: ModelName = "dlrm_dcn"
    dim: PositiveInt = 16
    dense_layers: list[PositiveInt] = [64]
    layers: list[PositiveInt] = [256, 128]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: bool = False
    cross_layers: NonNegativeInt = 3
    cross_rank: PositiveInt = 64
    deep_fm_dim: PositiveInt = 16


class ScheduleSection(Section):
    """The learning rates over time, as factors of those configured."""

    warmup_steps: NonNegativeInt = 0
    decay: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0


class EarlyStoppingSection(Section):
    """Stop when `metric` of the validation data has not improved for `patience` evaluations."""

    metric: Literal["auc", "ne", "logloss"] = "auc"
    patience: PositiveInt = 2
    min_delta: NonNegativeFloat = 0.0


class TrainingSection(Section):
    """How the model is trained."""

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 1024
    learning_rate: PositiveFloat = 1e-3
    optimizer: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    weight_decay: NonNegativeFloat = 0.0
    embedding_learning_rate: PositiveFloat | None = None
    embedding_optimizer: Literal["adam", "adagrad", "rowwise_adagrad", "sgd"] = "adam"
    embedding_weight_decay: NonNegativeFloat = 0.0
    schedule: ScheduleSection = ScheduleSection()
    clip_norm: PositiveFloat | None = None
    accumulate: PositiveInt = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    early_stopping: EarlyStoppingSection | None = None
    evaluate_every: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 50
    tensorboard: bool = False
    seed: NonNegativeInt = 0
    threads: PositiveInt | None = None


class Experiment(Section):
    """One experiment: data, features, model, training, output."""

    data: DataSection
    features: dict[str, AnyFeature] | None = None
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    output: str = "runs/experiment"
