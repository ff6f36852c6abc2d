"""Models with an interaction learn a product of two features; a linear model does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection

ROWS, DIM, DENSE = 20, 4, 2
BATCH, STEPS, TEST = 512, 300, 20_000
NEAR = 0.005


class Linear(nn.Module):
    """Logistic regression: a weight for every dense feature and every id."""

    def __init__(self, ebc: EmbeddingBagCollection) -> None:
        super().__init__()
        self.ebc = ebc
        self.dense = nn.Linear(DENSE, 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        ids = self.ebc(sparse_features).values()
        return self.dense(dense_features) + ids.sum(1, keepdim=True)


class Logits(nn.Module):
    """DeepFM gives probabilities; the loss here takes logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return self.model(dense_features, sparse_features).logit(eps=1e-6)


def tables(dim: int = DIM) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(ROWS, dim, f"{name}_table", feature_names=[name])
            for name in ("user", "item")
        ]
    )


MODELS = {
    "dlrm": lambda: DLRM(tables(), DENSE, [8, DIM], [16, 1]),
    "projection": lambda: DLRM_Projection(
        tables(), DENSE, [8, DIM], [16, 1], [16, 2 * DIM], [16, 2 * DIM]
    ),
    "dcn": lambda: DLRM_DCN(tables(), DENSE, [8, DIM], [16, 1], 2, 4),
    "deepfm": lambda: Logits(SimpleDeepFMNN(DENSE, tables(), 8, 16)),
    "linear": lambda: Linear(tables(1)),
}


class Taste:
    """Users click on items by the product of a number of the user and one of the item."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.user, self.item = torch.randn(2, ROWS)

    def draw(self, samples: int) -> tuple[Tensor, KeyedJaggedTensor, Tensor, Tensor]:
        """Return dense features (noise), ids, labels, and the probability of each label."""
        users, items = torch.randint(0, ROWS, (2, samples))
        probability = torch.sigmoid(2 * self.user[users] * self.item[items])
        ids = KeyedJaggedTensor(
            ["user", "item"],
            torch.cat([users, items]),
            lengths=torch.ones(2 * samples, dtype=torch.int64),
        )
        labels = torch.bernoulli(probability)
        return torch.randn(samples, DENSE), ids, labels, probability


def auc_and_best(model: nn.Module) -> tuple[float, float]:
    taste = Taste()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    model.train()
    for _ in range(STEPS):
        dense, ids, labels, _ = taste.draw(BATCH)
        loss = nn.functional.binary_cross_entropy_with_logits(model(dense, ids)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    dense, ids, labels, probability = taste.draw(TEST)
    with torch.no_grad():
        score = model(dense, ids)[:, 0]
    return roc_auc_score(labels, score), roc_auc_score(labels, probability)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Steps this small are quicker on one thread, and much quicker where others want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", MODELS)
def test_auc(name) -> None:
    torch.use_deterministic_algorithms(False)
    auc, best = auc_and_best(MODELS[name]())
    assert best > 0.75
    if name == "linear":
        assert auc < best - 0.1
    else:
        assert auc > best - NEAR
