"""Models of the registry: their tables, their inputs, what they are made of."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from torchrec import EmbeddingBagCollection, KeyedJaggedTensor, OptimizerType, PoolingType
from torchrec.datasets.features import DenseFeature, MultiHotFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform, TableSpec
from torchrec.models.dlrm import DLRM
from torchrec.models.multi_task import ESMM, PLE, MMoE, SharedBottom
from torchrec.models.registry import ModelSection, TableOptimizer, build_model, find, names
from torchrec.models.registry._tower import DenseOnly
from torchrec.types import IdPolicy

pytestmark = pytest.mark.once

each_model = pytest.mark.parametrize("name", names())
TASKS = ["esmm", "mmoe", "ple", "shared_bottom"]
BASELINES = ["fm", "lr"]  # without layers
ADAM = TableOptimizer(optimizer="adam", lr=0.01)


def spec(name: str, **changes) -> TableSpec:
    defaults = {"features": (name,), "rows": 10, "ids": "plain"}
    return TableSpec(name, **defaults | changes)


def transform(num_dense: int = 3, tables=None, is_weighted: bool = False) -> SimpleNamespace:
    if tables is None:
        tables = [spec("user", features=("user", "friend")), spec("item", pooling="mean")]
    names = [f"d{i}" for i in range(num_dense)]
    return SimpleNamespace(dense_names=names, tables=tables, is_weighted=is_weighted, outputs=[1])


def ids(batch: int = 4, weighted: bool = False) -> KeyedJaggedTensor:
    lengths = torch.randint(0, 4, (3 * batch,))
    total = int(lengths.sum())
    weights = torch.rand(total) if weighted else None
    values = torch.randint(0, 10, (total,))
    return KeyedJaggedTensor(["user", "friend", "item"], values, weights, lengths=lengths)


def section(name: str = "dlrm", **changes) -> ModelSection:
    known = find(name).section.model_fields
    sizes = {"dim": 8, "dense_layers": [6], "layers": [16, 8]}
    return ModelSection(name=name, **{k: v for k, v in sizes.items() if k in known} | changes)


def collection_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return the tables of a model."""
    return getattr(model, "sparse_arch", model).embedding_bag_collection


def configs(what: ModelSection, specs, optimizer=ADAM) -> list:
    """Return the configurations of the tables of a model."""
    model = build_model(what, transform(0, tables=specs), optimizer)
    return collection_of(model).embedding_bag_configs()


LEARNED = [
    (name, num_dense, weighted, norm)
    for norm in (False, True)
    for weighted in (False, True)
    for num_dense in (0, 1, 3)
    for name in names()
    # Those of several tasks differ in what is on top alone.
    if name not in TASKS or (num_dense, weighted) == (3, norm)
]


@pytest.mark.parametrize(("name", "num_dense", "weighted", "norm"), LEARNED)
def test_models_give_logits_and_learn(name, num_dense, weighted, norm) -> None:
    torch.manual_seed(0)
    options = {"batch_norm": True, "dropout": 0.1} if norm else {}
    if norm and name in BASELINES:
        options = {}
    model = build_model(section(name, **options), transform(num_dense, is_weighted=weighted), ADAM)
    dense, sparse, labels = torch.randn(16, num_dense), ids(16, weighted), torch.rand(16, 1).round()
    tables = collection_of(model)
    fused = {id(p) for p in tables.parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if id(p) not in fused], lr=0.01)
    before = copy.deepcopy(tables.state_dict())
    losses = []
    for _ in range(60 if name not in BASELINES else 400):
        logits = model(dense, sparse)
        assert logits.shape == (16, 1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.5 * losses[0]
    assert (logits < 0).any()
    for table, weight in tables.state_dict().items():
        assert not torch.equal(weight, before[table]), (
            f"{table} was not trained by the fused update"
        )


@each_model
def test_models_are_what_they_are_called(name) -> None:
    options = {"cross_layers": 2} if name == "dlrm_dcn" else {}
    model = build_model(section(name, **options), transform())
    kind = {
        "dlrm": "DLRM",
        "dlrm_dcn": "DLRM_DCN",
        "deepfm": "DeepFactorizationMachine",
        "fm": "FactorizationMachineModel",
        "lr": "LogisticRegression",
        **dict.fromkeys(["esmm", "mmoe", "ple", "shared_bottom"], "DLRM_DCN"),
    }[name]
    assert type(model).__name__ == kind
    if name == "dlrm_dcn":
        assert len(model.inter_arch.crossnet.W_kernels) == 2
        assert model.over_arch.in_features == 8 * 4


OTHERWISE = {
    "dim": 4,
    "table_init": {"rule": "normal", "std": 0.02},
    "layer_init": {"rule": "xavier_normal"},
    "dense_layers": [5],
    "layers": [7],
    "dropout": 0.5,
    "embedding_dropout": 0.5,
    "batch_norm": True,
    "activation": "tanh",
    "cross_layers": 1,
    "cross_rank": 3,
    "linear": True,
    "vectors": False,
    "interaction": "dot",
    "tower_layers": [5],
    "experts": 2,
    "levels": 2,
    "shared_experts": 3,
    "task_experts": 1,
}
NO_EFFECT = [("lr", "dim")]  # which the reference says


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in names()
        for option in list(find(name).section.model_fields)[1:]
        if (name, option) not in NO_EFFECT
    ],
)
def test_every_option_has_an_effect(name, option) -> None:
    assert option in OTHERWISE, f"a value for `{option}` of {name} that differs from its default"

    def described(**options) -> tuple:
        torch.manual_seed(0)
        model = build_model(ModelSection(name=name, **options), transform())
        weights = {key: value.tolist() for key, value in model.state_dict().items()}
        return weights, [type(part) for part in model.modules()]

    assert described() == described()
    assert described() != described(**{option: OTHERWISE[option]})


