"""Ranks that would shard different models, or in different ways, all say so, and which differs where."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

import torchrec
from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import fused, plan_of
from torchrec import EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def model(**changed):
    options = {"num_embeddings": 10, "embedding_dim": 4, "name": "user", "feature_names": ["u"]}
    table = EmbeddingBagConfig(**{**options, **changed})
    return nn.Sequential(EmbeddingBagCollection([table]), nn.Linear(4, 1))


def several_rows(last):
    return {"num_embeddings": 20} if last else {}


def several_dims(last):
    return {"embedding_dim": 8} if last else {}


def several_dtypes(last):
    return {"data_type": torchrec.DataType.FP16} if last else {}


def several_features(last):
    return {"feature_names": ["u", "v"]} if last else {}


def several_rates(last):
    return {"optimizer": "sgd", "lr": 0.2 if last else 0.1}


def several_names(last):
    return {"name": "users"} if last else {}


def shard_several(change):
    last = dist.get_rank() == 2
    DistributedModelParallel(model(**change(last)))


OF_USER = "of table 'user' of module '0'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            several_rows,
            f"`num_embeddings` {OF_USER} alike. Received 10 on ranks [0, 1], 20 on rank 2.",
        ),
        (
            several_dims,
            f"`embedding_dim` {OF_USER} alike. Received 4 on ranks [0, 1], 8 on rank 2.",
        ),
        (several_dtypes, f"`data_type` {OF_USER} alike. Received FP32 on ranks [0, 1], "),
        (several_features, f"`feature_names` {OF_USER} alike. Received ['u'] on ranks [0, 1], "),
        (several_rates, f"`lr` {OF_USER} alike. Received 0.1 on ranks [0, 1], 0.2 on rank 2."),
        (
            several_names,
            "the tables of module '0' alike. Received ['user'] on ranks [0, 1], ['users']",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_are_the_same_on_all_ranks(change, message):
    for error in run(shard_several, 3, change, timeout=30):
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"All ranks should have {message}")


def shard_otherwise(what):
    last = dist.get_rank() == 1
    module, options = fused(), {}
    if what == "plan":
        item = ("table_wise", 0) if last else ("row_wise",)
        options["plan"] = plan_of(module, user=("row_wise",), item=item)
    elif what == "no plan" and last:
        options["plan"] = plan_of(module, user=("row_wise",), item=("row_wise",))
    elif what == "layer":
        module.over = nn.Linear(16, 2 if last else 1)
    elif what == "optimizer":
        module = model()
        rate = 0.1 if last else 0.2
        apply_optimizer_in_backward(torch.optim.Adam, module[0].parameters(), {"lr": rate})
    elif what == "fused params":
        rate = 0.1 if last else 0.2
        options["sharders"] = [EmbeddingBagCollectionSharder({"learning_rate": rate})]
    elif what == "precision":
        precision = QCommsConfig(CommType.FP16 if last else CommType.BF16)
        codecs = get_qcomm_codecs_registry(precision)
        options["sharders"] = [EmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs)]
    elif what == "exact":
        options["sharders"] = [EmbeddingBagCollectionSharder(exact=last)]
    elif what == "ids once":
        options["sharders"] = [EmbeddingCollectionSharder(use_index_dedup=last)]
    elif what == "version" and last:
        torchrec.__version__ = "0.0.9"
    elif what == "twice" and last:
        module = DistributedModelParallel(module, env=ShardingEnv.from_local(1, 0))
    elif what == "a plan of another type" and last:
        options["plan"] = "row_wise"
    DistributedModelParallel(module, **options)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("plan", "the plan of table 'item' of module 'tables' alike. Received ParameterSharding("),
        (
            "no plan",
            "the modules that a plan is given for alike. Received None on rank 0, ['tables'] on",
        ),
        (
            "layer",
            "the parameter 'over.weight' alike. Received (1, 16) torch.float32 requires_grad=True on",
        ),
        (
            "optimizer",
            "`optimizer in the backward pass` of table 'user' of module '0' alike. Received ADAM",
        ),
        (
            "fused params",
            "`fused_params` of EmbeddingBagCollectionSharder for EmbeddingBagCollection alike. Received "
            "{learning_rate: 0.2} on rank 0, {learning_rate: 0.1} on rank 1.",
        ),
        (
            "precision",
            "`qcomm_codecs_registry` of EmbeddingBagCollectionSharder for EmbeddingBagCollection alike. Received "
            "{POOLED_EMBEDDINGS_ALL_TO_ALL: QuantizedCommCodecs(forward=CastCodec(torch.bfloat16, scale=1.0), ",
        ),
        (
            "exact",
            "`exact` of EmbeddingBagCollectionSharder for EmbeddingBagCollection alike. Received False on rank 0, "
            "True on rank 1.",
        ),
        (
            "ids once",
            "`use_index_dedup` of EmbeddingCollectionSharder for EmbeddingCollection alike. Received False on",
        ),
        ("version", "the version of torchrec alike. Received"),
    ],
)
def test_plans_optimizers_and_versions_are_the_same_on_all_ranks(what, message):
    for error in run(shard_otherwise, 2, what, timeout=30):
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"All ranks should have {message}")


def test_what_cannot_be_described_on_one_rank_is_raised_on_all():
    for error in run(shard_otherwise, 2, "twice", timeout=30):
        assert isinstance(error, ValueError)
        assert str(error).startswith("On rank 1: `module` should not be sharded yet.")


def in_one_world(kind):
    module = fused()
    plan = plan_of(module, user=("row_wise",), item=("row_wise",))
    user = plan.plan["tables"]["user"]
    shards = user.sharding_spec.shards
    if kind == "a rank outside":
        shards[1].placement = torch.distributed._remote_device("rank:5/cpu")
        user.ranks[1] = 5
    elif kind == "overlap":
        shards[1].shard_offsets[0] -= 1
        shards[1].shard_sizes[0] += 1
    elif kind == "rows left out":
        shards[1].shard_sizes[0] -= 1
    elif kind == "ranks of the shards":
        user.ranks = [1, 0]
    elif kind == "no plan of tables":
        plan = ShardingPlan({"tables": object()})
    elif kind == "an unknown table":
        plan.plan["tables"]["users"] = user
    DistributedModelParallel(module, plan=plan)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "a rank outside",
            "'user' of module 'tables' should have its shards on ranks 0 to 1. Received",
        ),
        ("overlap", "'user' of module 'tables' should have"),
        ("rows left out", "'user' of module 'tables' should have"),
        ("ranks of the shards", "'user' of module 'tables' should have its shards on ranks [1, 0]"),
        (
            "an unknown table",
            "Module 'tables' should have its tables ['user', 'item'] in the plan. Received",
        ),
        (
            "no plan of tables",
            "The plan of module 'tables' should be an EmbeddingModuleShardingPlan.",
        ),
    ],
)
def test_plans_that_do_not_fit_name_module_and_table_on_all_ranks(kind, message):
    for error in run(in_one_world, 2, kind, timeout=30):
        assert isinstance(error, (ValueError, TypeError))
        assert message in str(error)
