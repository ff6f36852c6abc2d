"""Models that take all of a batch in one object."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.deepfm import SimpleDeepFMNN, SimpleDeepFMNNWrapper
from torchrec.models.dlrm import DLRM, DLRMWrapper


def tables() -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=[EmbeddingBagConfig(10, 8, "t", feature_names=["f"])])


def models(which: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A wrapper, and the model around which it is one, with the same weights."""
    if which == "dlrm":
        wrapper, plain = (cls(tables(), 4, [8, 8], [4, 1]) for cls in (DLRMWrapper, DLRM))
    else:
        wrapper, plain = (cls(4, tables(), 8, 3) for cls in (SimpleDeepFMNNWrapper, SimpleDeepFMNN))
    plain.load_state_dict(wrapper.state_dict())
    return wrapper, plain


def batch(**more: torch.Tensor) -> SimpleNamespace:
    ids = KeyedJaggedTensor.from_lists({"f": [[1], [2, 3], []]})
    return SimpleNamespace(float_features=torch.rand(3, 4), idlist_features=ids, **more)


@pytest.mark.parametrize("which", ["dlrm", "deepfm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_training_gives_the_loss_beside_the_predictions(which, dtype):
    wrapper, plain = models(which)
    data = batch(label=torch.tensor([0, 1, 1], dtype=dtype))
    loss, predictions = wrapper(data)
    right = plain(data.float_features, data.idlist_features)
    assert torch.equal(predictions, right)
    assert not predictions.requires_grad
    right_loss = binary_cross_entropy_with_logits(right.squeeze(1), data.label.float())
    assert torch.equal(loss, right_loss)
    loss.backward()
    right_loss.backward()
    for name, param in wrapper.named_parameters():
        assert torch.equal(param.grad, plain.get_parameter(name).grad), name


@pytest.mark.parametrize("which", ["dlrm", "deepfm"])
def test_no_labels_are_needed_to_predict(which):
    wrapper, plain = models(which)
    data = batch()
    predictions = wrapper.eval()(data)
    assert torch.equal(predictions, plain(data.float_features, data.idlist_features))
    assert predictions.requires_grad


@pytest.mark.parametrize("which", ["dlrm", "deepfm"])
@pytest.mark.parametrize("shape", [(3, 1), (2,)])
def test_one_label_a_sample(which, shape):
    wrapper, _ = models(which)
    with pytest.raises(ValueError, match=r"`label` should have shape \(3,\)\. Received \("):
        wrapper(batch(label=torch.zeros(shape)))
