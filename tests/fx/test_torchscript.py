"""`torch.jit.trace` over models that make their sparse features of tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.fx.sparse_samples import FUSED, KEYS, SPARSE, bags, ids, sequences
from torchrec import KeyedJaggedTensor

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

POOLED = [
    "DLRM",
    "DLRM_DCN",
    "DLRM_Projection",
    "DLRM_Transformer",
    "DeepFactorizationMachine",
    "DeepFactorizationMachine, weights of ids",
    "FactorizationMachineModel",
    "LogisticRegression",
    "SimpleDeepFMNN",
]


class Served(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        return self.model(dense, KeyedJaggedTensor(KEYS, values, lengths=lengths))


def inputs(batch: int) -> tuple[Tensor, ...]:
    kjt = ids(batch)
    return torch.randn(batch, 7), kjt.values(), kjt.lengths()


@pytest.mark.parametrize("name", POOLED)
def test_models_are_recorded_without_their_gradient(name) -> None:
    model = Served(SPARSE[name].make()).eval()
    with torch.no_grad():
        recorded = torch.jit.trace(model, inputs(5))
        for batch in (2, 5, 9):
            example = inputs(batch)
            torch.testing.assert_close(recorded(*example), model(*example))


class Looked(nn.Module):
    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, values: Tensor, lengths: Tensor) -> object:
        looked = self.tables(KeyedJaggedTensor(KEYS, values, lengths=lengths))
        return looked["f1"] if isinstance(looked, dict) else looked.values()


@pytest.mark.parametrize("options", [{}, FUSED], ids=["dense", "fused"])
def test_a_look_up_with_its_gradient_is_refused(options) -> None:
    with pytest.raises(NotImplementedError, match=r"call it under `torch.no_grad\(\)`"):
        torch.jit.trace(Looked(bags(**options)), inputs(3)[1:])


def test_sequences_need_sums_of_lengths() -> None:
    with torch.no_grad(), pytest.raises(NotImplementedError, match="should not need sums of len"):
        torch.jit.trace(Looked(sequences()), inputs(3)[1:])
