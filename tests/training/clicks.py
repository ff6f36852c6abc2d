"""A small model of clicks and a small source of batches, for the tests of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, IdPolicy, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.training import (
    AverageOptions,
    EarlyStoppingOptions,
    FitOptions,
    Observer,
    Record,
    ScheduleOptions,
    StateStore,
    Task,
    Trainer,
    dense_optimizer,
)
from torchrec.training.world import ALONE, World

ROWS, DIM = 40, 4


class ClickModel(nn.Module):
    """Embeddings and numbers through a small network with dropout."""

    def __init__(
        self, optimizer: str | None = "adam", dropout: float = 0.2, lr: float = 0.05
    ) -> None:
        super().__init__()
        rule = {} if optimizer is None else {"optimizer": optimizer, "lr": lr}
        self.ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(ROWS, DIM, "user", feature_names=["user"], **rule),
                EmbeddingBagConfig(
                    ROWS, DIM, "item", feature_names=["item"], id_policy=IdPolicy.UNKNOWN, **rule
                ),
            ]
        )
        self.over = nn.Sequential(
            nn.Linear(2 * DIM + 2, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1)
        )

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        return self.over(torch.cat([self.ebc(sparse).values(), dense], 1))


class NormedModel(ClickModel):
    """With batch normalisation, and one table that the backward pass does not update."""

    def __init__(self, optimizer: str | None = "adam", dropout: float = 0.2) -> None:
        super().__init__(optimizer, dropout)
        self.over = nn.Sequential(
            nn.BatchNorm1d(2 * DIM + 2), nn.Linear(2 * DIM + 2, 8), nn.ReLU(), nn.Linear(8, 1)
        )
        self.rows = nn.EmbeddingBag(7, 1, mode="sum")

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        bias = self.rows(sparse["user"].values()[:, None] % 7)
        return super().forward(dense, sparse) + bias


def make_batch(size: int, *seed: int) -> Batch:
    generator = torch.Generator().manual_seed(hash(seed) % 2**31)
    user = torch.randint(0, ROWS, (size,), generator=generator)
    lengths = torch.randint(0, 4, (size,), generator=generator)
    items = torch.randint(0, ROWS + 5, (int(lengths.sum()),), generator=generator)
    dense = torch.randn(size, 2, generator=generator)
    score = (user % 7 - 3) * 0.5 + dense[:, 0]
    return Batch(
        dense,
        KeyedJaggedTensor(
            ["user", "item"], torch.cat([user, items]), lengths=torch.cat([torch.ones_like(lengths), lengths])
        ),
        torch.bernoulli(torch.sigmoid(score), generator=generator),
        groups={"session": torch.arange(size) // 4},
    )  # fmt: skip


def make_trainer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    rule: str = "adam",
    learning_rate: float = 0.01,
    weight_decay: float = 0.0,
    tasks: Task | Sequence[Task] = Task(),  # noqa: B008 - frozen
    checkpoints: StateStore | None = None,
    observers: Sequence[Observer] = (),
    id_counts: Any = dict,
    world: World = ALONE,
    **options: Any,
) -> Trainer:
    """Make a trainer of two epochs, with other options as they are given."""
    sections = {
        "schedule": ScheduleOptions,
        "early_stopping": EarlyStoppingOptions,
        "average": AverageOptions,
    }
    for name, kind in sections.items():
        if name in options:
            options[name] = kind(**options[name])
    return Trainer(
        model,
        optimizer or dense_optimizer(model, rule, learning_rate, weight_decay),
        tasks=tasks,
        options=FitOptions(**{"epochs": 2, **options}),
        checkpoints=checkpoints,
        observers=observers,
        id_counts=id_counts,
        world=world,
    )


class Source:
    """Batches that depend on the epoch; goes on where its state says."""

    def __init__(self, batches: int = 7, size: int = 16, seed: int = 0) -> None:
        self.epoch = 0
        self._batches, self._size, self._seed = batches, size, seed
        self._given = 0
        self._loaded = False

    def __len__(self) -> int:
        return self._batches

    @property
    def samples(self) -> int:
        return self._batches * self._size

    def __iter__(self) -> Iterator[Batch]:
        if not self._loaded:
            self._given = 0
        self._loaded = False
        while self._given < self._batches:
            self._given += 1
            # The last one is smaller.
            size = self._size - 3 * (self._given == self._batches)
            yield make_batch(size, self._seed, self.epoch, self._given)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self._given, self._loaded = state["epoch"], state["given"], True


class Notes(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.messages: list[str] = []
        self.steps: list[int] = []

    def stepped(self, step: int, samples: int) -> None:
        self.steps.append(step)

    def recorded(self, record: Record) -> None:
        self.records.append(record)

    def said(self, message: str) -> None:
        self.messages.append(message)

    def of(self, split: str) -> list[Record]:
        return [record for record in self.records if record.split == split]


def valid_batches() -> list[Batch]:
    return [make_batch(50, 99, number) for number in range(3)]


def everything(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Weights and states of optimizers, by name."""
    states = {
        f"{name}/{key}": value
        for name, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    return {**model.state_dict(), **states}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name
