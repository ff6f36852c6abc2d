"""From an experiment to a plan of its tables, for ranks that need not be there."""

from __future__ import annotations

from torch import nn

from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ShardingPlan
from torchrec.experiment.build import table_optimizer
from torchrec.experiment.schema import Experiment
from torchrec.models import registry
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.training.run_data import RunData

__all__ = ["plan_experiment"]


def plan_experiment(experiment: Experiment, topology: Topology) -> ShardingPlan:
    """Plan the tables of the model that an experiment describes, for its batch size on each rank.

    How many ids its features have is counted in the first batch. The model is made without memory.

    Args:
        experiment: what would be trained.
        topology: the ranks.

    Returns:
        the plan, which can be explained.

    Raises:
        PlannerError: if the tables do not fit.
        ValueError: if its data or its model are not as they should be.
    """
    data = RunData(experiment)
    model = registry.build_model(
        experiment.model, data.transform, table_optimizer(experiment.training), device="meta"
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=experiment.training.batch_size,
        constraints=_constraints(model, next(iter(data.train)).sparse_features),
    )
    return planner.plan(model, get_default_sharders())


def _constraints(model: nn.Module, features: KeyedJaggedTensor) -> dict[str, ParameterConstraints]:
    """Return how many ids the features of each table have, a sample."""
    keys = features.keys()
    lengths = features.lengths().reshape(len(keys), -1).float().mean(1).tolist()
    of_keys = dict(zip(keys, lengths, strict=True))
    found: dict[str, ParameterConstraints] = {}
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            tables = [(c.name, c.feature_names) for c in module.embedding_bag_configs()]
        elif isinstance(module, EmbeddingCollection):
            tables = [(c.name, c.feature_names) for c in module.embedding_configs()]
        else:
            continue
        for name, names in tables:
            ids = [of_keys.get(feature, 1.0) for feature in names]
            found[name] = ParameterConstraints(pooling_factors=ids)
    return found
