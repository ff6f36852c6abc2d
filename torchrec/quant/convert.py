"""From a model with float tables to one with quantised ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torchrec.checks import require_type
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.quant import embedding_modules as quant
from torchrec.quant.weights import new_config

QUANTIZED_FORMS: Mapping[type[nn.Module], type[nn.Module]] = {
    EmbeddingBagCollection: quant.EmbeddingBagCollection,
    EmbeddingCollection: quant.EmbeddingCollection,
    FeatureProcessedEmbeddingBagCollection: quant.FeatureProcessedEmbeddingBagCollection,
    ManagedCollisionEmbeddingBagCollection: quant.QuantManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection: quant.QuantManagedCollisionEmbeddingCollection,
}


def quantize_embeddings(
    module: nn.Module,
    dtype: torch.dtype,
    inplace: bool,
    additional_qconfig_spec_keys: Sequence[type[nn.Module]] | None = None,
    additional_mapping: Mapping[type[nn.Module], type[nn.Module]] | None = None,
    output_dtype: torch.dtype = torch.float32,
    per_table_weight_dtype: dict[str, torch.dtype] | None = None,
    search_clipping: bool = False,
) -> nn.Module:
    """Return a model with its collections of tables quantised.

    Args:
        module: the model, or a collection.
        dtype: of the tables: ``torch.qint8`` (or int8), ``quint4x2``, ``quint2x4``, ``float16``, ``bfloat16`` or
            ``float32``.
        inplace: put the quantised collections into this model, so that the memory of each is free as soon as it is
            quantised. Else the model stays as it is, and what is returned shares nothing with it; float tables are
            not copied.
        additional_qconfig_spec_keys: without further effect: types in ``additional_mapping`` are quantised.
        additional_mapping: further types of collections, and the class whose ``from_float`` quantises each.
        output_dtype: of look-ups: float32, float16 or bfloat16.
        per_table_weight_dtype: tables of another dtype, by name.
        search_clipping: search for the bounds of the numbers of each row that lose least, see
            `torchrec.ops.quant.search_bounds`. Takes some fifty times as long, and is better with four bits and two.

    Returns:
        The model; the quantised collection where ``module`` is one itself.

    Raises:
        ValueError: for a table with weights that are not finite, naming table and row; or a dtype that tables do not
            have.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(100, 64, "t", feature_names=["f"])
        >>> model = nn.Sequential(EmbeddingBagCollection(tables=[table]))
        >>> quantized = quantize_embeddings(model, torch.qint8, inplace=False)
        >>> quantized.state_dict()["0.embedding_bags.t.weight"].shape, model[0].device.type
        (torch.Size([100, 80]), 'cpu')
    """
    require_type(module, "`module`", nn.Module)
    mapping = {**QUANTIZED_FORMS, **(additional_mapping or {})}
    config = new_config(
        dtype,
        output_dtype,
        per_table_weight_dtype=per_table_weight_dtype,
        search_clipping=search_clipping,
    )
    return put_in_place(module, mapping, dict.fromkeys(mapping, config), inplace)


def put_in_place(
    model: nn.Module,
    mapping: Mapping[type[nn.Module], type[nn.Module]],
    configs: Mapping[type[nn.Module], Any],
    inplace: bool,
) -> nn.Module:
    """Return a model with quantised modules in place of those whose types are mapped.

    Args:
        model: the model, or such a module.
        mapping: type of a module -> the class whose ``from_float`` quantises it.
        configs: type -> what it is quantised to, a `QuantConfig`.
        inplace: change the model, instead of a copy.
    """
    made: dict[int, nn.Module] = {}
    if type(model) in mapping:
        return _from_float(model, mapping[type(model)], configs[type(model)])
    for parent, name, child in list(_outermost(model, mapping)):
        if id(child) not in made:
            made[id(child)] = _from_float(child, mapping[type(child)], configs[type(child)])
        if inplace:
            parent.register_module(name, made[id(child)])
    # What is in `made` is taken for the copy of what it was made of, which hence is never copied.
    return model if inplace else copy.deepcopy(model, {**made})


def _outermost(
    module: nn.Module, mapping: Mapping[type[nn.Module], type[nn.Module]]
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Give each module of a type in the mapping that is not within another: parent, name and module."""
    for name, child in module.named_children():
        if type(child) in mapping:
            yield module, name, child
        else:
            yield from _outermost(child, mapping)


def _from_float(module: nn.Module, kind: Any, config: Any) -> nn.Module:
    """Return the quantised form of a module, which `from_float` asks by its ``qconfig`` what it is to become."""
    # Another object with the same weights and modules: the caller's stays as it is.
    with_config = type(module).__new__(type(module))
    vars(with_config).update(vars(module), qconfig=config)
    made: nn.Module = kind.from_float(with_config)
    return made.train(module.training)
