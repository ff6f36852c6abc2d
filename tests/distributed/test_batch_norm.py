"""Batch normalisation over ranks, against that of one process with the samples of all."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import Workers
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.batch_norm import (
    SyncBatchNorm,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from torchrec.distributed.unshard import unshard

pytestmark = pytest.mark.once

WIDTH = 3
# Samples of each rank in two steps: uneven, and none.
SIZES = {2: ([4, 3], [0, 8]), 3: ([4, 1, 2], [3, 0, 5])}
OPTIONS = {
    "usual": {},
    "mean of all batches": {"momentum": None},
    "without parameters": {"affine": False},
    "without biases": {"bias": False},
    "without running statistics": {"track_running_stats": False},
}


def layers(**options):
    torch.manual_seed(1)
    norms = nn.BatchNorm1d(WIDTH, **options), nn.BatchNorm1d(5, **options)
    found = nn.Sequential(norms[0], nn.Linear(WIDTH, 5), norms[1], nn.ReLU(inplace=True))
    return (
        found.double()
    )  # gradients of what is normalised afterwards are differences of large numbers


def samples(count, step, *shape):
    generator = torch.Generator().manual_seed(step)
    # Far from zero, where sums of squares would leave nothing of the variance.
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64) * 0.5 + 30


def trained(model, batches):
    """Return outputs and gradients of inputs, those of parameters, and what the model has come to."""
    found = []
    for batch in batches:
        inputs = batch.clone().requires_grad_()
        output = model(inputs)
        factors = torch.arange(1.0, output.shape[1] + 1).view(-1, *[1] * (output.dim() - 2))
        (output * factors).square().sum().backward()  # those of all ranks add up
        found.append((output.detach(), inputs.grad))
    model.eval()
    found.append((model(batches[0]).detach(), torch.zeros(0)))
    grads = {name: param.grad for name, param in model.named_parameters()}
    return found, grads, model.state_dict()


def on_rank(model, shape):
    sizes, rank = SIZES[dist.get_world_size()], dist.get_rank()
    batches = [samples(sum(each), step, *shape).split(each) for step, each in enumerate(sizes)]
    model = copy.deepcopy(model)  # what came has memory that ranks share
    return trained(convert_sync_batchnorm(model), [batch[rank] for batch in batches])


@pytest.fixture(scope="module")
def workers():
    with Workers() as started:
        yield started


def assert_as_one_process(workers, world_size, model, *shape):
    batches = [samples(sum(each), step, *shape) for step, each in enumerate(SIZES[world_size])]
    outputs, grads, state = trained(copy.deepcopy(model), batches)
    of_ranks = workers.run(on_rank, world_size, model, shape)
    for step, expected in enumerate(outputs):
        for at, value in enumerate(expected):
            found = torch.cat([each[0][step][at] for each in of_ranks])
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9)
    for name, value in grads.items():
        total = sum(each[1][name] for each in of_ranks)
        torch.testing.assert_close(total, value, rtol=1e-9, atol=1e-9)
    for _, _, found in of_ranks:
        assert found.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_is_that_of_one_process(workers, world_size, options):
    assert_as_one_process(workers, world_size, layers(**options), WIDTH)


def test_of_sequences_is_that_of_one_process(workers):
    assert_as_one_process(workers, 2, nn.Sequential(nn.BatchNorm1d(WIDTH).double()), WIDTH, 4)


def of_lower_precision():
    one = convert_sync_batchnorm(nn.BatchNorm1d(WIDTH))
    inputs = samples(5, dist.get_rank(), WIDTH).bfloat16().requires_grad_()
    output = one(inputs)
    output.square().sum().backward()
    return inputs.detach(), output.detach(), inputs.grad.dtype


def test_takes_the_products_of_lower_precision(workers):
    found = workers.run(of_lower_precision, 2)
    expected = nn.BatchNorm1d(WIDTH)(torch.cat([inputs for inputs, _, _ in found]).float())
    assert {(output.dtype, grad) for _, output, grad in found} == {(torch.bfloat16,) * 2}
    output = torch.cat([output for _, output, _ in found]).float()
    torch.testing.assert_close(output, expected, rtol=2**-8, atol=1e-6)


def of_one_sample(options):
    one = convert_sync_batchnorm(nn.BatchNorm1d(WIDTH, **options))
    try:
        return one(torch.full((1 - dist.get_rank(), WIDTH), 2.0)), one.state_dict()
    except ValueError as error:
        return str(error)


def test_one_sample_is_normalised_by_running_statistics(workers):
    (found, state), (none, _) = workers.run(of_one_sample, 2, {"eps": 0.0})
    assert found.tolist() == [[2.0] * WIDTH]
    assert none.shape == (0, WIDTH)
    for name, value in nn.BatchNorm1d(WIDTH).state_dict().items():
        assert torch.equal(state[name], value), name
    message = (
        "Module '' should be given more than one sample of all ranks, as it has no running statistics. "
        "Received 1."
    )
    assert workers.run(of_one_sample, 2, {"track_running_stats": False}) == [message] * 2


def one_in_evaluation():
    model = convert_sync_batchnorm(layers())
    model[2].train(dist.get_rank() == 0)
    try:
        output = model(torch.ones(2, WIDTH, dtype=torch.float64))
        output.sum().backward()
    except ValueError as error:
        return str(error)
    return None


def test_ranks_that_differ_are_told(workers):
    expected = (
        "All ranks should do the same in the same order. Received batch normalisation by module '2' on rank 0, "
        "the backward pass of batch normalisation by module '0' on rank 1."
    )
    assert workers.run(one_in_evaluation, 2) == [expected] * 2


def back_and_forth():
    model = layers()
    kinds = [type(each) for each in model]
    sharded = DistributedModelParallel(convert_sync_batchnorm(model))
    optimizer = torch.optim.SGD(sharded.parameters(), 0.1)
    twin = copy.deepcopy(sharded)
    for each in (sharded, twin):
        each(samples(4, dist.get_rank(), WIDTH)).sum().backward()
    optimizer.step()
    plain = unshard(sharded)
    same = all(
        torch.equal(value, plain.state_dict()[name]) for name, value in sharded.state_dict().items()
    )
    names = [name for name, _ in plain.named_parameters()]
    synced = [isinstance(each, SyncBatchNorm) for each in sharded.module]
    again = [type(each) for each in revert_sync_batchnorm(sharded.module)]
    return kinds == [type(each) for each in plain] == again, same, names, synced, twin.state_dict()


def test_takes_the_place_of_a_module_and_gives_it_back(workers):
    names = [name for name, _ in layers().named_parameters()]
    expected = layers()
    trained(expected, [torch.cat([samples(4, rank, WIDTH) for rank in range(2)])])
    for back, same, found, synced, twin in workers.run(back_and_forth, 2):
        assert (back, same, found, synced) == (True, True, names, [True, False, True, False])
        torch.testing.assert_close(twin["0.running_var"], expected[0].running_var)


def warned():
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("torchrec.distributed.batch_norm")
    logger.addHandler(handler)
    try:
        DistributedModelParallel(layers())
        DistributedModelParallel(convert_sync_batchnorm(layers()))
    finally:
        logger.removeHandler(handler)
    return found


def test_statistics_of_a_rank_are_warned_of(workers):
    (message,), others = workers.run(warned, 2)
    assert message.startswith(
        "Module '0' normalises by the samples of each rank, not of all (modules that do: 2)."
    )
    assert others == []


def test_a_process_alone_has_nobody_to_ask():
    module = nn.BatchNorm1d(WIDTH)
    assert convert_sync_batchnorm(module) is module
