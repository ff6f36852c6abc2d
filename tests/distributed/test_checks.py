"""What the look-up of one process refuses is refused on all ranks, under every plan."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel, sharding_plan
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.types import ShardingPlan

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


KINDS = {
    "table_wise": (0,),
    "row_wise": (),
    "column_wise": ([0, 1],),
    "data_parallel": (),
}


def single_ids(bad):
    """What is said of bags of one id each, but one on rank 1 perhaps, under every plan."""
    return [looks_up(kind, bad, variable) for kind, variable in product(KINDS, (False, True))]


def looks_up(kind, bad, variable):
    """Whether bags of one id each, beside bags of any size, are looked up as in one process; else the error."""
    tables = EmbeddingBagCollection(
        [
            EmbeddingBagConfig(9, 4, "any", feature_names=["f"]),
            EmbeddingBagConfig(9, 4, "one", feature_names=["g"], pooling=PoolingType.NONE),
        ]
    )
    bags = {"f": [[0, 1], []], "g": [[2], [3]]}
    if bad and dist.get_rank() == 1:
        bags["g"] = [[2], [3, 4]]
    features = KeyedJaggedTensor.from_lists(bags)
    if variable:
        features = KeyedJaggedTensor(
            ["f", "g"],
            features.values(),
            lengths=features.lengths(),
            stride_per_key_per_rank=[[2], [2]],
            inverse_indices=(["f", "g"], torch.tensor([[0, 0, 1], [0, 0, 1]])),
        )
    expected = None if bad else tables(features).values()
    kinds = dict.fromkeys(("any", "one"), getattr(sharding_plan, kind)(*KINDS[kind]))
    plan = construct_module_sharding_plan(tables, kinds, device_type="cpu")
    sharded = DistributedModelParallel(tables, plan=ShardingPlan({"": plan}))
    try:
        found = sharded(features).values()
    except ValueError as error:
        return str(error)
    return torch.equal(found, expected)


def test_bags_of_one_id_have_one_id():
    assert run(single_ids, 2, False) == [[True] * 8] * 2
    message = (
        "On rank 1: With pooling NONE, each sample of feature 'g' of table 'one' should hold exactly one id. "
        "Received 2 in sample {}."
    )
    assert run(single_ids, 2, True) == [[message.format(1), message.format(2)] * 4] * 2
