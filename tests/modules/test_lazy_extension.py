"""Lazy modules: keyword arguments, the guard of apply(), functions run after the first pass."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from torchrec.modules.lazy_extension import LazyModuleExtensionMixin, lazy_apply


class Scale(nn.Module):
    """Multiplies by a factor for each feature."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(features))

    def forward(self, input: Tensor, *, times: float = 1.0) -> Tensor:
        return input * self.factor * times


class LazyScale(LazyModuleExtensionMixin, Scale):
    """Learns the number of features from the first input."""

    cls_to_become = Scale

    def __init__(self) -> None:
        super().__init__(0)
        self.factor = nn.UninitializedParameter()

    def initialize_parameters(self, input: Tensor, *, times: float = 1.0) -> None:
        self.factor.materialize((input.shape[-1],))
        nn.init.constant_(self.factor, 3.0)


def double_weights(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data.mul_(2)


class TestLazyModuleExtensionMixin:
    def test_positional_arguments(self) -> None:
        module = LazyScale()
        assert module(torch.ones(1, 2)).tolist() == [[3, 3]]
        assert type(module) is Scale

    def test_keyword_arguments(self) -> None:
        module = LazyScale()
        assert module(input=torch.ones(1, 2), times=2.0).tolist() == [[6, 6]]
        assert type(module) is Scale

    def test_apply_before_the_first_pass_is_an_error(self) -> None:
        expected = "LazyScale has parameters without a size: .*lazy_extension.lazy_apply"
        with pytest.raises(RuntimeError, match=expected):
            LazyScale().apply(double_weights)

    def test_apply_of_a_parent_before_the_first_pass_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="LazyScale has parameters without a size"):
            nn.Sequential(nn.ReLU(), LazyScale()).apply(double_weights)

    def test_apply_with_a_lazy_child_is_an_error(self) -> None:
        module = LazyScale()
        module.factor.materialize((2,))
        module.child = nn.LazyLinear(2)
        with pytest.raises(RuntimeError, match="LazyScale has parameters without a size"):
            module.apply(double_weights)

    def test_apply_after_the_first_pass(self) -> None:
        module = LazyScale()
        module(torch.ones(1, 2))
        assert module.apply(double_weights) is module
        assert module.factor.tolist() == [6, 6]

    def test_apply_after_a_state_was_loaded(self) -> None:
        module = LazyScale()
        module.load_state_dict({"factor": torch.tensor([1.0, 4.0])})
        module.apply(double_weights)
        assert module.factor.tolist() == [2, 8]


class MadeLater(LazyModuleExtensionMixin, nn.Module):
    """Has no parameter before the first pass, and a part that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Scale(2)

    def initialize_parameters(self, input: Tensor) -> None:
        self.factor = nn.Parameter(torch.full((input.shape[-1],), 3.0))

    def forward(self, input: Tensor) -> Tensor:
        return self.part(input) * self.factor


class TestParametersMadeInTheFirstPass:
    @pytest.mark.parametrize("around", [lambda m: m, lambda m: Around(m)], ids=["alone", "inside"])
    def test_apply_before_is_an_error_and_changes_nothing(self, around) -> None:
        module = MadeLater()
        with pytest.raises(RuntimeError, match=r"MadeLater makes its parameters .*lazy_apply"):
            around(module).apply(double_weights)
        assert module.part.factor.tolist() == [1, 1]

    def test_apply_after(self) -> None:
        module = MadeLater()
        assert module(torch.ones(1, 2)).tolist() == [[3, 3]]
        module.apply(double_weights)
        assert module(torch.ones(1, 2)).tolist() == [[12, 12]]

    def test_apply_later(self) -> None:
        module = lazy_apply(MadeLater(), double_weights)
        assert [module(torch.ones(1, 2)).tolist() for _ in range(2)] == [[[3, 3]], [[12, 12]]]


class Around(LazyModuleExtensionMixin, nn.Module):
    """Holds a lazy module, and was itself initialised."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self(None)
        self.module = module

    def initialize_parameters(self, input: None) -> None:
        pass

    def forward(self, input: None) -> None:
        pass


class TestLazyApply:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.LazyLinear(2, bias=False),
            lambda: nn.Linear(3, 2, bias=False),
            LazyScale,
            lambda: nn.Sequential(nn.LazyLinear(3), LazyScale()),
        ],
        ids=["lazy_linear", "linear", "lazy_scale", "nested"],
    )
    def test_runs_once_after_the_first_pass_only(self, make) -> None:
        module, visited = make(), []
        x = torch.ones(1, 3)
        assert lazy_apply(module, visited.append) is module
        assert not visited
        module(x)
        assert visited == [*module.children(), module]
        module(x)
        assert len(visited) == len(list(module.modules()))

    def test_first_output_is_of_the_old_values(self) -> None:
        module = lazy_apply(LazyScale(), double_weights)
        assert [module(torch.ones(1)).item() for _ in range(3)] == [3, 6, 6]

    def test_functions_run_in_order(self) -> None:
        module, order = nn.Linear(1, 1), []
        lazy_apply(module, lambda _: order.append("first"))
        lazy_apply(module, lambda _: order.append("second"))
        module(torch.ones(1))
        assert order == ["first", "second"]

    @pytest.mark.parametrize(
        "twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
    )
    def test_copies_run_it_once_too(self, twin) -> None:
        module = lazy_apply(Scale(1), double_weights)
        other = twin(module)
        for m in (other, module):
            assert [m(torch.ones(1)).item() for _ in range(3)] == [1, 2, 2]

    def test_wrong_arguments_are_errors(self) -> None:
        with pytest.raises(TypeError, match=r"`module` should be an nn.Module. Received int"):
            lazy_apply(3, double_weights)
        with pytest.raises(TypeError, match=r"`fn` should be a function of a module. Received int"):
            lazy_apply(nn.Linear(1, 1), 3)


@torch.no_grad()
def init_weights(m: nn.Module) -> None:
    # Tested `type(m) == torch.nn.LazyLinear`: by the time that there are weights, it is a Linear.
    # Left the bias alone and printed the rest.
    if isinstance(m, torch.nn.Linear):
        m.weight.fill_(1.0)


class TestSeedExamples:
    """The examples of the documents, with what had to be corrected."""

    def test_apply(self) -> None:
        linear = torch.nn.LazyLinear(2)
        # fails, as said: `linear` (a lazy module) hasn't been initialized yet
        with pytest.raises(ValueError, match="uninitialized parameter"):
            linear.apply(init_weights)

        input = torch.randn(2, 10)
        linear(input)  # run a dummy forward pass to initialize the lazy-module

        linear.apply(init_weights)  # this works now
        assert linear.weight.tolist() == [[1.0] * 10] * 2

    def test_lazy_apply(self) -> None:
        linear = torch.nn.LazyLinear(2)
        lazy_apply(linear, init_weights)  # doesn't run `init_weights` immediately
        input = torch.randn(2, 10)
        linear(input)  # runs `init_weights` only once, right after first forward pass
        assert linear.weight.tolist() == [[1.0] * 10] * 2

        seq = torch.nn.Sequential(torch.nn.LazyLinear(2), torch.nn.LazyLinear(2))
        lazy_apply(seq, init_weights)  # doesn't run `init_weights` immediately
        input = torch.randn(2, 10)
        seq(input)  # runs `init_weights` only once, right after first forward pass
        assert all(bool((layer.weight == 1).all()) for layer in seq)
