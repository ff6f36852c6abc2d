"""Data types, optimizer names, and the mix-ins that say how a module is copied."""

from enum import Enum

import pytest
import torch
from torch import nn

from torchrec.types import (
    CacheMixin,
    CopyMixIn,
    DataType,
    ModuleCopyMixin,
    ModuleNoCopyMixin,
    OptimizerType,
    optimizer_value,
)


def test_data_types_are_named_by_their_values():
    names = ["FP32", "FP16", "BF16", "INT64", "INT32", "INT8", "UINT8", "INT4", "INT2", "NFP8"]
    assert [member.name for member in DataType] == names
    assert [member.value for member in DataType] == names
    assert str(DataType.BF16) == "BF16"
    assert DataType("INT4") is DataType.INT4


def test_optimizer_types_have_names_and_values_of_their_own():
    assert {"SGD", "ADAM", "ADAGRAD"} <= set(OptimizerType.__members__)
    assert all(OptimizerType(member.value) is member for member in OptimizerType)
    assert len(OptimizerType.__members__) == len(list(OptimizerType))


class KernelRule(Enum):
    """As kernels elsewhere name what our rules do; one has a number for a value, one a number's name."""

    SGD = "sgd"
    EXACT_SGD = "exact_sgd"
    EXACT_ADAGRAD = "exact_adagrad"
    EXACT_ROWWISE_ADAGRAD = "exact_row_wise_adagrad"
    ROWWISE_ADAGRAD = "row_wise_adagrad"
    PARTIAL_ROWWISE_ADAM = "partial_row_wise_adam"
    PARTIAL_ROWWISE_LAMB = "partial_row_wise_lamb"
    LAMB = 7
    NUMBER_9 = "adamw"
    SHAMPOO = "shampoo"
    NONE = "none"


SPELLINGS = {
    "SGD": [KernelRule.SGD, KernelRule.EXACT_SGD, "SGD", "sgd", "EXACT_SGD", "exact_sgd"],
    "ADAGRAD": [KernelRule.EXACT_ADAGRAD, "Adagrad", "EXACT_ADAGRAD", "exact_adagrad"],
    "ROWWISE_ADAGRAD": [
        KernelRule.EXACT_ROWWISE_ADAGRAD,
        KernelRule.ROWWISE_ADAGRAD,
        "EXACT_ROWWISE_ADAGRAD",
        "exact_row_wise_adagrad",
        "ROWWISE_ADAGRAD",
        "row_wise_adagrad",
    ],
    "PARTIAL_ROWWISE_ADAM": [KernelRule.PARTIAL_ROWWISE_ADAM, "partial_row_wise_adam"],
    "PARTIAL_ROWWISE_LAMB": [KernelRule.PARTIAL_ROWWISE_LAMB, "PARTIAL_ROWWISE_LAMB"],
    "LAMB": [KernelRule.LAMB, "LAMB", "lamb"],
    "ADAMW": [KernelRule.NUMBER_9, "ADAMW", "AdamW"],
    "LARS_SGD": ["LARS_SGD", "lars_sgd"],
    "ADAM": ["ADAM", "Adam", OptimizerType.ADAM],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_optimizer_is_meant_by_its_names_elsewhere(name):
    for given in SPELLINGS[name]:
        assert OptimizerType(given) is OptimizerType[name]
        assert optimizer_value(given) == OptimizerType[name].value


@pytest.mark.parametrize(
    "given", [KernelRule.SHAMPOO, KernelRule.NONE, "adamm", "", "exact_", 3, None, {}], ids=repr
)
def test_what_is_no_optimizer_is_none_of_them(given):
    with pytest.raises(ValueError, match="is not a valid OptimizerType"):
        OptimizerType(given)
    assert optimizer_value(given) is given


class Copied(ModuleCopyMixin, nn.Linear):
    pass


class Kept(ModuleNoCopyMixin, nn.Linear):
    pass


def test_a_copied_module_has_parameters_of_its_own():
    module = Copied(2, 3)
    copy = module.copy(torch.device("cpu"))
    assert type(copy) is Copied
    assert torch.equal(copy.weight, module.weight)
    with torch.no_grad():
        copy.weight.zero_()
    assert module.weight.abs().sum() > 0
    assert module.copy(torch.device("meta")).weight.is_meta
    assert not module.weight.is_meta


def test_a_kept_module_stays_where_it_is():
    module = Kept(2, 3)
    assert module.copy(torch.device("meta")) is module
    assert not module.weight.is_meta


@pytest.mark.parametrize("mixin", [ModuleCopyMixin, ModuleNoCopyMixin])
def test_the_mixins_are_for_modules(mixin):
    stray = type("Stray", (mixin,), {})()
    message = f"{mixin.__name__} should be mixed into an nn.Module. Received Stray"
    with pytest.raises(TypeError, match=message):
        stray.copy(torch.device("cpu"))


@pytest.mark.parametrize(
    "call", [lambda: CacheMixin().clear_cache(), lambda: CopyMixIn().copy(torch.device("cpu"))]
)
def test_interfaces_do_nothing_themselves(call):
    with pytest.raises(NotImplementedError):
        call()
