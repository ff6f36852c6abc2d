"""How the page shows tasks, a file for each kind of label: what it draws, and what its tables tell of a slice."""

from __future__ import annotations

from collections.abc import Mapping

from torchrec.datasets.transform import TargetKind
from torchrec.report.kinds.classes import MULTICLASS, ORDINAL
from torchrec.report.kinds.click import CLICK
from torchrec.report.kinds.display import Display
from torchrec.report.kinds.regression import REGRESSION

DISPLAYS: Mapping[TargetKind, Display] = {
    "click": CLICK,
    "regression": REGRESSION,
    "multiclass": MULTICLASS,
    "ordinal": ORDINAL,
}
