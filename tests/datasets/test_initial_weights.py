"""Rules for initial weights: their spread, what they refuse, and tables that features share."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.initial_weights import LayerInit, Normal, TableInit, Uniform, Zeros
from torchrec.datasets.transform.tables import declared_tables

pytestmark = pytest.mark.once

table_rules = TypeAdapter(TableInit)
layer_rules = TypeAdapter(LayerInit)


@pytest.mark.parametrize(
    ("rule", "spread"),
    [
        ({"rule": "normal", "std": 0.5}, ("normal", 0.5)),
        ({"rule": "uniform", "bound": 0.5}, ("uniform", 0.5)),
        ({"rule": "uniform"}, None),
        ({"rule": "xavier_normal"}, ("normal", math.sqrt(2 / 7))),
        ({"rule": "xavier_uniform"}, ("uniform", math.sqrt(6 / 7))),
        ({"rule": "kaiming"}, ("normal", math.sqrt(2 / 3))),
    ],
    ids=str,
)
def test_spread_of_three_inputs_and_four_outputs(rule, spread) -> None:
    for rules in (table_rules, layer_rules):
        assert rules.validate_python(rule).spread(inputs=3, outputs=4) == spread


@pytest.mark.parametrize(
    ("rule", "fill"),
    [
        ("xavier_normal", nn.init.xavier_normal_),
        ("xavier_uniform", nn.init.xavier_uniform_),
        ("kaiming", nn.init.kaiming_normal_),
    ],
)
def test_matrices_are_counted_as_pytorch_does(rule, fill) -> None:
    kind, size = table_rules.validate_python({"rule": rule}).spread(inputs=30, outputs=500)
    filled = fill(torch.empty(500, 30), generator=torch.Generator().manual_seed(0))
    deviation = size if kind == "normal" else size / math.sqrt(3)
    assert filled.std().item() == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"rule": "normal"}, "std\n  Field required"),
        ({"rule": "normal", "std": 0.0}, "greater than 0"),
        ({"rule": "normal", "std": float("nan")}, "finite number"),
        ({"rule": "normal", "std": 0.1, "bound": 0.1}, "bound\n  Extra inputs are not permitted"),
        ({"rule": "uniform", "std": 0.1}, "std\n  Extra inputs are not permitted"),
        ({"rule": "uniform", "bound": -0.1}, "greater than 0"),
        ({"rule": "zeros", "std": 0.1}, "std\n  Extra inputs are not permitted"),
        ({"rule": "gauss"}, "does not match any of the expected tags: 'normal', 'uniform'"),
        ({"std": 0.1}, "Unable to extract tag"),
    ],
    ids=str,
)
def test_options_of_other_rules_are_refused(rule, message) -> None:
    with pytest.raises(ValidationError, match=message):
        table_rules.validate_python(rule)
    with pytest.raises(ValidationError):
        layer_rules.validate_python(rule)


def test_layers_do_not_start_at_zero() -> None:
    assert table_rules.validate_python({"rule": "zeros"}) == Zeros()
    with pytest.raises(ValidationError, match="Input tag 'zeros' found using 'rule'"):
        layer_rules.validate_python({"rule": "zeros"})


def test_a_table_has_the_rule_of_the_features_that_share_it() -> None:
    features = {
        "user": SparseFeature(table="people"),
        "friend": SparseFeature(table="people", init=Normal(std=0.1)),
        "item": SparseFeature(),
        "hour": DenseFeature(buckets=4, init=Uniform(bound=0.2)),
    }
    rules = {table.name: table.init for table in declared_tables(features)}
    assert rules == {"people": Normal(std=0.1), "item": None, "hour": Uniform(bound=0.2)}


def test_features_that_share_a_table_agree_on_its_rule() -> None:
    features = {
        "user": SparseFeature(table="people", init=Normal(std=0.2)),
        "friend": SparseFeature(table="people", init=Normal(std=0.1)),
    }
    message = r"`init` of features 'user' and 'friend' should agree, .* table 'people'. Received "
    with pytest.raises(ValueError, match=message):
        declared_tables(features)


def test_a_number_without_buckets_has_no_table() -> None:
    with pytest.raises(ValidationError, match=r"`init` should be left out unless there are `buck"):
        DenseFeature(init=Zeros())
