"""What fails in maps on one rank, on the way to them or there, is raised on all; what cannot be sharded is refused."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from tests.distributed.test_mc_embedding_modules import FEATURES, make, maps, shard
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)

pytestmark = pytest.mark.once


class Failing(DistanceLFU_EvictionPolicy):
    """A policy of the user's that cannot record one id."""

    def record_history_metadata(self, current_iter, incoming_ids, history_metadata):
        if bool((incoming_ids == 13).any()):
            raise RuntimeError("This id cannot be recorded.")
        super().record_history_metadata(current_iter, incoming_ids, history_metadata)


def fragile():
    made = maps()
    made["offset"] = MCHManagedCollisionModule(
        17, "cpu", Failing(), 2, name="offset", output_global_offset=2
    )
    made["hashed"] = HashZchManagedCollisionModule(16, "cpu", 4, input_hash_size=100, name="hashed")
    return made


def ids_of(**changed):
    return {**{key: [[1], [2, 3]] for key in FEATURES}, **changed}


def failures(kind):
    """The messages of several failing batches of rank 1, and whether the next one works."""
    rank = dist.get_rank()
    module = shard(make(True, made=fragile), kind)
    good = KeyedJaggedTensor.from_lists(ids_of())
    bad = [
        KeyedJaggedTensor.from_lists({"f1": [[1]]}),
        KeyedJaggedTensor.from_lists(ids_of(f4=[[5], [100]])),
        good.with_values(good.values().float()),
        KeyedJaggedTensor.from_lists(ids_of(f3=[[13], []])),
        KeyedJaggedTensor.from_lists(ids_of(f5=[[6], [7]])),
    ]
    found = []
    for features in bad:
        try:
            module(features if rank == 1 else good)
            found.append(None)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        module(good)
    return found


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_every_rank_raises_the_same_error_and_goes_on(kind):
    one, other = run(failures, 2, kind)
    assert one == other
    assert [message.partition("Received")[0] for message in one[:3]] == [
        "ValueError: On rank 1: `features` should have the key 'f2' of table 'users'. ",
        "ValueError: On rank 1: Ids of feature 'f4' of table 'hashed' should be in [0, 100), its "
        "`input_hash_size` (0: any id). ",
        "TypeError: On rank 1: Ids of feature 'f1' of table 'users' should be integers. ",
    ]
    assert one[3].endswith("This id cannot be recorded.")  # by the rank that has the map
    assert one[4].endswith("the rows of table 'plain'. Received 7 in sample 1 of rank 1.")


def undividable():
    """A map of one bucket: the last rank's rows alone would not tell."""
    made = maps()
    made["hashed"] = HashZchManagedCollisionModule(16, "cpu", 1, name="hashed")
    shard(make(True, made=lambda: made), "row_wise")


def test_maps_that_cannot_be_divided_are_refused():
    for error in run(undividable, 2):
        assert isinstance(error, ValueError)
        assert str(error) == (
            "`output_id_range` of map 'hashed' should begin and end where buckets do, at two of the rows [0, 16]. "
            "Received (0, 8)."
        )


def test_options_that_would_have_no_effect_are_refused():
    with pytest.raises(
        ValueError, match="`fused_params` and `qcomm_codecs_registry` should be given to"
    ):
        ManagedCollisionEmbeddingBagCollectionSharder(
            EmbeddingBagCollectionSharder(), fused_params={"learning_rate": 0.1}
        )
    with pytest.raises(ValueError, match="`qcomm_codecs_registry` of maps should be None"):
        ManagedCollisionCollectionSharder({"pooled_embeddings_all_to_all": object()})


def different():
    """A model whose map is another on the second rank."""
    made = maps()
    size = 12 + dist.get_rank()
    made["users"] = made["shared"] = MCHManagedCollisionModule(
        size, "cpu", LRU_EvictionPolicy(), 1, name="users"
    )
    DistributedModelParallel(torch.nn.Sequential(make(True, made=lambda: made)))


def test_maps_that_differ_between_ranks_are_refused():
    for error in run(different, 2):
        assert isinstance(error, ValueError)
        assert "the map of table 'users'" in str(error)
        assert "range(0, 12)" in str(error)
        assert "range(0, 13)" in str(error)


def half_trained():
    module = shard(make(True, made=fragile), "row_wise")
    good = KeyedJaggedTensor.from_lists(ids_of())
    module.train(dist.get_rank() == 0)
    with pytest.raises(
        ValueError, match=r"All ranks should be training.* \[True, False\], by rank"
    ):
        module(good)
    for mode in (False, True):
        module.train(mode)
        module(good)
    return True


def test_a_rank_that_evaluates_while_another_trains_is_refused_on_both():
    assert run(half_trained, 2, timeout=30) == [True, True]
