"""Look at data and propose an experiment for it: what `torchrec init` does.

`infer_features` says what each column is to a model, `write_experiment` writes that as a commented
experiment file.
"""

from torchrec.experiment.propose._decide import ColumnProposal
from torchrec.experiment.propose._write import propose_experiment, write_experiment
from torchrec.experiment.propose.infer import Inference, infer_features

__all__ = [
    "ColumnProposal",
    "Inference",
    "infer_features",
    "propose_experiment",
    "write_experiment",
]
