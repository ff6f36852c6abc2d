"""Every field of a table has an effect, is a note for others, or is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType, IdPolicy, OptimizerType, PoolingType


def build(**options) -> EmbeddingBagCollection:
    torch.manual_seed(0)
    base = {"num_embeddings": 10, "embedding_dim": 4, "name": "t", "feature_names": ["f"]}
    return EmbeddingBagCollection(tables=[EmbeddingBagConfig(**{**base, **options})])


def outcome(module: EmbeddingBagCollection, stray: bool = False) -> list[object]:
    """Return what can be seen of a collection after a step of training."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    key = module.embedding_bag_configs()[0].feature_names[0]
    kjt = KeyedJaggedTensor.from_lists({key: [[1, 2, 2], [-1 if stray else 5]]})
    seen: list[object] = [list(module.state_dict())]
    for _ in range(2):
        optimizer.zero_grad()
        out = module(kjt)
        seen += [out.keys(), out.values().tolist()]
        if out.values().requires_grad:
            out.values().square().sum().backward()
        (weight,) = module.parameters()
        seen += [None if weight.grad is None else weight.grad.layout, weight.dtype]
        optimizer.step()
        seen.append(weight.tolist())
    return seen


SGD = {"optimizer": "sgd", "lr": 0.3}
EFFECTS: dict[str, tuple[dict, dict]] = {  # without, with
    "num_embeddings": ({}, {"num_embeddings": 11}),
    "embedding_dim": ({}, {"embedding_dim": 5}),
    "name": ({}, {"name": "u"}),
    "data_type": ({}, {"data_type": DataType.FP16}),
    "dtype": ({}, {"dtype": torch.bfloat16}),
    "feature_names": ({}, {"feature_names": ["g"]}),
    "weight_init_max": ({}, {"weight_init_max": 0.01}),
    "weight_init_min": ({}, {"weight_init_min": -0.01}),
    "init_fn": ({}, {"init_fn": torch.nn.init.ones_}),
    "optimizer": ({}, {"optimizer": "adagrad"}),
    "lr": (SGD, {**SGD, "lr": 0.2}),
    "weight_decay": (SGD, {**SGD, "weight_decay": 0.1}),
    "optimizer_options": (SGD, {**SGD, "optimizer_options": {"momentum": 0.5}}),
    "enable_grad": ({}, {"enable_grad": False}),
    "sparse": ({}, {"sparse": True}),
    "pooling": ({}, {"pooling": PoolingType.MEAN}),
    "hash_size": ({"id_policy": IdPolicy.HASH}, {"hash_size": 3}),
    "id_policy": ({"id_policy": IdPolicy.HASH}, {"id_policy": IdPolicy.IGNORE}),
}
NOTES = {
    "need_pos": True,
    "input_dim": 99,
    "total_num_buckets": 7,
    "table_size": 2,
    "num_embeddings_post_pruning": 5,
}
# Of the quantised form, beside the last of the notes: `tests/quant`.
QUANTIZED = "pruning_indices_remapping"
REFUSED: dict[str, object] = {
    "use_virtual_table": True,
    "virtual_table_eviction_policy": object(),
    "enable_embedding_update": True,
    "stash_weights": True,
}


def test_every_field_is_looked_at_here() -> None:
    fields = {field.name for field in dataclasses.fields(EmbeddingBagConfig)}
    assert fields == {*EFFECTS, *NOTES, *REFUSED, QUANTIZED}


@pytest.mark.parametrize("field", EFFECTS)
def test_a_field_has_an_effect(field: str) -> None:
    stray = field in ("hash_size", "id_policy")
    without, given = (outcome(build(**options), stray) for options in EFFECTS[field])
    assert without != given
    assert outcome(build(**EFFECTS[field][0]), stray) == without


@pytest.mark.parametrize("field", NOTES)
def test_a_note_is_kept_and_changes_nothing(field: str) -> None:
    module = build(**{field: NOTES[field]})
    assert getattr(module.embedding_bag_configs()[0], field) == NOTES[field]
    assert outcome(module) == outcome(build())


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_supported_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"`{field}` of table 't' should be \w+: it is not supp"):
        build(**{field: REFUSED[field]})


IGNORED: dict[str, tuple[dict, str]] = {
    "bound": (
        {"init_fn": torch.nn.init.ones_, "weight_init_max": 1.0},
        "`weight_init_max` of table 't' should be None, as its `init_fn` fills",
    ),
    "rate": ({"lr": 0.1}, "`lr` of table 't' should come with an `optimizer`"),
}


@pytest.mark.parametrize("case", IGNORED)
def test_what_would_be_ignored_is_refused(case: str) -> None:
    options, message = IGNORED[case]
    with pytest.raises(ValueError, match=message):
        build(**options)


RULES: dict[str, tuple[str, dict, dict]] = {
    "eps": ("adagrad", {}, {"eps": 0.5}),
    "initial_accumulator_value": ("rowwise_adagrad", {}, {"initial_accumulator_value": 0.5}),
    "betas": ("adam", {}, {"betas": (0.5, 0.6)}),
    "momentum": ("sgd", {}, {"momentum": 0.5}),
    "dampening": ("sgd", {"momentum": 0.5}, {"momentum": 0.5, "dampening": 0.5}),
    "nesterov": ("sgd", {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True}),
    "max_gradient": ("sgd", {}, {"max_gradient": 0.01}),
    "weight_decay": ("sgd", {}, {"weight_decay": 0.5}),
    "weight_decay_mode": (
        "adam", {"weight_decay": 0.5}, {"weight_decay": 0.5, "weight_decay_mode": "decoupled"}
    ),
    "eta": ("lars_sgd", {}, {"eta": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("rate", [0.1, None], ids=["own_rate", "inherited_rate"])
@pytest.mark.parametrize("option", RULES)
def test_an_option_of_a_rule_has_an_effect(option: str, rate: float | None) -> None:
    rule, without, given = RULES[option]
    seen = [
        outcome(build(optimizer=rule, lr=rate, optimizer_options=options))
        for options in (without, given)
    ]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("name", ["EXACT_ROWWISE_ADAGRAD", OptimizerType.ROWWISE_ADAGRAD])
def test_a_rule_by_its_name_elsewhere(name: str | OptimizerType) -> None:
    module = build(optimizer=name, lr=0.1)
    assert module.embedding_bag_configs()[0].optimizer is OptimizerType.ROWWISE_ADAGRAD
    assert outcome(module) == outcome(build(optimizer="rowwise_adagrad", lr=0.1))
    with pytest.raises(
        ValueError, match=r"`optimizer` of table 't' should be one of 'sgd', .*'none'"
    ):
        build(optimizer="none", lr=0.1)
