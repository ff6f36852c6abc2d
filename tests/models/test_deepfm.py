"""DeepFM: the whole model, its errors, its state."""

from __future__ import annotations

import io
import itertools

import pytest
import torch

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.models.deepfm import (
    DeepFactorizationMachine,
    DenseArch,
    FMInteractionArch,
    OverArch,
    SimpleDeepFMNN,
    SparseArch,
)

D = 8


def make(**options) -> SimpleDeepFMNN:
    ebc = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(100, D, "t1", feature_names=["f1", "f3"], **options),
            EmbeddingBagConfig(100, D, "t2", feature_names=["f2"], **options),
        ]
    )
    return SimpleDeepFMNN(13, ebc, hidden_layer_size=20, deep_fm_dimension=5)


def ids(batch: int = 3) -> KeyedJaggedTensor:
    lengths = torch.randint(0, 4, (3 * batch,))
    values = torch.randint(0, 100, (int(lengths.sum()),))
    return KeyedJaggedTensor(["f1", "f2", "f3"], values, lengths=lengths)


def test_the_model_by_hand() -> None:
    model, dense, kjt = make(), torch.randn(5, 13), ids(5)
    p = model.state_dict()
    bags = "sparse_arch.embedding_bag_collection.embedding_bags"
    for b, actual in enumerate(model(dense, kjt)):
        x = dense[b]
        for i in (0, 2):
            x = p[f"dense_arch.model.{i}.weight"] @ x + p[f"dense_arch.model.{i}.bias"]
            x = x.clamp(min=0)
        parts = [x]
        for table, feature in (("t1", "f1"), ("t1", "f3"), ("t2", "f2")):
            parts.append(p[f"{bags}.{table}.weight"][kjt[feature].to_dense()[b]].sum(0))
        flat = torch.cat(parts)
        deep = "inter_arch.deep_fm.dense_module.0"
        hidden = (p[f"{deep}.weight"] @ flat + p[f"{deep}.bias"]).clamp(min=0)
        fm = sum(v * w for v, w in itertools.combinations(flat, 2))
        last = torch.cat([x, hidden, fm.unsqueeze(0)])
        logit = p["over_arch.model.0.weight"] @ last + p["over_arch.model.0.bias"]
        torch.testing.assert_close(actual, torch.sigmoid(logit))


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_probabilities_and_gradients_for_all_batch_sizes(batch) -> None:
    model = make()
    output = model(torch.randn(batch, 13), ids(batch))
    assert output.shape == (batch, 1)
    assert ((output > 0) & (output < 1)).all()
    output.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_state_survives_a_file() -> None:
    model, other, file = make(), make(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    dense, kjt = torch.randn(4, 13), ids(4)
    assert torch.equal(other(dense, kjt), model(dense, kjt))


def test_fused_training_lowers_the_loss() -> None:
    model = make(optimizer="rowwise_adagrad", lr=0.1)
    dense, kjt, labels = torch.randn(64, 13), ids(64), (torch.arange(64) % 2).float()
    rest = [p for n, p in model.named_parameters() if "embedding_bags" not in n]
    optimizer = torch.optim.Adam(rest, lr=0.01)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy(model(dense, kjt)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_keys_are_read_by_name_and_others_left() -> None:
    values = torch.randn(4, 9)
    sparse = KeyedTensor(["a", "other", "b"], [3, 2, 4], values)
    interaction = FMInteractionArch(3 + 4 + 3, ["b", "a"], 5)
    alone = KeyedTensor(["b", "a"], [4, 3], torch.cat([values[:, 5:], values[:, :3]], 1))
    dense = torch.randn(4, 3)
    torch.testing.assert_close(interaction(dense, sparse), interaction(dense, alone))


def test_without_sparse_features_the_dense_vector_is_left() -> None:
    dense = torch.randn(4, 3)
    nothing = KeyedTensor([], [], torch.zeros(4, 0))
    assert torch.equal(FMInteractionArch(3, [], 5)(dense, nothing), dense)


@pytest.mark.parametrize("load", [False, True], ids=["from_input", "from_state"])
def test_sizes_that_are_left_out_are_learned(load) -> None:
    sparse = KeyedTensor(["a", "b"], [3, 3], torch.randn(4, 6))
    dense = torch.randn(4, 3)
    interaction, over = FMInteractionArch(None, ["a", "b"], 5), OverArch()
    sized, sized_over = FMInteractionArch(9, ["a", "b"], 5), OverArch(9)
    if not load:
        assert over(interaction(dense, sparse)).shape == (4, 1)
        assert interaction.deep_fm.dense_module[0].in_features == 9
    interaction.load_state_dict(sized.state_dict())
    over.load_state_dict(sized_over.state_dict())
    assert torch.equal(over(interaction(dense, sparse)), sized_over(sized(dense, sparse)))


class TestErrors:
    def test_tables(self) -> None:
        ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(10, 3, "t1", feature_names=["f1"]),
                EmbeddingBagConfig(10, 4, "t2", feature_names=["f2"]),
            ]
        )
        with pytest.raises(ValueError, match=r"same `embedding_dim`. Received {'t1': 3, 't2': 4}"):
            SimpleDeepFMNN(13, ebc, 20, 5)

    def test_inputs_of_the_model(self) -> None:
        message = r"`dense_features` should have shape \(B, 13\). Received \(3, 5\)"
        with pytest.raises(ValueError, match=message):
            make()(torch.zeros(3, 5), ids(3))
        with pytest.raises(ValueError, match=r"`dense_features` .* B=3.* Received \(2, 8\)"):
            make()(torch.zeros(2, 13), ids(3))
        with pytest.raises(ValueError, match="'f2'"):
            make()(torch.zeros(1, 13), KeyedJaggedTensor.from_lists({"f1": [[1]], "f3": [[]]}))

    def test_inputs_of_the_interaction(self) -> None:
        interaction = FMInteractionArch(9, ["a", "b"], 5)
        sparse = KeyedTensor(["a", "c"], [3, 3], torch.zeros(4, 6))
        with pytest.raises(ValueError, match=r"have the key 'b'. Received \['a', 'c'\]"):
            interaction(torch.zeros(4, 3), sparse)
        sparse = KeyedTensor(["a", "b"], [3, 4], torch.zeros(4, 7))
        with pytest.raises(
            ValueError, match=r"`fm_in_features`=9 numbers a sample. Received 3 and 7"
        ):
            interaction(torch.zeros(4, 3), sparse)

    def test_arguments(self) -> None:
        with pytest.raises(
            ValueError, match=r"`sparse_feature_names` .* distinct. Received \['a', 'a'\]"
        ):
            FMInteractionArch(9, ["a", "a"], 5)
        with pytest.raises(ValueError, match="`deep_fm_dimension` should be at least 1"):
            FMInteractionArch(9, ["a"], 0)
        with pytest.raises(ValueError, match="`fm_in_features` should be at least 1"):
            FMInteractionArch(0, ["a"], 5)
        with pytest.raises(ValueError, match="`hidden_layer_size` should be at least 1"):
            DenseArch(13, 0, 3)
        with pytest.raises(TypeError, match="`in_features` should be an integer"):
            OverArch("ten")

    def test_parts(self) -> None:
        with pytest.raises(ValueError, match=r"`features` should have shape \(B, 10\)"):
            DenseArch(10, 5, 3)(torch.zeros(2, 9))
        with pytest.raises(ValueError, match=r"`features` should have shape \(B, 10\)"):
            OverArch(10)(torch.zeros(2, 9))


