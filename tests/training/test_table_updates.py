"""Kinds of updates of tables under a trainer: against plain loops, resumed, and as an experiment names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.clicks import (
    ClickModel,
    Source,
    assert_same,
    everything,
    make_batch,
    make_trainer,
    valid_batches,
)
from tests.training.killing import write_clicks
from torchrec.bundle import load_bundle
from torchrec.datasets.utils import Batch
from torchrec.experiment.files import check_experiment
from torchrec.optim import Adam, AdamW, apply_optimizer_in_backward
from torchrec.training import Checkpoints, Observer
from torchrec.training.run import run_experiment

LR = 0.05


def model_of(rule: type[Any] | None, **options: Any) -> ClickModel:
    """A model whose tables the backward pass updates; None: they have a gradient. The same weights each time."""
    torch.manual_seed(1)
    model = ClickModel(optimizer=None, dropout=0.0)
    if rule is not None:
        apply_optimizer_in_backward(rule, model.ebc.parameters(), {"lr": LR, **options})
    return model


@pytest.mark.parametrize(
    ("rule", "theirs", "decay"),
    [(Adam, torch.optim.Adam, 0.0), (Adam, torch.optim.Adam, 0.1), (AdamW, torch.optim.AdamW, 0.1)],
    ids=["adam", "adam_l2", "adamw"],
)
def test_dense_updates_are_those_of_a_group_of_the_optimizer(
    rule: type[Any], theirs: type[Any], decay: float
) -> None:
    """Under a schedule, accumulation and clipping alike."""
    options: dict[str, Any] = {"schedule": {"decay": "cosine", "warmup_steps": 2}, "accumulate": 2}
    ours = make_trainer(model_of(rule, lazy=False, weight_decay=decay), **options)
    ours.fit(Source())
    plain = model_of(None)
    optimizer = theirs(
        [
            {"params": list(plain.ebc.parameters()), "lr": LR, "weight_decay": decay},
            {"params": list(plain.over.parameters()), "lr": 0.01, "weight_decay": 0.0},
        ]
    )
    make_trainer(plain, optimizer, **options).fit(Source())
    for (name, mine), other in zip(
        ours.model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            mine, other, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def with_penalty(model: ClickModel, batch: Batch, strength: float, samples: int) -> Tensor:
    """The loss of a step with the penalty, id by id."""
    logits = model(batch.dense_features, batch.sparse_features).squeeze(1)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum")
    for table in ("user", "item"):
        weight = model.ebc.embedding_bags[table].weight
        for row in batch.sparse_features[table].values().tolist():
            loss = loss + strength / 2 * (weight[min(row, len(weight) - 1)] ** 2).sum()
    return loss / samples


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "dense"])
def test_the_penalty_is_a_mean_over_the_samples_of_a_step(lazy: bool) -> None:
    strength = 0.3
    batches = [make_batch(size, 5, size) for size in (3, 8, 5, 4)]
    ours = model_of(Adam, lazy=lazy, batch_l2=strength)
    make_trainer(ours, accumulate=2, epochs=1).fit(batches)
    plain = model_of(None)
    table_rule = Adam if lazy else torch.optim.Adam
    optimizers = [torch.optim.Adam(plain.over.parameters(), lr=0.01)] + [
        table_rule([weight], lr=LR) for weight in plain.ebc.parameters()
    ]
    for group in (batches[:2], batches[2:]):
        plain.zero_grad()
        samples = sum(len(batch.labels) for batch in group)
        for batch in group:
            with_penalty(plain, batch, strength, samples).backward()
        if lazy:  # only the rows of the step
            for weight in plain.ebc.parameters():
                rows = weight.grad.abs().sum(1).nonzero().squeeze(1)
                weight.grad = torch.sparse_coo_tensor(
                    rows.unsqueeze(0), weight.grad[rows], weight.shape, check_invariants=False
                )
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


class Interrupt(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, samples: int) -> None:
        if step == self.step:
            raise RuntimeError("interrupted")


@pytest.mark.parametrize(
    "options",
    [{"lazy": False}, {"lazy": False, "weight_decay": 0.1, "batch_l2": 0.3}, {"batch_l2": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("rule", [Adam, AdamW], ids=lambda rule: rule.__name__)
def test_goes_on_bit_for_bit(rule: type[Any], options: dict[str, Any], tmp_path: Path) -> None:
    def trainer(*observers: Observer) -> Any:
        return make_trainer(
            model_of(rule, **options),
            checkpoints=Checkpoints(tmp_path),
            observers=observers,
            checkpoint_every=3,
            accumulate=2,
        )

    whole = make_trainer(model_of(rule, **options), accumulate=2)
    whole.fit(Source(), valid_batches())
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(Interrupt(5)).fit(Source(), valid_batches())
    again = trainer()
    again.fit(Source(), valid_batches(), resume=True)
    assert_same(everything(again.model, again.optimizer), everything(whole.model, whole.optimizer))


def trained_weights(path: Path, folder: Path, **training: Any) -> dict[str, Tensor]:
    values = {
        "data": {"train": [str(path)], "label": "click"},
        "model": {"dim": 4, "layers": [16], "dense_layers": [8]},
        "training": {"batch_size": 256, "learning_rate": 0.02, "threads": 1, **training},
        "output": "unused",
    }
    run_experiment(check_experiment(values, "experiment.yaml"), folder, observers=[Observer()])
    return load_bundle(folder / "model").model.state_dict()


@pytest.mark.once
def test_every_key_of_an_experiment_has_an_effect(tmp_path: Path) -> None:
    path = tmp_path / "clicks.parquet"
    write_clicks(path)
    variants: dict[str, dict[str, Any]] = {
        "usual": {},
        "dense": {"embedding_updates": "dense"},
        "l2 of the batch": {"embedding_l2": 0.1},
        "lazy decay": {"embedding_weight_decay": 0.1},
        "lazy decoupled": {"embedding_weight_decay": 0.1, "embedding_optimizer": "adamw"},
        "decay": {"embedding_weight_decay": 0.1, "embedding_updates": "dense"},
        "decoupled": {
            "embedding_weight_decay": 0.1,
            "embedding_optimizer": "adamw",
            "embedding_updates": "dense",
        },
    }
    found = {
        name: trained_weights(path, tmp_path / name.replace(" ", "_"), **changes)
        for name, changes in variants.items()
    }
    tables = [name for name in found["usual"] if "embedding_bags" in name]
    assert tables
    names = list(found)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert any(not torch.equal(found[one][t], found[other][t]) for t in tables), (
                one,
                other,
            )
    # Without decay adamw is adam, and where no gradient moves no row dense is lazy.
    same = trained_weights(path, tmp_path / "same", embedding_optimizer="adamw")
    assert all(torch.equal(same[name], value) for name, value in found["usual"].items())
    lazy, dense = (
        trained_weights(
            path,
            tmp_path / f"rowwise_{kind}",
            embedding_optimizer="rowwise_adagrad",
            embedding_updates=kind,
        )
        for kind in ("lazy", "dense")
    )
    assert all(torch.equal(lazy[name], value) for name, value in dense.items())
