"""The functions on modules, lists of modules, operators and jagged outputs."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchrec.modules import utils
from torchrec.modules.utils import (
    OpRegistryState,
    SequenceVBEContext,
    check_module_output_dimension,
    construct_jagged_tensors,
    construct_jagged_tensors_inference,
    construct_modulelist_from_single_module,
    convert_list_of_modules_to_modulelist,
    deterministic_dedup,
    extract_module_or_tensor_callable,
    get_module_output_dimension,
    init_mlp_weights_xavier_uniform,
    jagged_index_select_with_empty,
    make_hash_zch_buckets_non_persistent,
    register_custom_op,
    reset_module_states_post_sharding,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.types import CacheMixin


def test_public_names_can_be_imported() -> None:
    assert all(callable(getattr(utils, name)) for name in utils.__all__)


class AnyArguments(nn.Module):
    def __init__(self, *args: int) -> None:
        super().__init__()


class TestExtractModuleOrTensorCallable:
    @pytest.mark.parametrize(
        "factory",
        [
            nn.PReLU,
            AnyArguments,
            lambda: nn.PReLU(),
            functools.partial(nn.PReLU, init=0.1),
            functools.partial(AnyArguments, 1),
            functools.partial(lambda size: nn.LayerNorm(size), 3),
        ],
    )
    def test_factories_are_called(self, factory) -> None:
        one, two = (extract_module_or_tensor_callable(factory) for _ in range(2))
        assert isinstance(one, nn.Module)
        assert one is not two

    @pytest.mark.parametrize(
        "given_",
        [
            nn.PReLU(),
            torch.relu,
            nn.functional.relu,
            torch.Tensor.relu,
            lambda x: x,
            lambda *args: args[0],
            functools.partial(torch.clamp, min=0),
            functools.partial(nn.functional.leaky_relu, negative_slope=0.1),
        ],
    )
    def test_modules_and_tensor_functions_are_returned(self, given_) -> None:
        assert extract_module_or_tensor_callable(given_) is given_

    def test_factory_of_something_else_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"should return an nn.Module. Received int from"):
            extract_module_or_tensor_callable(lambda: 3)

    def test_not_callable_is_an_error(self) -> None:
        with pytest.raises(TypeError, match=r"`module_or_callable` should be .* Received 3"):
            extract_module_or_tensor_callable(3)


class TestXavier:
    def test_bounds(self) -> None:
        linear = nn.Linear(300, 700)
        init_mlp_weights_xavier_uniform(linear)
        bound = (6 / 1000) ** 0.5
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
        assert linear.bias.count_nonzero() == 0

    def test_other_modules_and_no_bias(self) -> None:
        norm, bare = nn.LayerNorm(3), nn.Linear(2, 3, bias=False)
        nn.Sequential(norm, bare).apply(init_mlp_weights_xavier_uniform)
        assert norm.weight.tolist() == [1, 1, 1]
        assert bare.bias is None


class TestModuleLists:
    def test_copies_are_separate_and_drawn_anew(self) -> None:
        module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        nn.init.constant_(module[1].weight, 5.0)
        weight = module[0].weight.clone()
        lists = construct_modulelist_from_single_module(module, (2, 3))
        assert [len(inner) for inner in lists] == [3, 3]
        copies = [m for inner in lists for m in inner]
        drawn = [weight, *(m[0].weight for m in copies)]
        assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
        assert all(m[0].bias.tolist() == [0, 0] for m in copies)
        assert all(m[1].weight.tolist() == [5, 5] for m in copies)
        assert torch.equal(module[0].weight, weight)

    def test_lists_become_module_lists(self) -> None:
        modules = [[nn.Linear(1, 1) for _ in range(3)] for _ in range(2)]
        lists = convert_list_of_modules_to_modulelist(modules, (2, 3))
        assert isinstance(lists, nn.ModuleList)
        assert all(isinstance(inner, nn.ModuleList) for inner in lists)
        assert [list(inner) for inner in lists] == modules

    def test_generator_becomes_a_module_list(self) -> None:
        assert len(convert_list_of_modules_to_modulelist((nn.ReLU() for _ in range(3)), (3,))) == 3

    @pytest.mark.parametrize(
        ("modules", "sizes", "error", "message"),
        [
            ([nn.ReLU()], (2,), ValueError, r"2 items, as `sizes`=\(2,\). Received 1"),
            ([[nn.ReLU()]], (1, 2), ValueError, r"2 items, as `sizes`=\(2,\). Received 1"),
            ([nn.ReLU()], (1, 1), TypeError, r"nested 1 deep, as `sizes`=\(1,\). Received ReLU"),
            ([nn.ReLU()], (), ValueError, r"`sizes` should have one length or more"),
            ([nn.ReLU()], (-1,), ValueError, r"`sizes\[0\]` should be at least 0. Received -1"),
        ],
    )
    def test_wrong_lengths_are_errors(self, modules, sizes, error, message) -> None:
        with pytest.raises(error, match=message):
            convert_list_of_modules_to_modulelist(modules, sizes)


class TestOutputDimension:
    @pytest.mark.parametrize(
        ("module", "features"),
        [
            (nn.Linear(4, 2), 2),
            (nn.Linear(4, 3, dtype=torch.bfloat16), 3),
            (nn.Linear(4, 3, device="meta"), 3),
            (nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 5)), 5),
            (nn.LazyLinear(6), 6),
            (lambda x: x[:, :1], 1),
        ],
        ids=["linear", "bfloat16", "meta", "batch_norm", "lazy", "function"],
    )
    def test_features(self, module, features) -> None:
        assert get_module_output_dimension(module, 4) == features
        assert check_module_output_dimension([module], 4, features)
        assert not check_module_output_dimension([module], 4, features + 1)

    def test_state_is_left_alone(self) -> None:
        module = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout().eval())
        before = {name: value.clone() for name, value in module.state_dict().items()}
        random = torch.get_rng_state()
        get_module_output_dimension(module, 4)
        assert [m.training for m in module.modules()] == [True, True, False]
        torch.testing.assert_close(dict(module.state_dict()), before)
        assert torch.equal(torch.get_rng_state(), random)

    def test_nested_lists(self) -> None:
        two, three = nn.Linear(4, 2), nn.Linear(4, 3)
        assert check_module_output_dimension(nn.ModuleList([two, nn.ModuleList([two])]), 4, 2)
        assert not check_module_output_dimension([two, [two, three]], 4, 2)
        assert check_module_output_dimension([], 4, 2)

    def test_no_tensor_is_an_error(self) -> None:
        with pytest.raises(TypeError, match=r"`module` should return a tensor. Received tuple"):
            get_module_output_dimension(lambda x: (x, x), 4)


class Summed(nn.Module):
    """Sums each input over its columns, in a way that no tracer follows."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(factor))

    def forward(self, inputs: list[Tensor | None], batch_size: int) -> list[Tensor]:
        return [
            torch.zeros(batch_size, 1)
            if x is None
            else torch.tensor([[sum(row)] for row in x.tolist()]) * self.weight
            for x in inputs
        ]


