"""Steps of ranks that have different numbers of batches, and of ranks whose data fails."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import batch, fused, plan_of
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import (
    DistributedModelParallel,
    EvalPipelineSparseDist,
    TrainPipelineSparseDist,
)
from torchrec.distributed.train_pipeline import TrainPipelineBase
from torchrec.distributed.train_pipeline.uneven import without_samples
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.streamable import Pipelineable

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def pipeline(kind=TrainPipelineSparseDist):
    model = fused()
    plan = plan_of(model, user=("row_wise",), item=("table_wise", 0))
    sharded = DistributedModelParallel(model, plan=plan)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(sharded.named_parameters())),
        lambda params: torch.optim.SGD(params, lr=0.1),
    )
    optimizer = CombinedOptimizer([sharded.fused_optimizer, dense])
    return sharded, kind(sharded, optimizer, torch.device("cpu"))


def uneven(numbers, kind):
    rank = dist.get_rank()
    _, steps = pipeline(kind)
    data, seen = iter([batch(rank, step) for step in range(numbers[rank])]), 0
    while True:
        try:
            scores = steps.progress(data)
        except StopIteration:
            break
        assert scores.shape == (4,)
        seen += 1
    with pytest.raises(StopIteration):
        steps.progress(data)
    return seen


@pytest.mark.parametrize("kind", [TrainPipelineSparseDist, EvalPipelineSparseDist])
def test_ranks_may_have_different_numbers_of_batches(kind):
    assert run(uneven, 3, [2, 5, 0], kind) == [2, 5, 0]


def last_step_alone():
    """A rank whose partner has no data any more trains on, by half its gradient, as the mean says."""
    rank = dist.get_rank()
    sharded, steps = pipeline()
    data = iter([batch(rank, 0)] if rank else [batch(rank, 0), batch(rank, 1)])
    for _ in range(2 - rank):
        steps.progress(data)
    if rank:
        with pytest.raises(StopIteration):
            steps.progress(data)
    else:
        with pytest.raises(StopIteration):
            steps.progress(data)
    state = sharded.state_dict()["over.weight"]
    return state, bool(torch.isfinite(state).all())


def test_a_step_of_fewer_ranks_leaves_copies_alike_and_finite():
    (one, finite), (other, _) = run(last_step_alone, 2)
    assert finite
    assert torch.equal(one, other)


def broken(rank):
    yield batch(rank, 0)
    if rank == 1:
        raise OSError("the disk is gone")
    yield batch(rank, 1)


def failing():
    _, steps = pipeline()
    data = broken(dist.get_rank())
    steps.progress(data)
    steps.progress(data)


def test_what_fails_on_one_rank_is_raised_on_all():
    for error in run(failing, 2):
        assert isinstance(error, OSError)
        assert str(error) == "On rank 1: the disk is gone"


class Own(Pipelineable):
    def __init__(self, features, **more):
        self.features, self.owner = features, self
        vars(self).update(more)

    def to(self, device, non_blocking=False):
        return self

    def record_stream(self, stream):
        pass


@dataclass(frozen=True)
class Wrapped:
    features: KeyedJaggedTensor
    other: object


OTHERS = {
    "jagged tensor": JaggedTensor(
        torch.ones(3), weights=torch.ones(3), lengths=torch.tensor([1, 0, 1, 1])
    ),
    "keyed tensor": KeyedTensor(["a", "b"], [1, 2], torch.ones(4, 3)),
    "keys first": KeyedTensor(["a", "b"], [1, 2], torch.ones(3, 4), key_dim=0),
    "array": np.ones((4, 2)),
    "dtype": torch.float16,
    "constants": [torch.device("cpu"), int, b"bytes", 1 + 2j, {"of", "strings"}, len, (None, 2.5)],
}


def test_batches_without_samples_keep_their_form():
    given = Batch(torch.ones(4, 2), batch(0, 0), torch.ones(4))
    empty = without_samples(given)
    assert empty.dense_features.shape == (0, 2)
    assert empty.labels.shape == (0,)
    assert empty.sparse_features.keys() == ["u", "i"]
    assert empty.sparse_features.stride() == 0
    assert without_samples((torch.ones(2), ["a", 3]))[1] == ["a", 3]
    assert given.labels.shape == (4,)


def test_parts_of_batches_without_samples_have_none():
    own = Own(batch(0, 0), **OTHERS, seen=Wrapped(batch(0, 1), 3))
    empty = without_samples(own)
    assert type(empty) is Own
    assert empty.owner is empty
    assert empty.features.stride() == empty.seen.features.stride() == 0
    assert empty.seen.other == 3
    jagged = getattr(empty, "jagged tensor")
    assert (jagged.values().shape, jagged.weights().shape, jagged.lengths().shape) == ((0,),) * 3
    assert getattr(empty, "keyed tensor").to_dict()["b"].shape == (0, 2)
    assert getattr(empty, "keys first").to_dict()["b"].shape == (2, 0)
    assert empty.array.shape == (0, 2)
    assert empty.dtype is torch.float16
    assert empty.constants == OTHERS["constants"]
    assert len(pickle.dumps(without_samples(torch.ones(10_000)))) < 2_000


def test_what_cannot_be_copied_has_no_form_without_samples():
    with pytest.raises(TypeError, match=r"what can be copied.*Received a tuple: cannot pickle"):
        without_samples((torch.ones(2), Lock()))


def outcome(steps, data):
    """Return what a step raises; empty: nothing; None: there is no more."""
    try:
        steps.progress(data)
    except StopIteration:
        return None
    except TypeError as error:
        return str(error)
    return ""


def of_objects(kind, what, numbers):
    """Train on objects of a class of one's own, as many as a rank has; return layers and outcomes."""
    rank = dist.get_rank()
    model, steps = pipeline()
    inside = steps._optimizer, torch.device("cpu")
    steps = kind(model, *inside, custom_model_fwd=lambda given: model(given.features))
    other = Lock() if what == "a lock" else OTHERS
    data = (Own(batch(rank, s), other=Wrapped(batch(rank, s), other)) for s in range(numbers[rank]))
    outcomes = []
    while (said := outcome(steps, data)) is not None:
        outcomes.append(said)
    return model.state_dict()["over.weight"].tolist(), outcomes


