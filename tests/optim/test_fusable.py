"""The fused rule of an optimizer class must do what the class does."""

import pytest
import torch
from torch import nn

import torchrec.optim as optim
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.fusable import fused_rule, optimizer_class_of
from torchrec.types import OptimizerType

CLASSES = [
    (optim.SGD, {"lr": 0.1}),
    (optim.Adagrad, {}),
    (optim.Adam, {}),
    (optim.AdamW, {}),
    (optim.PartialRowWiseAdam, {}),
    (optim.LAMB, {}),
    (optim.PartialRowWiseLAMB, {}),
    (optim.LarsSGD, {}),
    (optim.RowWiseAdagrad, {"lr_decay": 0.0, "foreach": None}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.Adagrad, {}),
    (torch.optim.Adam, {"fused": False, "amsgrad": False}),
    (torch.optim.AdamW, {}),
    (torch.optim.SparseAdam, {"eps": 1e-30}),
]


@pytest.mark.parametrize(("cls", "options"), CLASSES, ids=lambda v: getattr(v, "__module__", None))
def test_one_step_of_the_rule_equals_one_step_of_the_class(cls, options):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator)
    grad = torch.randn(3, 4, generator=generator)
    param = nn.Parameter(weight.clone())
    optimizer = cls([param], **options)
    param.grad = grad.to_sparse(1) if cls is torch.optim.SparseAdam else grad.clone()
    optimizer.step()
    kind, hyper = fused_rule(cls, options)
    rule = RULES[kind]
    state = {name: rule.new_state(name, weight, hyper) for name in rule.state_names(hyper)}
    updated, _ = rule.update(weight, grad, state, 1, hyper)
    torch.testing.assert_close(updated, param.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "cls", [optim.Adagrad, optim.RowWiseAdagrad, torch.optim.Adagrad], ids=["own", "rows", "torch"]
)
def test_eps_of_adagrad_is_that_of_fused_kernels_unless_it_is_given(cls):
    assert fused_rule(cls, {"lr": 0.1})[1].eps == 1e-8
    assert fused_rule(cls, {"lr": 0.1, "eps": 1e-10})[1].eps == 1e-10


def test_every_type_has_a_class():
    assert {fused_rule(cls, options)[0] for cls, options in CLASSES} == set(OptimizerType)


def test_a_name_stands_for_the_class_of_this_package():
    classes = {optimizer_class_of(kind) for kind in OptimizerType}
    assert classes == {cls for cls, _ in CLASSES if cls.__module__.startswith("torchrec")}
    assert optimizer_class_of("EXACT_ROWWISE_ADAGRAD") is optim.RowWiseAdagrad
    assert optimizer_class_of(torch.optim.SGD) is torch.optim.SGD
    named, given = (fused_rule(cls, {"lr": 0.5}) for cls in ("EXACT_ADAGRAD", optim.Adagrad))
    assert named == given
    with pytest.raises(ValueError, match=r"`optimizer_class` should be a class, or .* 'shampoo'"):
        fused_rule("shampoo", {})