class TestSeedExamples:
    """The examples of the documents, with what had to be corrected."""

    def test_dense_arch(self) -> None:
        B = 20
        D = 3
        in_features = 10
        dense_arch = DenseArch(in_features=in_features, hidden_layer_size=10, embedding_dim=D)
        dense_arch_input = torch.rand((B, in_features))
        dense_embedded = dense_arch(dense_arch_input)
        assert dense_embedded.shape == (B, D)
        # the text lists `device`, the signature does not have it
        assert DenseArch(10, 10, D, device=torch.device("meta")).model[0].weight.is_meta

    def test_fm_interaction_arch(self) -> None:
        D = 3
        B = 10
        keys = ["f1", "f2"]
        F = len(keys)
        # left out fm_in_features and deep_fm_dimension, which have no default
        fm_inter_arch = FMInteractionArch(
            fm_in_features=D + D * F, sparse_feature_names=keys, deep_fm_dimension=4
        )
        dense_features = torch.rand((B, D))
        sparse_features = KeyedTensor(
            keys=keys,
            length_per_key=[D, D],
            values=torch.rand((B, D * F)),
        )
        cat_fm_output = fm_inter_arch(dense_features, sparse_features)
        assert cat_fm_output.shape == (B, D + 4 + 1)

    def test_over_arch(self) -> None:
        B = 20
        # left out in_features: taken from the first input here
        over_arch = OverArch()
        logits = over_arch(torch.rand((B, 10)))
        assert logits.shape == (B, 1)

    def test_simple_deep_fm_nn(self) -> None:
        B = 2
        D = 8
        eb1_config = EmbeddingBagConfig(
            name="t1", embedding_dim=D, num_embeddings=100, feature_names=["f1", "f3"]
        )
        eb2_config = EmbeddingBagConfig(
            name="t2",
            embedding_dim=D,
            num_embeddings=100,
            feature_names=["f2"],
        )
        ebc = EmbeddingBagCollection(tables=[eb1_config, eb2_config])
        # left out num_dense_features and said over_embedding_dim for deep_fm_dimension
        sparse_nn = SimpleDeepFMNN(
            num_dense_features=100,
            embedding_bag_collection=ebc,
            hidden_layer_size=20,
            deep_fm_dimension=5,
        )
        features = torch.rand((B, 100))
        # the input had no "f2", which table t2 asks for
        sparse_features = KeyedJaggedTensor.from_offsets_sync(
            keys=["f1", "f3", "f2"],
            values=torch.tensor([1, 2, 4, 5, 4, 3, 2, 9, 7]),
            offsets=torch.tensor([0, 2, 4, 6, 8, 9, 9]),
        )
        logits = sparse_nn(dense_features=features, sparse_features=sparse_features)
        assert logits.shape == (B, 1)

    def test_sparse_arch(self) -> None:
        eb1_config = EmbeddingBagConfig(
            name="t1", embedding_dim=3, num_embeddings=10, feature_names=["f1"]
        )
        eb2_config = EmbeddingBagConfig(
            name="t2", embedding_dim=4, num_embeddings=10, feature_names=["f2"]
        )
        ebc = EmbeddingBagCollection(tables=[eb1_config, eb2_config])
        #     0       1        2  <-- batch
        # 0   [0,1] None    [2]
        # 1   [3]    [4]    [5,6,7]
        features = KeyedJaggedTensor.from_offsets_sync(
            keys=["f1", "f2"],
            values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]),
            offsets=torch.tensor([0, 2, 2, 3, 4, 5, 8]),
        )
        sparse_arch = SparseArch(ebc)  # was not made
        pooled = sparse_arch(features)
        assert (pooled.keys(), pooled.values().shape) == (["f1", "f2"], (3, 7))