KINDS = [TrainPipelineBase, TrainPipelineSparseDist]


@pytest.mark.parametrize("numbers", [(3, 3), (3, 1), (2, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_may_be_made_of_anything_that_can_be_copied(kind, numbers):
    one, other = run(of_objects, 2, kind, "others", numbers)
    assert one[0] == other[0]
    assert [one[1], other[1]] == [[""] * number for number in numbers]


@pytest.mark.parametrize(("numbers", "failing"), [((2, 2), None), ((3, 1), 1), ((2, 0), 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_copied_is_an_error_where_a_rank_has_run_out_of_data(kind, numbers, failing):
    one, other = run(of_objects, 2, kind, "a lock", numbers)
    assert one == other
    outcomes = one[1]
    shared = min(numbers)
    assert outcomes[:shared] == [""] * shared
    assert len(outcomes) == max(numbers)
    for said in outcomes[shared:]:
        assert said.startswith(f"On rank {failing}: A batch should be made of what can be copied")


def bad_data(what):
    """Batches of rank 1, of which the second cannot be used."""
    yield batch(1, 0)
    users, items = [[1]] * 4, [[1]] * 4
    if what == "an id without a row":
        items[2] = [3, 11]
    elif what == "ids that are no integers":
        good = batch(1, 1)
        yield KeyedJaggedTensor(good.keys(), good.values().double(), lengths=good.lengths())
    elif what == "no features":
        yield "a batch"
    elif what == "a disk that is gone":
        raise OSError("the disk is gone")
    yield KeyedJaggedTensor.from_lists({"u": users, "j" if what == "a missing key" else "i": items})


def goes_on(what, kind):
    """All ranks hear of what is wrong on one, and can go on after that."""
    rank = dist.get_rank()
    _, steps = pipeline(kind)
    good = iter([batch(rank, step) for step in range(2)])
    data = bad_data(what) if rank == 1 else good
    steps.progress(data)
    with pytest.raises((ValueError, IndexError, TypeError, OSError)) as caught:
        steps.progress(data)
    scores = steps.progress(iter([batch(rank, 3)]))
    return type(caught.value).__name__, str(caught.value), bool(scores.isfinite().all())


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        (
            "an id without a row",
            "IdOutOfRangeError",
            "Ids of feature 'i' should be in [0, 11), the rows of",
        ),
        ("ids that are no integers", "TypeError", "On rank 1: "),
        (
            "no features",
            "TypeError",
            "On rank 1: `features` should be a KeyedJaggedTensor. Received str",
        ),
        ("a disk that is gone", "OSError", "On rank 1: the disk is gone"),
        (
            "a missing key",
            "ValueError",
            "On rank 1: `features` should have the key 'i' of table 'item'.",
        ),
    ],
)
@pytest.mark.parametrize("kind", [TrainPipelineSparseDist, EvalPipelineSparseDist])
def test_data_that_cannot_be_used_on_one_rank_is_an_error_on_all(kind, what, name, message):
    found = run(goes_on, 2, what, kind, timeout=30)
    assert found[0] == found[1]
    kind_of_error, said, is_finite = found[0]
    assert kind_of_error == name
    assert said.startswith(message)
    assert is_finite