HEADS = {"esmm": ESMM, "mmoe": MMoE, "ple": PLE, "shared_bottom": SharedBottom}
each_of_tasks = pytest.mark.parametrize("name", TASKS)


def test_these_are_the_models_of_several_tasks() -> None:
    assert [name for name in names() if find(name).tasks != "one"] == TASKS


@each_of_tasks
@pytest.mark.parametrize("interaction", ["cross", "dot", "fm"])
@pytest.mark.parametrize("num_dense", [0, 3])
def test_tasks_have_outputs_over_any_interaction(name, interaction, num_dense) -> None:
    outputs = [1, 1, 1] if name == "esmm" else [1, 4, 1]
    given = transform(num_dense)
    given.outputs = outputs
    model = build_model(section(name, interaction=interaction), given, ADAM)
    assert type(model.over_arch) is HEADS[name]
    assert (
        type(model.inter_arch).__name__
        == {
            "cross": "InteractionDCNArch",
            "dot": "WithVectors",
            "fm": "FMVectors",
        }[interaction]
    )
    logits = model(torch.randn(5, num_dense), ids(5))
    assert logits.shape == (5, sum(outputs))
    logits.square().mean().backward()


@each_of_tasks
def test_tasks_over_dense_features_alone(name) -> None:
    given = transform(3, tables=[])
    given.outputs = [1, 1]
    empty = KeyedJaggedTensor([], torch.empty(0, dtype=torch.int64), lengths=torch.empty(0).int())
    assert build_model(section(name), given)(torch.randn(5, 3), empty).shape == (5, 2)


@pytest.mark.parametrize(
    ("name", "outputs", "received"),
    [
        ("dlrm", [1, 1], "one task of one number a sample. Received 2 of them, which take 1, 1"),
        ("lr", [5], "one task of one number a sample. Received 1 of them, which take 5"),
        ("esmm", [1, 4], "tasks of one number a sample. Received 2 of them, which take 1, 4"),
    ],
)
def test_tasks_that_a_model_has_no_outputs_for(name, outputs, received) -> None:
    given = transform()
    given.outputs = outputs
    with pytest.raises(
        ValueError, match=rf"model '{name}' predicts, {received}.*choose mmoe or ple"
    ):
        build_model(section(name), given)


def test_dense_features_alone_make_a_plain_network() -> None:
    model = build_model(section(), transform(3, tables=[]))
    assert isinstance(model, DenseOnly)
    empty = KeyedJaggedTensor([], torch.empty(0, dtype=torch.int64), lengths=torch.empty(0).int())
    dense = torch.randn(5, 3)
    assert torch.equal(model(dense, empty), model.tower(dense))


def test_no_feature_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"`features` should have one or more features. Received"):
        build_model(section(), transform(0, tables=[]))


def test_tables_say_how_they_are_trained() -> None:
    optimizer = TableOptimizer(optimizer="rowwise_adagrad", lr=0.3, weight_decay=0.01)
    table, mean = configs(section(), None, optimizer)
    assert (table.num_embeddings, table.embedding_dim) == (10, 8)
    assert table.feature_names == ["user", "friend"]
    assert (table.optimizer, table.lr) == (OptimizerType.ROWWISE_ADAGRAD, 0.3)
    assert table.weight_decay == 0.01
    assert (table.pooling, mean.pooling) == (PoolingType.SUM, PoolingType.MEAN)


