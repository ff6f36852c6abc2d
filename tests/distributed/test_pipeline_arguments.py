"""Steps to arguments, and the tracer, for programs that trace models themselves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import fx, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import ArgInfo, ArgInfoStepFactory, CallArgs, Tracer

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