class TestRegisterCustomOp:
    def test_runs_the_module(self) -> None:
        module = Summed(2.0)
        op = register_custom_op(module, [1, 1])
        out = op([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), None], 2)
        assert [x.tolist() for x in out] == [[[6], [14]], [[0], [0]]]
        assert not any(x.requires_grad for x in out)

    def test_two_modules_of_a_class_are_two_operators(self) -> None:
        one, two = Summed(1.0), Summed(2.0)
        x = torch.ones(1, 2)
        assert register_custom_op(one, [1])([x], 1)[0].item() == 2
        assert register_custom_op(two, [1])([x], 1)[0].item() == 4

    def test_registered_again_it_is_the_same(self) -> None:
        module = Summed()
        known = len(OpRegistryState.op_registry_schema)
        ops: list[object] = []
        threads = [
            threading.Thread(target=lambda: ops.append(register_custom_op(module, [1])))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ops) == 8
        assert len(set(map(id, ops))) == 1
        assert len(OpRegistryState.op_registry_schema) == known + 1
        with pytest.raises(ValueError, match=r"was registered with, \[1\]. Received \[1, 1\]"):
            register_custom_op(module, [1, 1])

    def test_opaque_to_the_compiler(self) -> None:
        module, graphs = Summed(), []
        op = register_custom_op(module, [1, 1])

        def model(x: Tensor) -> Tensor:
            return torch.cat(op([x, None], x.shape[0]), dim=1) + 1

        fast = torch.compile(
            model, fullgraph=True, dynamic=True, backend=lambda g, _: graphs.append(g) or g
        )
        for batch in (3, 5):
            x = torch.randn(batch, 2)
            torch.testing.assert_close(fast(x), model(x))
        assert len(graphs) == 1

    def test_operator_passes_the_checks_of_torch(self) -> None:
        module = Summed()
        op = register_custom_op(module, [1, 1])
        torch.library.opcheck(op, ([torch.ones(3, 2), None], 3))

    def test_wrong_arguments_are_errors(self) -> None:
        with pytest.raises(TypeError, match=r"`module` should be an nn.Module. Received function"):
            register_custom_op(lambda x: x, [1])
        with pytest.raises(ValueError, match=r"`dims\[0\]` should be at least 1. Received 0"):
            register_custom_op(Summed(), [0])

    def test_wrong_outputs_are_an_error(self) -> None:
        module = Summed()
        op = register_custom_op(module, [3])
        expected = r"return 1 tensors .* batch_size=2 and dims=\[3\]. Received \[\(2, 1\)\]"
        with pytest.raises(ValueError, match=expected):
            op([torch.ones(2, 4)], 2)

    def test_module_that_is_gone_is_an_error(self) -> None:
        op = register_custom_op(Summed(), [1])
        with pytest.raises(ReferenceError, match="is gone: keep it alive"):
            op([torch.ones(2, 4)], 2)


