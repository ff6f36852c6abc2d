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
from torchrec.models.dlrm import DLRM
from torchrec.optim.optimizers import in_backward_optimizer_filter

USERS, ITEMS, TASTES = 2_000, 500, 4
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


def build_model() -> DLRM:
    """A DLRM over two tables: the users, and the items, which two features share."""
    tables = [
        EmbeddingBagConfig(
            name=name,
            num_embeddings=rows,
            embedding_dim=16,
            feature_names=features,
            pooling=PoolingType.SUM,
            optimizer=OptimizerType.ROWWISE_ADAGRAD,
            lr=0.1,
        )
        for name, rows, features in [
            ("user_table", USERS, ["user"]),
            ("item_table", ITEMS, ["item", "seen"]),
        ]
    ]
    return DLRM(
        embedding_bag_collection=EmbeddingBagCollection(tables=tables),
        dense_in_features=1,
        dense_arch_layer_sizes=[32, 16],
        over_arch_layer_sizes=[64, 1],
    )


def main() -> None:
    """Train, and report the loss as it falls."""
    torch.manual_seed(0)
    model = build_model()
    # The tables update themselves during the backward pass; this optimizer drives the rest.
    dense_parameters = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
    optimizer = torch.optim.Adam(dense_parameters, lr=0.003)
    loss_of = nn.BCEWithLogitsLoss()

    losses: list[float] = []
    start = time.perf_counter()
    for step, (dense, ids, click) in zip(range(1, STEPS + 1), batches(), strict=False):
        loss = loss_of(model(dense, ids).squeeze(1), click)
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
