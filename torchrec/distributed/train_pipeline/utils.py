"""Names that the API has here."""

from torchrec.distributed.train_pipeline.data_loading import DataLoadingThread
from torchrec.distributed.train_pipeline.tracing import Tracer

__all__ = ["DataLoadingThread", "Tracer"]
