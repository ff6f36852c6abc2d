"""Train a small click model on generated data and watch its loss fall.

    python examples/train_generated.py

Users and items have hidden tastes; a user clicks on what is close to their own taste and to what
they looked at last. The model sees ids only, and learns the tastes as embeddings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    OptimizerType,
    PoolingType,
)
from torchrec.optim.optimizers import in_backward_optimizer_filter

USERS, ITEMS, TASTES = 2_000, 500, 4
DIM = 16
BATCH, STEPS, REPORT = 512, 600, 100


def batches() -> Iterator[tuple[Tensor, KeyedJaggedTensor, Tensor]]:
    """Yield dense features, ids of user, item and items seen before, and clicks."""
    user_taste, item_taste = torch.randn(USERS, TASTES), torch.randn(ITEMS, TASTES)
    while True:
        # Squared uniform numbers: some users and items turn up much more often than others.
        user = (torch.rand(BATCH).square() * USERS).long()
        item = (torch.rand(BATCH).square() * ITEMS).long()
        seen_lengths = torch.randint(0, 6, (BATCH,))
        seen = (torch.rand(int(seen_lengths.sum())).square() * ITEMS).long()
        hour = torch.rand(BATCH, 1)
        seen_taste = torch.segment_reduce(item_taste[seen], "sum", lengths=seen_lengths)
        affinity = ((user_taste[user] + 0.5 * seen_taste) * item_taste[item]).sum(1)
        click = torch.bernoulli(torch.sigmoid(affinity + hour[:, 0] - 0.5))
        one = torch.ones_like(seen_lengths)
        ids = KeyedJaggedTensor(
            keys=["user", "item", "seen"],
            values=torch.cat([user, item, seen]),
            lengths=torch.cat([one, one, seen_lengths]),
        )
        yield hour, ids, click


class ClickModel(nn.Module):
    """Embeddings of user, item and items seen before, their inner products, and an MLP over all."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = EmbeddingBagCollection(
            tables=[
                table("user_table", USERS, ["user"]),
                table("item_table", ITEMS, ["item", "seen"]),  # one table, two features
            ]
        )
        self.over = nn.Sequential(nn.Linear(3 * DIM + 3 + 1, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: Tensor, ids: KeyedJaggedTensor) -> Tensor:
        """Return one logit a sample, [B]."""
        pooled = self.embeddings(ids)
        user, item, seen = pooled["user"], pooled["item"], pooled["seen"]
        products = torch.stack([user * item, seen * item, user * seen]).sum(-1).T
        return self.over(torch.cat([pooled.values(), products, dense], 1)).squeeze(1)


def table(name: str, rows: int, features: list[str]) -> EmbeddingBagConfig:
    """A table that updates itself during the backward pass."""
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=rows,
        embedding_dim=DIM,
        feature_names=features,
        pooling=PoolingType.SUM,
        optimizer=OptimizerType.ROWWISE_ADAGRAD,
        lr=0.1,
    )


def main() -> None:
    """Train, and report the loss as it falls."""
    torch.manual_seed(0)
    model = ClickModel()
    # The tables update themselves; this optimizer drives the rest.
    dense_parameters = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
    optimizer = torch.optim.Adam(dense_parameters, lr=0.003)
    loss_of = nn.BCEWithLogitsLoss()

    losses: list[float] = []
    start = time.perf_counter()
    for step, (dense, ids, click) in zip(range(1, STEPS + 1), batches(), strict=False):
        loss = loss_of(model(dense, ids), click)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % REPORT == 0:
            print(f"step {step:4d}   loss {sum(losses[-REPORT:]) / REPORT:.4f}")
    seconds = time.perf_counter() - start
    print(f"{STEPS * BATCH / seconds:,.0f} samples a second; guessing would cost {math.log(2):.4f}")


if __name__ == "__main__":
    main()
