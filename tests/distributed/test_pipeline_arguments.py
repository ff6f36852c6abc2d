"""Steps to arguments, and the tracer, for programs that trace models themselves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import fx, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import (
    ArgInfo,
    ArgInfoStepFactory,
    CallArgs,
    Tracer,
    TrainPipelineContext,
)
from torchrec.distributed.train_pipeline.postproc import PipelinedPostproc
from torchrec.streamable import Multistreamable

pytestmark = pytest.mark.once
make = ArgInfoStepFactory


def test_steps_lead_from_the_input_to_an_argument():
    given = SimpleNamespace(ids=[3, 4], name="b")
    last = ArgInfo([make.get_attr("ids")]).append_step(make.get_item(1))
    assert last.process_steps(given) == 4
    assert ArgInfo([make.get_item(1)]).add_step(make.get_attr("ids")).process_steps(given) == 4
    call = CallArgs(
        [last, ArgInfo([make.from_scalar(7)]), ArgInfo([])],
        {"all": ArgInfo([make.from_dict({"a": last, "b": 2, "c": make.from_list([1, last])})])},
    )
    args, kwargs = call.build_args_kwargs(given)
    assert args == [4, 7, given]
    assert kwargs == {"all": {"a": 4, "b": 2, "c": [1, 4]}}
    double = make.postproc(nn.Threshold(0.0, 5.0))
    assert ArgInfo([make.noop(), double]).process_steps(torch.tensor([-1.0])).tolist() == [5.0]


class Over(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, values):
        return self.layer(values)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = EmbeddingBagCollection([EmbeddingBagConfig(4, 2, "t", feature_names=["f"])])
        self.over = Over()

    def forward(self, features):
        return self.over(self.tables(features).values())


@pytest.mark.parametrize(
    ("leaves", "extend", "expected"),
    [
        (None, False, ["tables", "over.layer"]),
        (["over"], False, ["tables", "over"]),
        (["over"], True, ["tables", "over"]),
    ],
)
def test_a_tracer_leaves_sharded_modules_whole(leaves, extend, expected):
    graph = _traced(leaves, extend)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == expected


def _traced(leaves, extend) -> fx.Graph:
    return Tracer(leaves, extend).trace(DistributedModelParallel(Model()).module)


def test_modules_inside_of_leaves_stay_whole_on_request():
    inner = nn.Linear(1, 1)
    assert Tracer(["over"], True).is_extended_leaf_modules(inner, "over.0")
    assert not Tracer(["over"], True).is_extended_leaf_modules(inner, "overt.0")
    mine = Model()
    assert Tracer(["over"], True).is_leaf_module(mine, "over.0")
    assert not Tracer(["over"]).is_leaf_module(mine, "over.0")


class Recorded(Multistreamable):
    def __init__(self):
        self.streams = []

    def record_stream(self, stream):
        self.streams.append(stream)


def test_a_module_before_tables_runs_once_a_batch_and_keeps_its_names():
    layer = nn.BatchNorm1d(2)
    call = CallArgs([ArgInfo([])], {})
    first, second = TrainPipelineContext(), TrainPipelineContext()
    once = PipelinedPostproc(layer, "before", call, first, None, None)
    assert (once.postproc_module, once.fqn, once.args) == (layer, "before", call)
    given = torch.rand(3, 2)
    assert once(given) is once(given)
    assert int(layer.num_batches_tracked) == 1
    once.set_context(second)
    assert once.get_context() is second
    once(given)
    assert int(layer.num_batches_tracked) == 2
    assert list(first.postproc_fwd_results) == ["before"]
    assert list(once.state_dict(prefix="x.")) == list(layer.state_dict(prefix="x."))
    for names in ("named_parameters", "named_buffers", "named_modules"):
        assert list(getattr(once, names)()) == list(getattr(layer, names)())
    saved = {name: value + 1 for name, value in layer.state_dict().items()}
    once.load_state_dict(saved)
    assert int(layer.num_batches_tracked) == 3
    one, other = Recorded(), Recorded()
    PipelinedPostproc.recursive_record_stream({"a": [one, 3], "b": (other,)}, "stream")
    assert one.streams == other.streams == ["stream"]
