"""DLRM and its variants: the whole model, its errors, its state."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    KeyedTensor,
)
from torchrec.datasets.utils import Batch
from torchrec.models import deepfm
from torchrec.models.dlrm import (
    DLRM,
    DLRM_DCN,
    DenseArch,
    DLRM_Projection,
    DLRMTrain,
    InteractionArch,
    InteractionDCNArch,
    InteractionProjectionArch,
    OverArch,
    SparseArch,
)
from torchrec.models.experimental.transformerdlrm import DLRM_Transformer
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.modules.mc_adapter import McEmbeddingBagCollectionAdapter
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

D = 8


def tables(dim: int = D, **options) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(100, dim, "t1", feature_names=["f1", "f3"], **options),
            EmbeddingBagConfig(100, dim, "t2", feature_names=["f2"], **options),
        ]
    )


def ids(batch: int = 3) -> KeyedJaggedTensor:
    lengths = torch.randint(0, 4, (3 * batch,))
    values = torch.randint(0, 100, (int(lengths.sum()),))
    return KeyedJaggedTensor(["f1", "f2", "f3"], values, lengths=lengths)


MODELS = {
    "dlrm": lambda **o: DLRM(tables(**o), 13, [20, D], [5, 1]),
    "projection": lambda **o: DLRM_Projection(
        tables(**o), 13, [20, D], [5, 1], [16, 2 * D], [3 * D]
    ),
    "dcn": lambda **o: DLRM_DCN(tables(**o), 13, [20, D], [5, 1], 2, 4),
    "transformer": lambda **o: DLRM_Transformer(tables(**o), 13, [20, D], [5, 1], 2, 1).eval(),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def by_hand(model: DLRM, dense: Tensor, kjt: KeyedJaggedTensor) -> Tensor:
    """The whole of a DLRM, sample by sample."""
    state = model.state_dict()

    def layer(x: Tensor, name: str) -> Tensor:
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"]

    bags = "sparse_arch.embedding_bag_collection.embedding_bags"
    logits = []
    for b in range(len(dense)):
        x = dense[b]
        for i in range(2):
            x = layer(x, f"dense_arch.model._mlp.{i}._linear").clamp(min=0)
        vectors = [x]
        for table, feature in (("t1", "f1"), ("t1", "f3"), ("t2", "f2")):
            rows = kjt[feature].to_dense()[b]
            vectors.append(state[f"{bags}.{table}.weight"][rows].sum(0))
        dots = [v @ w for v, w in itertools.combinations(vectors, 2)]
        x = layer(torch.cat([x, torch.stack(dots)]), "over_arch.model.0._mlp.0._linear")
        logits.append(layer(x.clamp(min=0), "over_arch.model.1"))
    return torch.stack(logits)


def test_dlrm_by_hand() -> None:
    model, dense, kjt = MODELS["dlrm"](), torch.randn(5, 13), ids(5)
    torch.testing.assert_close(model(dense, kjt), by_hand(model, dense, kjt))


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_without_dense_features_all_samples_share_a_learned_vector(batch) -> None:
    model, kjt = DLRM(tables(), 0, [D], [1]), ids(batch)
    vector = model.dense_arch.weight
    sparse = model.sparse_arch(kjt)
    expected = model.over_arch(model.inter_arch(vector.repeat(batch, 1), sparse))
    logits = model(torch.zeros(batch, 0), kjt)
    assert torch.equal(logits, expected)
    logits.sum().backward()
    assert vector.grad is not None
    assert vector.grad.any() == (batch > 0)


class StandIn(nn.Module):
    """Has what models ask for, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tables()

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return self.inner.embedding_bag_configs()

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        return self.inner(features)


def managed() -> ManagedCollisionEmbeddingBagCollection:
    inner = tables()
    maps = {
        name: MCHManagedCollisionModule(100, CPU, LFU_EvictionPolicy(), eviction_interval=5)
        for name in ("t1", "t2")
    }
    configs = inner.embedding_bag_configs()
    return ManagedCollisionEmbeddingBagCollection(inner, ManagedCollisionCollection(maps, configs))


