"""What DLRM and its kin have in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from torchrec.models._interactions import WithVectors
from torchrec.models.dlrm import DLRM, DenseArch, OverArch, SparseArch
from torchrec.models.registry._registry import ModelInputs
from torchrec.models.registry._tower import TowerOptions


def with_options(
    model: DLRM, options: TowerOptions, inputs: ModelInputs, vectors: bool = False
) -> DLRM:
    """Put a `Tower` in the place of the network over the interaction, and heed the other options.

    Args:
        model: changed in place.
        options: of the experiment.
        inputs: what the model was built on.
        vectors: whether the tower gets the sparse vectors beside what the interaction gives.
    """
    return with_head(model, options, inputs, options.tower, vectors)


def with_head(
    model: DLRM,
    options: TowerOptions,
    inputs: ModelInputs,
    make_head: Callable[[int], nn.Module],
    vectors: bool = False,
    width: int | None = None,
) -> DLRM:
    """Put another network in the place of that over the interaction, and heed the other options.

    Parts that have no other option stay: making them again would draw other weights.

    Args:
        model: changed in place.
        options: of the experiment.
        inputs: what the model was built on.
        make_head: makes the network over so many numbers a sample.
        vectors: whether it gets the sparse vectors beside what the interaction gives.
        width: of what the interaction gives. Default: as the model was made.
    """
    assert isinstance(model.over_arch, OverArch)
    assert inputs.pooled is not None
    if options.embedding_dropout:
        model.sparse_arch = SparseArch(inputs.pooled, options.embedding_dropout)
    if inputs.num_dense and options.activation != "relu":
        sizes = [*options.dense_layers, model.sparse_arch.D]
        model.dense_arch = DenseArch(inputs.num_dense, sizes, activation=options.activation)
    width = model.over_arch.in_features if width is None else width
    if vectors:
        model.inter_arch = WithVectors(model.inter_arch)
        width += model.sparse_arch.F * model.sparse_arch.D
    model.over_arch = make_head(width)
    return model