@pytest.mark.parametrize(("num_dense", "dense_layers"), [(0, []), (3, []), (3, [4])], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_the_model_of_the_paper_by_hand(num_dense, dense_layers, batch) -> None:
    ebc = make().sparse_arch.embedding_bag_collection
    model = DeepFactorizationMachine(ebc, num_dense, [6], dense_layer_sizes=dense_layers)
    dense, kjt = torch.randn(batch, num_dense), ids(batch)
    p = model.state_dict()
    bags = "sparse_arch.embedding_bag_collection.embedding_bags"
    logits = model(dense, kjt)
    assert logits.shape == (batch, 1)
    for b in range(batch):
        x, vectors = dense[b], []
        if dense_layers:
            layer = "dense_arch.0._mlp.0._linear"
            x = (p[f"{layer}.weight"] @ x + p[f"{layer}.bias"]).clamp(min=0)
        if num_dense:
            vectors.append(p["dense_arch.1.weight"] @ x + p["dense_arch.1.bias"])
        for table, feature in (("t1", "f1"), ("t1", "f3"), ("t2", "f2")):
            vectors.append(p[f"{bags}.{table}.weight"][kjt[feature].to_dense()[b]].sum(0))
        products = sum(v @ w for v, w in itertools.combinations(vectors, 2))
        flat = torch.cat(vectors)
        tower = "deep_fm.dense_module"
        hidden = p[f"{tower}.layers.0._linear.weight"] @ flat
        hidden = (hidden + p[f"{tower}.layers.0._linear.bias"]).clamp(min=0)
        deep = p[f"{tower}.logit.weight"] @ hidden + p[f"{tower}.logit.bias"]
        torch.testing.assert_close(logits[b], p["linear.weight"] @ flat + products + deep)
    logits.sum().backward()
    assert all(w.grad is not None for w in model.parameters())


def test_the_model_of_the_paper_checks_its_sizes() -> None:
    ebc = make().sparse_arch.embedding_bag_collection
    with pytest.raises(ValueError, match="`num_dense_features` should be at least 0"):
        DeepFactorizationMachine(ebc, -1)
    with pytest.raises(ValueError, match=r"`dropout` should be in \[0, 1\). Received 1.5"):
        DeepFactorizationMachine(ebc, 0, dropout=1.5)
    with pytest.raises(ValueError, match=r"`dense_features` should have shape \(B, 2\)"):
        DeepFactorizationMachine(ebc, 2)(torch.zeros(3, 1), ids())
