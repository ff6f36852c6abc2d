"""The pipelines of the API, by their names.

All ranks call `progress` alike. One that has run out of data takes part with batches of no samples until all have: so
each rank may have as many batches as it has, and none waits for one that has stopped. What fails to give a batch on
one rank is raised on all.
"""

from __future__ import annotations

from torchrec.distributed.train_pipeline.compiled import (
    TorchCompileConfig,
    TrainPipelinePT2,
    TrainPipelineSparseDistCompAutograd,
)
from torchrec.distributed.train_pipeline.lookups import (
    EvalPipelineFusedSparseDist,
    PrefetchTrainPipelineSparseDist,
    TrainPipelineFusedSparseDist,
    TrainPipelineSemiSync,
)
from torchrec.distributed.train_pipeline.plain import TrainPipeline, TrainPipelineBase
from torchrec.distributed.train_pipeline.sparse_dist import (
    EvalPipelineSparseDist,
    TrainPipelineSparseDist,
    TrainPipelineSparseDistLite,
)
from torchrec.distributed.train_pipeline.staged import StagedTrainPipeline

__all__ = [
    "EvalPipelineFusedSparseDist",
    "EvalPipelineSparseDist",
    "PrefetchTrainPipelineSparseDist",
    "StagedTrainPipeline",
    "TorchCompileConfig",
    "TrainPipeline",
    "TrainPipelineBase",
    "TrainPipelineFusedSparseDist",
    "TrainPipelinePT2",
    "TrainPipelineSemiSync",
    "TrainPipelineSparseDist",
    "TrainPipelineSparseDistCompAutograd",
    "TrainPipelineSparseDistLite",
]
