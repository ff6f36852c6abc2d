"""The search for the options with which an experiment does best on its validation data.

Needs the extra ``tune`` (Optuna).
"""

from torchrec.tuning.page import write_page
from torchrec.tuning.results import Tuning, label_of
from torchrec.tuning.search import TuningOptions, read_tuning, tune
from torchrec.tuning.space import (
    Choice,
    Range,
    SearchSpace,
    default_space,
    name_of,
    parse_space,
    text_of,
)
from torchrec.tuning.trials import Trial

__all__ = [
    "Choice",
    "Range",
    "SearchSpace",
    "Trial",
    "Tuning",
    "TuningOptions",
    "default_space",
    "label_of",
    "name_of",
    "parse_space",
    "read_tuning",
    "text_of",
    "tune",
    "write_page",
]