CPU = torch.device("cpu")
COLLECTIONS = {
    "plain": tables,
    "fused": lambda: FusedEmbeddingBagCollection(
        tables().embedding_bag_configs(), torch.optim.SGD, {"lr": 0.1}
    ),
    "weighted by position": lambda: FeatureProcessedEmbeddingBagCollection(
        EmbeddingBagCollection(tables=tables().embedding_bag_configs(), is_weighted=True),
        PositionWeightedModuleCollection({"f1": 4, "f2": 4, "f3": 4}),
    ),
    "managed": managed,
    "adapter": lambda: McEmbeddingBagCollectionAdapter(
        tables().embedding_bag_configs(), 2**40, CPU, 1
    ),
    "stand-in": StandIn,
}


@pytest.mark.parametrize("make", COLLECTIONS.values(), ids=COLLECTIONS)
def test_every_collection_that_pools(make) -> None:
    collection, kjt, dense = make(), ids(5), torch.randn(5, 13)
    models = (
        DLRM(collection, 13, [20, D], [5, 1]),
        deepfm.DeepFactorizationMachine(collection, 13),
    )
    looked_up = collection.eval()(kjt)
    pooled = looked_up[0] if isinstance(looked_up, tuple) else looked_up
    for model in models:
        assert model.eval()(dense, kjt).shape == (5, 1)
    vectors = models[0].sparse_arch(kjt)
    assert torch.equal(vectors.flatten(1), pooled.values())
    assert models[0].sparse_arch.sparse_feature_names == pooled.keys() == ["f1", "f3", "f2"]


