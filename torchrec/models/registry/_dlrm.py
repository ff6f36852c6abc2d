"""What DLRM and its kin have in common."""

from __future__ import annotations

from torchrec.models.dlrm import DLRM, DenseArch, OverArch, SparseArch
from torchrec.models.registry._registry import ModelInputs
from torchrec.models.registry._tower import TowerOptions


def with_options(model: DLRM, options: TowerOptions, inputs: ModelInputs) -> DLRM:
    """Put a `Tower` in the place of the network over the interaction, and heed the other options.

    Parts that have no other option stay: making them again would draw other weights.
    """
    assert isinstance(model.over_arch, OverArch)
    assert inputs.pooled is not None
    if options.embedding_dropout:
        model.sparse_arch = SparseArch(inputs.pooled, options.embedding_dropout)
    if inputs.num_dense and options.activation != "relu":
        sizes = [*options.dense_layers, model.sparse_arch.D]
        model.dense_arch = DenseArch(inputs.num_dense, sizes, activation=options.activation)
    model.over_arch = options.tower(model.over_arch.in_features)
    return model
