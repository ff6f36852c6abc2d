"""What is measured of which tasks: configurations of `torchrec.metrics.metric_module`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torchrec.metrics.metrics_namespace import StrValueMixin


class RecMetricEnumBase(StrValueMixin, Enum):
    """What metrics are members of; subclass it for metrics of your own."""


class RecMetricEnum(RecMetricEnumBase):
    """The metrics that there are."""

    NE = "ne"
    NE_POSITIVE = "ne_positive"
    RECALIBRATED_NE = "recalibrated_ne"
    RECALIBRATED_CALIBRATION = "recalibrated_calibration"
    SEGMENTED_NE = "segmented_ne"
    LOG_LOSS = "log_loss"
    CTR = "ctr"
    AUC = "auc"
    AUPRC = "auprc"
    RAUC = "rauc"
    CALIBRATION = "calibration"
    MSE = "mse"
    MAE = "mae"
    MULTICLASS_RECALL = "multiclass_recall"
    RECALL_SESSION_LEVEL = "recall_session_level"
    PRECISION_SESSION_LEVEL = "precision_session_level"
    WEIGHTED_AVG = "weighted_avg"
    TOWER_QPS = "tower_qps"
    ACCURACY = "accuracy"
    NDCG = "ndcg"
    XAUC = "xauc"
    SCALAR = "scalar"
    PRECISION = "precision"
    RECALL = "recall"
    SERVING_NE = "serving_ne"
    SERVING_CALIBRATION = "serving_calibration"
    SERVING_AE_LOSS = "serving_ae_loss"
    OUTPUT = "output"
    TENSOR_WEIGHTED_AVG = "tensor_weighted_avg"
    CALI_FREE_NE = "cali_free_ne"
    UNWEIGHTED_NE = "unweighted_ne"
    HINDSIGHT_TARGET_PR = "hindsight_target_pr"
    NMSE = "nmse"
    AVERAGE = "average"
    MULTI_LABEL_PRECISION = "multi_label_precision"
    NUM_POSITIVE_SAMPLES = "num_positive_samples"
    SUM_WEIGHTS = "sum_weights"
    NUM_MISSING_LABELS = "num_missing_labels"
    WEIGHTED_SUM_PREDICTIONS = "weighted_sum_predictions"


@dataclass(unsafe_hash=True, eq=True)
class SessionMetricDef:
    """How the samples of a task form sessions.

    Args:
        session_var_name: the output of the model that says which session a sample belongs to.
        top_threshold: how many of the best predictions of a session count as positive; all by default.
        run_ranking_of_labels: rank the labels as well as the predictions. Default: False.
    """

    session_var_name: str
    top_threshold: int | None = None
    run_ranking_of_labels: bool = False


@dataclass(unsafe_hash=True, eq=True)
class RecTaskInfo:
    """A task of a model: where its labels, predictions and weights are among the outputs.

    Args:
        name: what the task is called in the names of its metrics. Default: ``"DefaultTask"``.
        label_name: the output with the labels. Default: ``"label"``.
        prediction_name: the output with the predictions; empty for a task without, which metrics leave
            out, as the API does. Default: ``"prediction"``.
        weight_name: the output with the weights of the samples. Default: ``"weight"``.
        session_metric_def: how samples form sessions; only metrics of sessions ask for it.
        is_negative_task: the labels say what should not be shown. Default: False.
        tensor_name: an output of which a mean is reported; only ``TENSOR_WEIGHTED_AVG`` asks for it.
        weighted: whether that mean is weighted. Default: True.
    """

    name: str = "DefaultTask"
    label_name: str = "label"
    prediction_name: str = "prediction"
    weight_name: str = "weight"
    session_metric_def: SessionMetricDef | None = None
    is_negative_task: bool = False
    tensor_name: str | None = None
    weighted: bool = True


class RecComputeMode(Enum):
    """How the tasks of a metric are held.

    ``FUSED_TASKS_COMPUTATION``: all tasks in one state, a row each; they have batches of one size.
    ``UNFUSED_TASKS_COMPUTATION``: a state of its own for each task; a task may be missing in a batch.
    ``FUSED_TASKS_AND_STATES_COMPUTATION``: as the first; that all sums of a metric are one tensor as
    well, is so in every mode here.
    """

    FUSED_TASKS_COMPUTATION = 1
    UNFUSED_TASKS_COMPUTATION = 2
    FUSED_TASKS_AND_STATES_COMPUTATION = 3


_DEFAULT_WINDOW_SIZE = 10_000_000


@dataclass
class RecMetricDef:
    """Of which tasks a metric is, and over how many samples.

    Args:
        rec_tasks: the tasks; or
        rec_task_indices: their positions in ``MetricsConfig.rec_tasks``. One of the two has to be given.
        window_size: over how many samples of all ranks together the window is. Default: 10,000,000.
        arguments: what else the metric takes. Default: nothing.
    """

    rec_tasks: list[RecTaskInfo] = field(default_factory=list)
    rec_task_indices: list[int] = field(default_factory=list)
    window_size: int = _DEFAULT_WINDOW_SIZE
    arguments: dict[str, Any] | None = None


class StateMetricEnum(StrValueMixin, Enum):
    """What else can be reported beside metrics of tasks."""

    OPTIMIZERS = "optimizers"
    MODEL_CONFIGURATOR = "model_configurator"


@dataclass
class ThroughputDef:
    """How throughput is measured.

    Args:
        window_size: the window, in seconds. Default: 100.
        warmup_steps: how many steps at the start do not count. Default: 100.
    """

    window_size: int = 100
    warmup_steps: int = 100


@dataclass
class BatchSizeStage:
    """A stretch of training with one batch size.

    Args:
        batch_size: samples of one rank in a step.
        max_iters: for how many steps; None for the last stage, which has no end.
    """

    batch_size: int = 0
    max_iters: int | None = 0


def validate_batch_size_stages(batch_size_stages: list[BatchSizeStage] | None) -> None:
    """Check that the last stage has no end.

    Raises:
        ValueError: if it has one.
    """
    if batch_size_stages and batch_size_stages[-1].max_iters is not None:
        raise ValueError(
            "`max_iters` of the last of `batch_size_stages` should be None. Received "
            f"{batch_size_stages[-1].max_iters}."
        )


@dataclass
class MetricsConfig:
    """All that is measured while a model trains or is evaluated.

    Args:
        rec_tasks: the tasks of the model; definitions of metrics can name them by position.
        rec_metrics: the metrics, with the tasks and the window of each.
        throughput_metric: how throughput is measured; None: it is not.
        rec_compute_mode: how the tasks of a metric are held. Default: each by itself.
        fused_update_limit: join this many batches before metrics take them in; only where tasks are not
            fused. Default: 0, take each in at once.
        state_metrics: what else is reported.
        compute_interval_steps: after how many steps metrics are computed. Default: 100.
        min_compute_interval: at least this many seconds lie between two computations.
        max_compute_interval: at most this many do. If one of the two is given, the number of steps
            follows the time that steps take.
        compute_on_all_ranks: report on all ranks, and not on the first alone.
        should_validate_update: report 0 for a task until a batch came in which a sample has a weight;
            where tasks are not fused, batches without any are left out of its windows.
        enable_pt2_compile: of no effect here, and refused: there is nothing that compiling would speed up.
        should_clone_update_inputs: copy what metrics hold between steps, for models whose outputs are
            written over.
        use_cpu_offloaded_rec_metric_module: the module should be one that computes in a thread, and no other.
    """

    rec_tasks: list[RecTaskInfo] = field(default_factory=list)
    rec_metrics: dict[RecMetricEnum, RecMetricDef] = field(default_factory=dict)
    throughput_metric: ThroughputDef | None = None
    rec_compute_mode: RecComputeMode = RecComputeMode.UNFUSED_TASKS_COMPUTATION
    fused_update_limit: int = 0
    state_metrics: list[StateMetricEnum] = field(default_factory=list)
    compute_interval_steps: int = 100
    min_compute_interval: float = 0.0
    max_compute_interval: float = math.inf
    compute_on_all_ranks: bool = False
    should_validate_update: bool = False
    enable_pt2_compile: bool = False
    should_clone_update_inputs: bool = False
    use_cpu_offloaded_rec_metric_module: bool | None = None