@given(st.lists(st.integers(-3, 3), max_size=20))
def test_deterministic_dedup(ids) -> None:
    unique, last = deterministic_dedup(torch.tensor(ids, dtype=torch.int64))
    assert unique.tolist() == sorted(set(ids))
    assert last.tolist() == [len(ids) - 1 - ids[::-1].index(i) for i in sorted(set(ids))]


@given(data=st.data(), lengths=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_jagged_index_select_with_empty(data, lengths) -> None:
    ids = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    values = torch.arange(2.0 * sum(lengths)).view(-1, 2)
    bags = values.split(lengths)
    actual = jagged_index_select_with_empty(
        values,
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(lengths).cumsum(0),
        torch.tensor([lengths[i] for i in ids], dtype=torch.int64).cumsum(0),
    )
    assert torch.equal(actual, torch.cat([values[:0], *(bags[i] for i in ids)]))


def test_jagged_index_select_of_other_counts_is_an_error() -> None:
    one, two = torch.tensor([0]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"`output_offsets` should have shape \(1,\)"):
        jagged_index_select_with_empty(torch.zeros(2), one, two, two)


def contents(jagged: dict[str, JaggedTensor]) -> dict[str, tuple[object, ...]]:
    """What the outputs hold: values, lengths, offsets, ids."""
    return {
        name: (
            jt.values().tolist(),
            jt.lengths().tolist(),
            jt.offsets().tolist(),
            None if jt.weights_or_none() is None else jt.weights().tolist(),
        )
        for name, jt in jagged.items()
    }


class TestConstructJaggedTensors:
    ids = torch.tensor([5, 6, 7, 8, 9, 10])
    lengths = torch.tensor([2, 0, 1, 3])
    rows = torch.arange(6.0).unsqueeze(1)
    features = KeyedJaggedTensor(keys=["a", "b"], values=ids, lengths=lengths)
    shards = KeyedJaggedTensor(
        keys=["a", "a@1", "a@2"],
        values=torch.tensor([5, 6] * 3),
        lengths=torch.tensor([2, 0] * 3),
    )

    def test_one_output_a_name(self) -> None:
        out = construct_jagged_tensors(self.rows, self.features, ["x", "y"])
        assert contents(out) == {
            "x": ([[0], [1]], [2, 0], [0, 2, 2], None),
            "y": ([[2], [3], [4], [5]], [1, 3], [0, 1, 4], None),
        }

    @pytest.mark.parametrize("gather", [False, True])
    def test_ids_come_as_weights(self, gather) -> None:
        out = construct_jagged_tensors(
            self.rows, self.features, ["x", "y"], need_indices=True, use_gather_select=gather
        )
        assert out["x"].weights().tolist() == [5, 6]
        assert out["y"].weights().tolist() == [7, 8, 9, 10]

    def test_duplicates_are_put_back(self) -> None:
        unique = KeyedJaggedTensor(
            keys=["a", "b"], values=torch.tensor([1, 2]), lengths=torch.tensor([1, 0, 1, 0])
        )
        back = torch.tensor([0, 1, 0, 1, 1, 0])
        out = construct_jagged_tensors(
            self.rows[:2],
            unique,
            ["x", "y"],
            need_indices=True,
            original_features=self.features,
            reverse_indices=back,
        )
        assert contents(out) == {
            "x": ([[0], [1]], [2, 0], [0, 2, 2], [5, 6]),
            "y": ([[0], [1], [1], [0]], [1, 3], [0, 1, 4], [7, 8, 9, 10]),
        }

    @pytest.mark.parametrize(
        ("order", "expected"),
        [(None, [[0, 2, 4], [1, 3, 5]]), ([2, 0, 1], [[4, 0, 2], [5, 1, 3]])],
        ids=["as_they_come", "ordered"],
    )
    def test_shards_of_columns_are_joined(self, order, expected) -> None:
        out = construct_jagged_tensors(
            self.rows,
            self.shards,
            ["x", "x", "x"],
            need_indices=True,
            features_to_permute_indices=None if order is None else {"x": order},
        )
        assert contents(out) == {"x": (expected, [2, 0], [0, 2, 2], [5, 6])}

    def test_batches_of_their_own_sizes(self) -> None:
        features = KeyedJaggedTensor(
            keys=["a", "b"],
            values=torch.tensor([5, 6, 7, 8]),
            lengths=torch.tensor([2, 1, 1]),
            stride_per_key_per_rank=[[2], [1]],
        )
        out = construct_jagged_tensors(self.rows[:4], features, ["x", "y"])
        assert contents(out) == {
            "x": ([[0], [1], [2]], [2, 1], [0, 2, 3], None),
            "y": ([[3]], [1], [0, 1], None),
        }

    @pytest.mark.parametrize("need_indices", [False, True])
    def test_batches_of_their_own_sizes_spread_over_the_full_batch(self, need_indices) -> None:
        features = KeyedJaggedTensor(
            keys=["a", "b"],
            values=torch.tensor([5, 6, 7, 8]),
            lengths=torch.tensor([2, 1, 1]),
            stride_per_key_per_rank=[[2], [1]],
        )
        context = SequenceVBEContext(
            recat=torch.tensor([0, 1, 0, 2, 2, 2]),
            unpadded_lengths=torch.tensor([2, 1, 1]),
            reindexed_lengths=torch.tensor([[2, 1, 2], [1, 1, 1]]),
            reindexed_length_per_key=[5, 3],
            reindexed_values=torch.tensor([5, 6, 7, 5, 6, 8, 8, 8]),
        )
        out = construct_jagged_tensors(
            self.rows[:4], features, ["x", "y"], need_indices, seq_vbe_ctx=context
        )
        ids = ([5, 6, 7, 5, 6], [8, 8, 8]) if need_indices else (None, None)
        assert contents(out) == {
            "x": ([[0], [1], [2], [0], [1]], [2, 1, 2], [0, 2, 3, 5], ids[0]),
            "y": ([[3], [3], [3]], [1, 1, 1], [0, 1, 2, 3], ids[1]),
        }
        context.reindexed_values = None
        with pytest.raises(ValueError, match=r"`seq_vbe_ctx.reindexed_values` should be given"):
            construct_jagged_tensors(self.rows[:4], features, ["x", "y"], True, seq_vbe_ctx=context)

    def test_gradient_reaches_the_rows(self) -> None:
        rows = self.rows.clone().requires_grad_()
        out = construct_jagged_tensors(rows, self.features, ["x", "y"])
        (out["x"].values().sum() + 2 * out["y"].values().sum()).backward()
        assert rows.grad.flatten().tolist() == [1, 1, 2, 2, 2, 2]

    @pytest.mark.parametrize("flat", [False, True])
    def test_plain_tensors(self, flat) -> None:
        lengths = self.lengths if flat else self.lengths.view(2, 2)
        out = construct_jagged_tensors_inference(
            self.rows, lengths, self.ids, ["x", "y"], need_indices=True
        )
        expected = construct_jagged_tensors(self.rows, self.features, ["x", "y"], True)
        assert contents(out) == contents(expected)

    def test_plain_tensors_with_duplicates_and_shards(self) -> None:
        out = construct_jagged_tensors_inference(
            self.rows[:2],
            torch.tensor([[2, 1], [2, 1]]),
            self.ids,
            ["x", "x"],
            features_to_permute_indices={"x": [1, 0]},
            reverse_indices=torch.tensor([0, 0, 0, 1, 1, 1]),
        )
        assert contents(out) == {"x": ([[1, 0]] * 3, [2, 1], [0, 2, 3], None)}

    def test_plain_tensors_with_padding(self) -> None:
        args = (torch.cat([self.rows] * 2), self.lengths, torch.cat([self.ids] * 2), ["x", "y"])
        out = construct_jagged_tensors_inference(*args, need_indices=True, remove_padding=True)
        expected = construct_jagged_tensors(self.rows, self.features, ["x", "y"], True)
        assert contents(out) == contents(expected)
        with pytest.raises(ValueError, match=r"`embeddings` should have one row for each of the 6"):
            construct_jagged_tensors_inference(*args)

    def test_what_does_not_fit_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"one name for each of the 2 features. Received \['x"):
            construct_jagged_tensors(self.rows, self.features, ["x"])
        with pytest.raises(ValueError, match=r"6 ids of features \['x', 'y'\]. Received \(5, 1\)"):
            construct_jagged_tensors(self.rows[1:], self.features, ["x", "y"])
        with pytest.raises(ValueError, match=r"of 'x' should order its 3 features. Received \[0"):
            construct_jagged_tensors(
                self.rows, self.shards, ["x"] * 3, features_to_permute_indices={"x": [0, 1]}
            )


class Cached(nn.Module, CacheMixin):
    def __init__(self) -> None:
        super().__init__()
        self.cache: int | None = 3

    def clear_cache(self) -> None:
        self.cache = None


def test_caches_are_cleared_after_sharding() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(Cached()))
    reset_module_states_post_sharding(model)
    assert model[1][0].cache is None


def test_hash_buckets_leave_the_state() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Module(), nn.Module())
    for module in model[1:]:
        module.register_buffer("_hash_zch_bucket", torch.tensor([[4]]))
    kept = [name for name in model.state_dict() if not name.endswith("bucket")]
    assert make_hash_zch_buckets_non_persistent(model) == 2
    assert list(model.state_dict()) == kept
    assert model[1]._hash_zch_bucket.item() == 4
