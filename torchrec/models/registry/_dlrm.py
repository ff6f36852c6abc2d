"""What DLRM and its kin have in common."""

from __future__ import annotations

from torchrec.models.dlrm import DLRM, OverArch
from torchrec.models.registry._tower import TowerOptions


def with_tower(model: DLRM, options: TowerOptions) -> DLRM:
    """Put a `Tower` in the place of the network over the interaction."""
    assert isinstance(model.over_arch, OverArch)
    model.over_arch = options.tower(model.over_arch.in_features)
    return model
