"""What the scenarios do, with whichever ``torchrec`` this Python has, by its public API alone.

Each function builds what a step needs and returns the `Work`. The peer trains a model sharded over one rank, its
fastest way by its own documents.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import collision as maps
from benchmarks import models
from benchmarks.scenarios import KEYS, feature_names


@dataclass
class Work:
    """A step, and what it takes.

    Attributes:
        inputs: what each step is given; drawing it is not measured.
        step: what is measured.
        unit: so many steps are one sample, their mean, as not all of them do the same.
    """

    inputs: Iterator[Any]
    step: Callable[[Any], object]
    unit: int = 1


def batches(tables: int, rows: int, batch: int, length: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((tables * batch,), length)
    shape = (tables * batch * length,)
    return [(torch.randint(rows, shape, generator=generator), lengths) for _ in range(4)]


def features(data: tuple[Tensor, Tensor], batch: int):
    from torchrec import KeyedJaggedTensor

    keys = feature_names(data[1].numel() // batch)
    return KeyedJaggedTensor(keys=keys, values=data[0], lengths=data[1])


def look_up(tables: int, rows: int, dim: int, batch: int, length: int) -> Work:
    from torchrec import EmbeddingBagCollection

    collection = EmbeddingBagCollection(tables=models.configs(tables, rows, dim))

    def step(data: tuple[Tensor, Tensor]) -> None:
        with torch.no_grad():
            collection(features(data, batch)).values()

    return Work(itertools.cycle(batches(tables, rows, batch, length)), step)


def training(tables: int, rows: int, dim: int, batch: int, length: int) -> Work:
    holder = torch.nn.Module()
    holder.collection = models.optimizer_in_backward(tables, rows, dim)
    collection = sharded(holder).collection
    gradient = torch.randn(batch, tables * dim)

    def step(data: tuple[Tensor, Tensor]) -> None:
        collection(features(data, batch)).values().backward(gradient)

    return Work(itertools.cycle(batches(tables, rows, batch, length)), step)


def sharded(module: torch.nn.Module) -> torch.nn.Module:
    """Shard over one rank, where that is the fastest way: this library's tables need it on several only."""
    if importlib.util.find_spec("torchrec.ops") is not None:
        return module
    import torch.distributed as dist

    from torchrec.distributed.model_parallel import DistributedModelParallel

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    # A store of this process: several of them run side by side, and a port is for one.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return DistributedModelParallel(module, device=torch.device("cpu")).module


def model(kind: str, batch: int, train: bool) -> Work:
    made = models.make_model(kind, models.optimizer_in_backward())
    step = models.training_step(sharded(made)) if train else models.prediction(made)
    return Work(itertools.cycle(models.batches(batch)), step)


def products(kind: str, batch: int, train: bool) -> Work:
    return Work(itertools.repeat(None), models.products_alone(kind, batch, train))


def collision(rows: int, batch: int) -> Work:
    stream, step = maps.Stream(rows, batch), maps.module(rows)
    for _ in range(-(-rows // (batch * maps.INTERVAL)) * maps.INTERVAL):
        step(stream.filling())
    return Work(iter(stream.next, None), step, unit=maps.INTERVAL)


def predictions(rows: int) -> Work:
    """Predict from rows as dicts; the predictor sees to its threads itself, whatever number is asked for."""
    from benchmarks.predicting import predictor

    made, given = predictor("deepfm")
    data = (given * (rows // len(given) + 1))[:rows]
    return Work(itertools.repeat(data), made.predict)


def sparse(name: str) -> Work:
    from torchrec import KeyedJaggedTensor, KeyedTensor

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 5, (len(KEYS) * 64,), generator=generator)
    values = torch.randint(0, 1000, (int(lengths.sum()),), generator=generator)
    others = [f"other_{i}" for i in range(len(KEYS))]
    order = list(range(len(KEYS)))[::-1]
    tensors = [
        KeyedTensor([f"{side}{i}" for i in range(13)], [64] * 13, torch.randn(64, 13 * 64))
        for side in "ab"
    ]
    groups = [["a0", "b1", "a5"], ["b0", "b2", "a7", "a8"], [f"a{i}" for i in range(13)]]

    def make(keys: list[str] = KEYS) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths)

    cases: dict[str, Callable[[], object]] = {
        "KeyedJaggedTensor": make,
        "split": lambda: make().split([1] * len(KEYS)),
        "to_dict": lambda: make().to_dict(),
        "permute": lambda: make().permute(order),
        "concat": lambda: KeyedJaggedTensor.concat([make(), make(others)]),
        "[]": lambda: make()[KEYS[13]],
        "KeyedTensor.regroup": lambda: KeyedTensor.regroup(tensors, groups),
    }
    case = cases[name]
    return Work(itertools.repeat(None), lambda _: case())


MAKERS: tuple[Callable[..., Work], ...] = (
    look_up,
    training,
    model,
    products,
    collision,
    predictions,
    sparse,
)
