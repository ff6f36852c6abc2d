"""From an experiment to a plan of its tables, and to a model that is spread over ranks by it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from torchrec.checks import did_you_mean
from torchrec.distributed.batch_norm import convert_sync_batchnorm
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.devices import topology_of
from torchrec.distributed.planner.types import Calibration, PlannerError, PlannerErrorType
from torchrec.distributed.sharding_plan import get_default_sharders, plan_from_json
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.experiment.build import table_optimizer
from torchrec.experiment.distributed import DistributedSection
from torchrec.experiment.schema import Experiment
from torchrec.models import registry
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.training.run_data import RunData

__all__ = ["plan_experiment", "read_rates", "sharded", "topology_for"]

_OF_WISHES = (PlannerErrorType.INPUT_VALIDATION, PlannerErrorType.STRICT_CONSTRAINTS)


def topology_for(
    section: DistributedSection,
    world_size: int,
    local_world_size: int | None = None,
    device: str = "cpu",
    memory: int | None = None,
    rates: Calibration | None = None,
) -> Topology:
    """Return the ranks that an experiment is planned for.

    Args:
        section: of the experiment.
        world_size: how many there are.
        local_world_size: how many a host has. Default: as `topology_of` says.
        device: one of `torchrec.distributed.planner.devices.DEVICES`.
        memory: bytes of a rank. Default: as `topology_of` says.
        rates: how long things take. Default: on the CPU those of the section, or what bandwidths come to.

    Raises:
        ValueError: if the rates of the section are not those of a file, or the device is not known.
    """
    if rates is None and section.rates is not None and device == "cpu":
        rates = read_rates(Path(section.rates), "`distributed.rates`")
    return topology_of(device, world_size, local_world_size, memory, rates)


def read_rates(path: Path, name: str) -> Calibration:
    """Read a file of `torchrec plan calibrate`.

    Args:
        path: of the file.
        name: what errors call it.

    Raises:
        ValueError: if it is no such file.
    """
    try:
        return Calibration.from_json(_text_of(path))
    except ValueError as error:
        raise ValueError(f"{name} '{path}': {error}") from error


def plan_experiment(experiment: Experiment, topology: Topology) -> ShardingPlan:
    """Plan the tables of the model that an experiment describes, for its batches, shared by the ranks.

    How many ids its features have is counted in the first batch. The model is made without memory.

    Args:
        experiment: what would be trained.
        topology: the ranks, as `topology_for` gives them.

    Returns:
        the plan, which can be explained; what a run finds on such ranks by itself.

    Raises:
        PlannerError: if the tables do not fit.
        ValueError: if its data or its model are not as they should be.
    """
    data = RunData(experiment)
    model = registry.build_model(
        experiment.model, data.transform, table_optimizer(experiment.training), device="meta"
    )
    planner = _planner(experiment, data, model, topology)
    with _naming_constraints(experiment.distributed):
        return planner.plan(model, _sharders(experiment.distributed))


def sharded(model: nn.Module, experiment: Experiment, data: RunData) -> DistributedModelParallel:
    """Spread the tables of a model over the ranks of the process group, as an experiment says.

    Args:
        model: made alike on all ranks; its tables go where they belong, with their weights.
        experiment: its plan, or what a planner has to keep to; and how vectors travel.
        data: in whose first batch ids are counted.

    Raises:
        PlannerError: if there is no plan.
        ValueError: if the plan is not of this model and so many ranks, or the model cannot be spread.
    """
    section, ranks = experiment.distributed, dist.get_world_size()
    sharders = _sharders(section)
    if section.plan == "auto":
        topology = topology_for(section, ranks, int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
        planner = _planner(experiment, data, model, topology)
        with _naming_constraints(section):
            plan = planner.collective_plan(model, sharders)
        return DistributedModelParallel(convert_sync_batchnorm(model), plan=plan, sharders=sharders)
    with _naming_plan(section.plan, ranks):
        plan = _read_plan(Path(section.plan), ranks)
        return DistributedModelParallel(convert_sync_batchnorm(model), plan=plan, sharders=sharders)


def _sharders(section: DistributedSection) -> list[ModuleSharder[Any]]:
    """Return who spreads the tables, with what travels between ranks as the section says."""
    precision = QCommsConfig(
        forward_precision=CommType[section.forward_precision.upper()],
        backward_precision=CommType[section.backward_precision.upper()],
    )
    plain = section.forward_precision == section.backward_precision == "fp32"
    codecs = None if plain else get_qcomm_codecs_registry(precision)
    return get_default_sharders(codecs, section.exact)


@contextmanager
def _naming_constraints(section: DistributedSection) -> Iterator[None]:
    """Let errors about wishes for a table name the key that they are from."""
    try:
        yield
    except PlannerError as error:
        if not section.constraints or error.error_type not in _OF_WISHES:
            raise
        raise PlannerError(f"`distributed.constraints`: {error}", error.error_type) from error


@contextmanager
def _naming_plan(file: str, ranks: int) -> Iterator[None]:
    """Let errors name the file that a plan is of, and say how to make another."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"`distributed.plan` '{file}': {error} To make one of this model for {ranks} ranks: "
            f"`torchrec plan EXPERIMENT --world-size {ranks}`."
        ) from error


def _read_plan(path: Path, ranks: int) -> ShardingPlan:
    plan = plan_from_json(_text_of(path))
    if plan.world_size not in (None, ranks):
        raise ValueError(
            f"A plan should be for as many ranks as there are, {ranks}. Received one for {plan.world_size}."
        )
    return plan


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"It should be JSON in UTF-8. Received byte {error.object[error.start]:#x} at position {error.start}."
        ) from error


def _planner(
    experiment: Experiment, data: RunData, model: nn.Module, topology: Topology
) -> EmbeddingShardingPlanner:
    """Return a planner for a share of a batch on each rank, that keeps to the section ``distributed``."""
    constraints = _constraints(model, data.sample().sparse_features)
    for name, wished in experiment.distributed.constraints.items():
        if name not in constraints:
            raise ValueError(
                f"`distributed.constraints.{name}` should be of a table of the model. Received '{name}'"
                f"{did_you_mean(name, constraints) or f', which is none of {sorted(constraints)}.'}"
            )
        constraints[name] = replace(constraints[name], **wished.model_dump())
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=-(-experiment.training.batch_size // topology.world_size),
        constraints=constraints,
    )


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