@each_model
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_logits_and_gradients_for_all_batch_sizes(make, batch) -> None:
    model = make()
    logits = model(torch.randn(batch, 13), ids(batch))
    assert logits.shape == (batch, 1)
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@each_model
def test_state_survives_a_file(make) -> None:
    torch.manual_seed(1)
    model, other, file = make(), make(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    dense, kjt = torch.randn(4, 13), ids(4)
    expected = model(dense, kjt)
    assert torch.equal(other(dense, kjt), expected)
    assert torch.equal(copy.deepcopy(model)(dense, kjt), expected)


@each_model
def test_states_have_the_names_of_the_api(make) -> None:
    names = list(make().state_dict())
    assert {
        "sparse_arch.embedding_bag_collection.embedding_bags.t1.weight",
        "dense_arch.model._mlp.0._linear.weight",
        "over_arch.model.0._mlp.0._linear.bias",
        "over_arch.model.1.weight",
    } <= set(names)
    inner = {n.split(".")[1] for n in names if n.startswith("inter_arch.")}
    branches = {"interaction_branch1", "interaction_branch2"}
    assert inner in (set(), {"crossnet"}, branches, {"interarch_TE"})


def test_features_are_read_by_name() -> None:
    model, dense, kjt = MODELS["dlrm"](), torch.randn(3, 13), ids(3)
    expected = model(dense, kjt)
    torch.testing.assert_close(model(dense, kjt.permute([2, 0, 1])), expected)

    class Reversed(nn.Module):
        """A collection that gives its outputs in another order, as a sharded one may."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
            pooled = self.inner(features)
            names = pooled.keys()[::-1]
            return KeyedTensor(names, [D] * 3, KeyedTensor.regroup([pooled], [names])[0])

    model.sparse_arch.embedding_bag_collection = Reversed(
        model.sparse_arch.embedding_bag_collection
    )
    torch.testing.assert_close(model(dense, kjt), expected)


def test_a_feature_in_two_tables_is_two_vectors() -> None:
    ebc = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(10, D, name, feature_names=["f"]) for name in ("t", "u")]
    )
    model = DLRM(ebc, 2, [D], [1])
    assert model.sparse_arch.sparse_feature_names == ["f@t", "f@u"]
    assert model(torch.zeros(2, 2), KeyedJaggedTensor.from_lists({"f": [[1], [2]]})).shape == (2, 1)


@each_model
def test_fused_training_lowers_the_loss(make) -> None:
    model = DLRMTrain(make(optimizer="rowwise_adagrad", lr=0.1))
    batch = Batch(torch.randn(64, 13), ids(64), torch.arange(64) % 2)
    dense = [p for n, p in model.named_parameters() if "embedding_bags" not in n]
    optimizer = torch.optim.Adam(dense, lr=0.01)
    losses = []
    for _ in range(30):
        loss, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class TestTrain:
    def test_loss_and_what_comes_with_it(self) -> None:
        model = DLRMTrain(MODELS["dlrm"]())
        batch = Batch(torch.randn(4, 13), ids(4), torch.tensor([0, 1, 1, 0]))
        loss, (again, logits, labels) = model(batch)
        p = torch.sigmoid(model.model(batch.dense_features, batch.sparse_features)[:, 0])
        expected = -torch.stack([(1 - p[0]).log(), p[1].log(), p[2].log(), (1 - p[3]).log()]).mean()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(logits.sigmoid(), p.detach())
        assert torch.equal(labels, batch.labels)
        assert (loss.requires_grad, again.requires_grad, logits.requires_grad) == (
            True,
            False,
            False,
        )

    def test_weights_of_samples_count(self) -> None:
        model = DLRMTrain(MODELS["dlrm"]())
        batch = Batch(torch.randn(4, 13), ids(4), torch.tensor([0, 1, 1, 0]))
        batch.weights = torch.tensor([0.0, 1.0, 2.0, 5.0])
        loss, (_, logits, _) = model(batch)
        one = nn.functional.binary_cross_entropy_with_logits
        losses = [one(y, t.float()) for y, t in zip(logits, batch.labels, strict=True)]
        torch.testing.assert_close(loss.detach(), (losses[1] + 2 * losses[2] + 5 * losses[3]) / 8)

    def test_one_logit_and_one_label_a_sample(self) -> None:
        batch = Batch(torch.randn(4, 13), ids(4), torch.zeros(3))
        with pytest.raises(ValueError, match=r"`batch.labels` .* \(4,\). Received \(3,\)"):
            DLRMTrain(MODELS["dlrm"]())(batch)
        with pytest.raises(ValueError, match=r"logits of shape \(B, 1\). Received \(4, 2\)"):
            DLRMTrain(DLRM(tables(), 13, [D], [5, 2]))(batch)
        with pytest.raises(TypeError, match=r"`dlrm_module` should be an nn.Module"):
            DLRMTrain("dlrm")


class TestErrors:
    def test_tables_of_several_dimensions(self) -> None:
        ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(10, 3, "t1", feature_names=["f1"]),
                EmbeddingBagConfig(10, 4, "t2", feature_names=["f2"]),
            ]
        )
        message = r"`embedding_bag_collection` .* same `embedding_dim`. Received {'t1': 3, 't2': 4}"
        with pytest.raises(ValueError, match=message):
            DLRM(ebc, 13, [3], [1])
        with pytest.raises(ValueError, match=message):
            SparseArch(ebc)

    def test_no_tables(self) -> None:
        with pytest.raises(ValueError, match=r"one or more tables.* Received no tables"):
            DLRM(EmbeddingBagCollection(tables=[]), 13, [D], [1])
        with pytest.raises(TypeError, match=r"EmbeddingBagCollection. Received Linear"):
            DLRM(nn.Linear(2, 2), 13, [D], [1])

    def test_sequences_are_not_pooled(self) -> None:
        table = EmbeddingConfig(9, D, "t", feature_names=["f1"])
        for make in (DLRM, SparseArch, deepfm.SparseArch):
            arguments = (13, [D], [1]) if make is DLRM else ()
            with pytest.raises(
                TypeError, match=r"EmbeddingBagCollection. Received EmbeddingCollec"
            ):
                make(EmbeddingCollection(tables=[table]), *arguments)

    @pytest.mark.parametrize("sizes", [[20, 10], [20], []], ids=str)
    def test_last_size_of_the_dense_network(self, sizes) -> None:
        message = rf"`dense_arch_layer_sizes` should end with 8.* Received \[{str(sizes)[1:-1]}\]"
        with pytest.raises(ValueError, match=message):
            DLRM(tables(), 13, sizes, [1])

    def test_sizes(self) -> None:
        with pytest.raises(ValueError, match="`dense_in_features` should be at least 0"):
            DLRM(tables(), -1, [D], [1])
        with pytest.raises(ValueError, match="`layer_sizes` should have one or more sizes"):
            DLRM(tables(), 13, [D], [])
        with pytest.raises(ValueError, match=r"`layer_sizes\[1\]` should be at least 1"):
            OverArch(5, [3, 0])
        with pytest.raises(ValueError, match="`dcn_low_rank_dim` should be at least 1"):
            DLRM_DCN(tables(), 13, [D], [1], 2, 0)
        message = r"`interaction_branch1_layer_sizes` .* multiple of 8.* Received \[20\]"
        with pytest.raises(ValueError, match=message):
            DLRM_Projection(tables(), 13, [D], [1], [20], [D])

    @each_model
    def test_inputs(self, make) -> None:
        model = make()
        expected = r"`dense_features` should have shape \(B, 13\). Received \(3, 5\)"
        with pytest.raises(ValueError, match=expected):
            model(torch.zeros(3, 5), ids(3))
        with pytest.raises(ValueError, match=r"`sparse_features` .* \(2, 3, 8\).* \(3, 3, 8\)"):
            model(torch.zeros(2, 13), ids(3))
        with pytest.raises(ValueError, match="'f2'"):
            model(
                torch.zeros(2, 13), KeyedJaggedTensor.from_lists({"f1": [[1], []], "f3": [[], []]})
            )

    def test_parts(self) -> None:
        with pytest.raises(
            ValueError, match=r"`features` should have shape \(B, 10\). Received \(2, 9\)"
        ):
            DenseArch(10, [3])(torch.zeros(2, 9))
        with pytest.raises(
            ValueError, match=r"`features` should have shape \(B, 10\). Received \(10,\)"
        ):
            OverArch(10, [1])(torch.zeros(10))


def config(name: str, features: list[str], dim: int = D) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name, embedding_dim=dim, num_embeddings=100, feature_names=features
    )


class TestSeedExamples:
    """The examples of the documents, with what had to be corrected."""

    #     0       1
    # 0   [1,2] [4,5]
    # 1   [4,3] [2,9]
    values = torch.tensor([1, 2, 4, 5, 4, 3, 2, 9])
    offsets = torch.tensor([0, 2, 4, 6, 8])

    def two(self, keys: list[str]) -> KeyedJaggedTensor:
        return KeyedJaggedTensor.from_offsets_sync(
            keys=keys, values=self.values, offsets=self.offsets
        )

    def three(self) -> KeyedJaggedTensor:
        return KeyedJaggedTensor.from_offsets_sync(
            keys=["f1", "f3", "f2"],
            values=torch.cat([self.values, torch.tensor([7])]),
            offsets=torch.tensor([0, 2, 4, 6, 8, 9, 9]),
        )

    def test_dlrm(self) -> None:
        B, D = 2, 8
        ebc = EmbeddingBagCollection(tables=[config("t1", ["f1"]), config("t2", ["f2"])])
        model = DLRM(
            embedding_bag_collection=ebc,
            dense_in_features=100,
            dense_arch_layer_sizes=[20, D],
            over_arch_layer_sizes=[5, 1],
        )
        features = torch.rand((B, 100))
        logits = model(dense_features=features, sparse_features=self.two(["f1", "f2"]))
        assert logits.shape == (B, 1)

    def test_dlrm_train(self) -> None:
        # left out ebc_config, whose embedding_dim has to be 20, the last of dense_arch_layer_sizes;
        # and EmbeddingBagCollection takes `tables`, not `config`
        ebc_config = [config("t1", ["f1"], 20), config("t2", ["f2"], 20)]
        ebc = EmbeddingBagCollection(tables=ebc_config)
        dlrm_module = DLRM(
            embedding_bag_collection=ebc,
            dense_in_features=100,
            dense_arch_layer_sizes=[20],
            over_arch_layer_sizes=[5, 1],
        )
        dlrm_model = DLRMTrain(dlrm_module)
        batch = Batch(torch.rand(2, 100), self.two(["f1", "f2"]), torch.tensor([0, 1]))
        loss, (_, logits, labels) = dlrm_model(batch)
        assert (loss.shape, logits.shape, labels.shape) == ((), (2,), (2,))

    def test_dlrm_dcn(self) -> None:
        B, D = 2, 8
        ebc = EmbeddingBagCollection(tables=[config("t1", ["f1", "f3"]), config("t2", ["f2"])])
        model = DLRM_DCN(
            embedding_bag_collection=ebc,
            dense_in_features=100,
            dense_arch_layer_sizes=[20, D],
            dcn_num_layers=2,
            dcn_low_rank_dim=8,
            over_arch_layer_sizes=[5, 1],
        )
        features = torch.rand((B, 100))
        # the input had no "f2", which table t2 asks for
        with pytest.raises(ValueError, match="'f2'"):
            model(dense_features=features, sparse_features=self.two(["f1", "f3"]))
        logits = model(dense_features=features, sparse_features=self.three())
        assert logits.shape == (B, 1)

    def test_dlrm_projection(self) -> None:
        B, D = 2, 8
        ebc = EmbeddingBagCollection(tables=[config("t1", ["f1", "f3"]), config("t2", ["f2"])])
        model = DLRM_Projection(
            embedding_bag_collection=ebc,
            dense_in_features=100,
            dense_arch_layer_sizes=[20, D],
            interaction_branch1_layer_sizes=[3 * D + D, 4 * D],
            interaction_branch2_layer_sizes=[3 * D + D, 4 * D],
            over_arch_layer_sizes=[5, 1],
        )
        features = torch.rand((B, 100))
        # the input had no "f2", which table t2 asks for
        logits = model(dense_features=features, sparse_features=self.three())
        assert logits.shape == (B, 1)

    def test_dense_arch(self) -> None:
        B = 20
        D = 3
        dense_arch = DenseArch(10, layer_sizes=[15, D])
        dense_embedded = dense_arch(torch.rand((B, 10)))
        assert dense_embedded.shape == (B, D)

    def test_interaction_arch(self) -> None:
        D = 3
        B = 10
        keys = ["f1", "f2"]
        F = len(keys)
        inter_arch = InteractionArch(num_sparse_features=len(keys))
        dense_features = torch.rand((B, D))
        sparse_features = torch.rand((B, F, D))
        # B X (D + F + F choose 2)
        concat_dense = inter_arch(dense_features, sparse_features)
        assert concat_dense.shape == (B, D + F + 1)

    def test_interaction_dcn_arch(self) -> None:
        D = 3
        B = 10
        keys = ["f1", "f2"]
        F = len(keys)
        # said dcn_num_layers and dnc_low_rank_dim, which LowRankCrossNet never had
        DCN = LowRankCrossNet(in_features=F * D + D, num_layers=2, low_rank=4)
        inter_arch = InteractionDCNArch(num_sparse_features=len(keys), crossnet=DCN)
        dense_features = torch.rand((B, D))
        sparse_features = torch.rand((B, F, D))
        # B X (F*D + D)
        concat_dense = inter_arch(dense_features, sparse_features)
        assert concat_dense.shape == (B, F * D + D)

    def test_interaction_projection_arch(self) -> None:
        D = 3
        B = 10
        keys = ["f1", "f2"]
        F = len(keys)
        dense_device = None  # was not defined
        # said in_features=3 * D + D, which is right for three keys and not for these two
        I1 = DenseArch(in_features=F * D + D, layer_sizes=[4 * D, 4 * D], device=dense_device)
        I2 = DenseArch(in_features=F * D + D, layer_sizes=[4 * D, 4 * D], device=dense_device)
        inter_arch = InteractionProjectionArch(
            num_sparse_features=len(keys), interaction_branch1=I1, interaction_branch2=I2
        )
        dense_features = torch.rand((B, D))
        sparse_features = torch.rand((B, F, D))
        # B X (D + F1 * F2)
        concat_dense = inter_arch(dense_features, sparse_features)
        assert concat_dense.shape == (B, D + 4 * 4)

    def test_over_arch(self) -> None:
        B = 20
        over_arch = OverArch(10, [5, 1])
        logits = over_arch(torch.rand((B, 10)))
        assert logits.shape == (B, 1)

    def test_sparse_arch(self) -> None:
        # the tables had embedding_dim 3 and 4, which do not fit in one tensor B X F X D
        eb1_config = EmbeddingBagConfig(
            name="t1", embedding_dim=4, num_embeddings=10, feature_names=["f1"]
        )
        eb2_config = EmbeddingBagConfig(
            name="t2", embedding_dim=4, num_embeddings=10, feature_names=["f2"]
        )
        ebc = EmbeddingBagCollection(tables=[eb1_config, eb2_config])
        sparse_arch = SparseArch(ebc)  # said embedding_bag_collection, which was not defined
        #     0       1        2  <-- batch
        # 0   [0,1] None    [2]
        # 1   [3]    [4]    [5,6,7]
        features = KeyedJaggedTensor.from_offsets_sync(
            keys=["f1", "f2"],
            values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]),
            offsets=torch.tensor([0, 2, 2, 3, 4, 5, 8]),
        )
        sparse_embeddings = sparse_arch(features)
        assert sparse_embeddings.shape == (3, 2, 4)
        assert torch.equal(sparse_embeddings[1, 0], torch.zeros(4))
        assert sparse_arch.sparse_feature_names == ["f1", "f2"]
