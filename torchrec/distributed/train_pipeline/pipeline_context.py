"""What a pipeline keeps of one batch: what was sent ahead for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from torchrec.distributed.train_pipeline.started_inputs import StartedInputs
from torchrec.distributed.types import Awaitable
from torchrec.streamable import Multistreamable

__all__ = ["EmbeddingTrainPipelineContext", "PrefetchTrainPipelineContext", "TrainPipelineContext"]


@dataclass
class TrainPipelineContext:
    """One batch on its way through a pipeline. Names are those of calls: the path of a module, and which call it is.

    Attributes:
        input_dist_splits_requests: name -> sizes of what is sent, on their way.
        input_dist_tensors_requests: name -> what is sent, on its way.
        module_contexts: name -> context of the call.
        module_contexts_next_batch: of no use here: each batch has a context of its own.
        fused_splits_awaitables: of no use here: each call sends the sizes of all its tables at once.
        events: of accelerators.
        postproc_fwd_results: path -> what a `PipelinedPostproc` has returned for the batch.
        index: number of the batch since the pipeline was made.
        version: of the API's layout of these fields.
        inputs: what was sent ahead; None: nothing yet.
    """

    input_dist_splits_requests: dict[str, Awaitable[Any]] = field(default_factory=dict)
    input_dist_tensors_requests: dict[str, Awaitable[Any]] = field(default_factory=dict)
    module_contexts: dict[str, Multistreamable] = field(default_factory=dict)
    module_contexts_next_batch: dict[str, Multistreamable] = field(default_factory=dict)
    fused_splits_awaitables: list[Any] = field(default_factory=list)
    events: list[torch.Event] = field(default_factory=list)
    postproc_fwd_results: dict[str, Any] = field(default_factory=dict)
    index: int | None = None
    version: int = 0
    inputs: StartedInputs | None = None


@dataclass
class PrefetchTrainPipelineContext(TrainPipelineContext):
    """One batch on its way through a `PrefetchTrainPipelineSparseDist`."""


@dataclass
class EmbeddingTrainPipelineContext(TrainPipelineContext):
    """One batch on its way through a pipeline that looks tables up before the forward pass."""
