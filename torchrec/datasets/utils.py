"""The public names of what data sets share."""

from torchrec.datasets._batch import Batch

__all__ = ["Batch"]