def test_tables_without_an_optimizer_have_gradients() -> None:
    model = build_model(section(), transform())
    model(torch.randn(4, 3), ids()).sum().backward()
    for parameter in model.sparse_arch.parameters():
        assert parameter.grad is not None


@pytest.mark.parametrize(
    ("ids", "out_of_range", "policy"),
    [
        ("plain", IdPolicy.ERROR, IdPolicy.ERROR),
        ("plain", IdPolicy.CLAMP, IdPolicy.CLAMP),
        ("hash", IdPolicy.ERROR, IdPolicy.HASH),
        ("vocabulary", IdPolicy.ERROR, IdPolicy.ERROR),
    ],
)
def test_policies_of_ids(ids, out_of_range, policy) -> None:
    specs = [spec("user", ids=ids, out_of_range=out_of_range)]
    (table,) = configs(section(), specs)
    assert table.id_policy == policy


def test_any_id_finds_a_row_of_a_hashed_table() -> None:
    model = build_model(section("deepfm"), transform(0, tables=[spec("user", ids="hash")]))
    tables = model.sparse_arch.embedding_bag_collection
    assert isinstance(tables, EmbeddingBagCollection)
    kjt = KeyedJaggedTensor.from_lists({"user": [[2**62], [-5], [7]]})
    assert model(torch.zeros(3, 0), kjt).shape == (3, 1)
    assert tables.out_of_range_counts() == {"user": 2}


def test_dimensions_of_tables() -> None:
    specs = [spec("user", dim=4), spec("item")]
    with pytest.raises(
        ValueError, match=r"same for all tables of model 'dlrm'. Received {'user': 4, 'item': 8}"
    ):
        configs(section(), specs)
    assert configs(section(dim=4), specs)[1].embedding_dim == 4


@pytest.mark.parametrize("evict", ["lfu", "lru", "distance_lfu"])
@each_model
def test_managed_ids_get_rows_of_their_own(name, evict) -> None:
    specs = [spec("user", rows=4, ids="managed", evict=evict, evict_every=2), spec("item")]
    model = build_model(section(name), transform(0, tables=specs), ADAM)
    warm = KeyedJaggedTensor.from_lists({"user": [[2**62], [-5], [7]], "item": [[1], [2], [3]]})
    other = KeyedJaggedTensor.from_lists({"user": [[12], [13], [14]], "item": [[1], [1], [1]]})
    none = torch.zeros(3, 0)
    for _ in range(4):
        (model(none, warm) * torch.tensor([[1.0], [0.0], [-1.0]])).sum().backward()
    with torch.no_grad():
        model.eval()
        before = model(none, other)
        assert torch.equal(before[0], before[1])  # strangers share a row
        assert model(none, warm).unique().numel() == 3
        assert torch.equal(model(none, other), before)
    again = build_model(section(name), transform(0, tables=specs), ADAM).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(none, warm), model(none, warm))


def test_rows_have_to_be_known() -> None:
    with pytest.raises(ValueError, match=r"`rows` of table 'user' should be known: fit the"):
        configs(section(), [spec("user", rows=None)])


def test_from_a_table_of_clicks_to_logits() -> None:
    clicks = pa.table(
        {
            "price": [1.0, None, 3.0],
            "hour": [1, 2, 3],
            "user": ["ann", None, "bob"],
            "shop": ["x", "y", "x"],
            "tags": [["a", "b"], [], ["c"]],
            "click": [0, 1, 1],
        }
    )
    features = {
        "price": DenseFeature(),
        "hour": DenseFeature(buckets=2),
        "user": SparseFeature(rows=100),
        "shop": SparseFeature(ids="vocabulary"),
        "tags": MultiHotFeature(rows=50, pooling="mean"),
    }
    fitted = FeatureTransform(features, label="click").fit([clicks])
    batch = fitted(clicks)
    for name in names():
        model = build_model(section(name), fitted)
        assert model(batch.dense_features, batch.sparse_features).shape == (3, 1)
    unseen = fitted(pa.table(clicks).set_column(3, "shop", pa.array(["?", "?", "?"])))
    logits = model(unseen.dense_features, unseen.sparse_features)
    assert logits.isfinite().all()


def test_the_state_goes_from_one_model_to_another() -> None:
    make = lambda: build_model(section(batch_norm=True), transform())  # noqa: E731
    model, other = make(), make()
    assert isinstance(model, DLRM)
    other.load_state_dict(model.state_dict())
    dense, sparse = torch.randn(4, 3), ids()
    assert torch.equal(model.eval()(dense, sparse), other.eval()(dense, sparse))
