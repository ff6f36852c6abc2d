"""What is said of the state of quantised tables in parts is so: the state of the whole can be written by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.distributed.quantised import DTYPES, PLANS, bag_tables, batch, quantised, sharded
from torchrec import EmbeddingBagCollection
from torchrec.distributed.quant_embeddingbag import QuantEmbeddingBagCollectionSharder
from torchrec.distributed.quant_state import WeightSpec, sharded_tbes_weights_spec
from torchrec.inference.modules import DEFAULT_FUSED_PARAMS
from torchrec.quant.embedding_modules import quant_prep_enable_quant_state_dict_split_scale_bias

pytestmark = pytest.mark.once


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_is_written_by_its_specs(dtype: torch.dtype, plan: str) -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables())
    quant_prep_enable_quant_state_dict_split_scale_bias(ebc)
    whole = nn.ModuleDict({"ebc": quantised(ebc, dtype)})
    parts = nn.ModuleDict(
        {"ebc": sharded(whole["ebc"], QuantEmbeddingBagCollectionSharder(), plan)}
    )
    for rows in whole.state_dict().values():
        rows.copy_(rows.flip(0))  # other numbers than those that the parts have
    state, specs = whole.state_dict(), sharded_tbes_weights_spec(parts)
    written = parts.state_dict()
    assert specs.keys() == written.keys()
    for name, spec in specs.items():
        source = state[spec.fqn]
        rows, columns = (
            slice(offset, offset + size)
            for offset, size in zip(spec.shard_offsets, spec.shard_sizes, strict=True)
        )
        if spec.fqn.endswith(".weight"):
            table = parts.get_submodule(name.rpartition(".")[0])
            bits = table.format.bits
            columns = slice(columns.start * bits // 8, -(-columns.stop * bits // 8))
        written[name] = source[rows, columns]
    parts.load_state_dict(written)
    features = batch(1)
    found, expected = (model["ebc"](features).values() for model in (parts, whole))
    assert torch.equal(found, expected)


def test_scales_are_apart_where_asked() -> None:
    made = quantised(EmbeddingBagCollection(tables=bag_tables()), torch.qint8)
    together = sharded(made, QuantEmbeddingBagCollectionSharder(), "table_wise")
    assert sharded_tbes_weights_spec(together)["tbes.2.0.t1.weight"] == WeightSpec(
        "embedding_bags.t1.weight", [0, 0], [4, 8], "table_wise"
    )
    assert together.state_dict()["tbes.2.0.t1.weight"].shape == (4, 16)
    apart = sharded(made, QuantEmbeddingBagCollectionSharder(DEFAULT_FUSED_PARAMS), "row_wise")
    specs = sharded_tbes_weights_spec(apart)
    assert specs["tbes.1.0.t1.weight_qscale"] == WeightSpec(
        "embedding_bags.t1.weight_qscale", [2, 0], [2, 1], "row_wise"
    )
    assert specs.keys() == apart.state_dict().keys()


def test_tables_without_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no quantised table is without bounds. Received \['t'\]"):
        sharded_tbes_weights_spec(nn.Linear(1, 1), {"t": [1]})
    assert sharded_tbes_weights_spec(nn.Linear(1, 1)) == {}
