"""What a report says of the ranks that trained together."""

from __future__ import annotations

import pytest

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.training.rank_facts import rank_facts
from torchrec.training.world import Traffic

pytestmark = pytest.mark.once


def test_figures_are_of_what_was_done_since_the_start() -> None:
    tables = [EmbeddingBagConfig(10, 4, "t", feature_names=["f"], optimizer="sgd", lr=0.1)]
    model = DistributedModelParallel(
        EmbeddingBagCollection(tables), env=ShardingEnv.from_local(1, 0)
    )
    facts = rank_facts(model, 2.5, 0.5, Traffic(steps=2, bytes=300, messages=9))
    expected = {"seconds": 2.5, "waited": 0.5, "sent_bytes": 150.0, "messages": 4.5}
    assert {name: facts[name] for name in expected} == expected
    assert (facts["layer_bytes"], facts["table_bytes"]) == (0, 160)
    # Started to save what was trained before: nothing is said of steps that it has not made.
    facts = rank_facts(model, 0.0, 0.0, Traffic())
    assert not {"sent_bytes", "messages"} & facts.keys()
