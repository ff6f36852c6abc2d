"""`infer_features` where it was before `torchrec.experiment.propose`, for programs that import it from here."""

from torchrec.experiment.propose.infer import Inference, infer_features

__all__ = ["Inference", "infer_features"]
