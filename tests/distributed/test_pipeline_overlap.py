"""What pipelines send ahead: the same results as one step behind the other, and exchanges hidden by other work."""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.links import Link, SlowChannel
from tests.distributed import test_mc_models
from tests.distributed.ranks import run
from tests.distributed.test_mc_embedding_modules import batch as mc_batch
from tests.distributed.test_model_parallel import batch, fused, plan_of
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.channel import use_channel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.train_pipeline import (
    DataLoadingThread,
    EvalPipelineFusedSparseDist,
    EvalPipelineSparseDist,
    GradientAccumulationConfig,
    GradientAccumulationWrapper,
    PrefetchTrainPipelineSparseDist,
    TorchCompileConfig,
    TrainPipelineBase,
    TrainPipelineFusedSparseDist,
    TrainPipelinePT2,
    TrainPipelineSemiSync,
    TrainPipelineSparseDist,
    TrainPipelineSparseDistCompAutograd,
    TrainPipelineSparseDistLite,
)
from torchrec.distributed.train_pipeline.started_inputs import part_at, parts_of
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels
CPU = torch.device("cpu")


def sharded(model=None, **kinds):
    model = fused() if model is None else model
    kinds = kinds or {"user": ("row_wise",), "item": ("table_wise", 0)}
    return DistributedModelParallel(model, plan=plan_of(model, **kinds))


def pipeline(kind, model, **options):
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())),
        lambda params: torch.optim.Adam(params, lr=0.1),
    )
    return kind(model, CombinedOptimizer([model.fused_optimizer, dense]), CPU, **options)


def outputs(steps, data):
    found = []
    try:
        while True:
            found.append(steps.progress(data).detach().clone())
    except StopIteration:
        return found


def local_state(model):
    tables = [part.weight for each in [model.module.tables.tables] for part in each.parts.values()]
    return [w.detach().clone() for w in [*tables, *model.module.over.parameters()]]


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def training(kind, numbers, options=None):
    """Train and evaluate in turn, with different numbers of batches, and return all that comes of it."""
    rank = dist.get_rank()
    model = sharded()
    steps = pipeline(kind, model, **(options or {}))
    found = []
    for epoch, number in enumerate(numbers):
        model.train(epoch != 1)
        data = (batch(rank, 10 * epoch + step, 1 + step % 3) for step in range(number[rank]))
        found.append(outputs(steps, data))
    return found, local_state(model)


def both(kind, options):
    numbers = [(5, 3), (2, 3), (0, 4), (1, 1), (0, 0), (3, 0)]
    plain, state = training(TrainPipelineBase, numbers)
    piped, piped_state = training(kind, numbers, options)
    for one, other in zip(plain, piped, strict=True):
        same(one, other)
    same(state, piped_state)
    return [len(each) for each in plain]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TrainPipelineSparseDist, {}),
        (TrainPipelineSparseDist, {"enqueue_batch_after_forward": True}),
        (TrainPipelineSparseDistLite, {}),
        (PrefetchTrainPipelineSparseDist, {}),
        (TrainPipelineFusedSparseDist, {}),
        (TrainPipelineSparseDistCompAutograd, {}),
        (TrainPipelinePT2, {}),
    ],
)
def test_a_pipeline_gives_what_the_plain_loop_gives_bit_for_bit(kind, options):
    assert run(both, 2, kind, options) == [[5, 2, 0, 1, 0, 3], [3, 3, 4, 1, 0, 0]]


@dataclass
class Both:
    features: KeyedJaggedTensor
    dense: torch.Tensor

    def to(self, device, non_blocking=False):
        return Both(self.features.to(device), self.dense.to(device))


class TwoCollections(nn.Module):
    """Calls one collection with the batch, twice, and one with what it makes of it."""

    def __init__(self):
        super().__init__()
        self.tables = fused().tables
        self.sequences = EmbeddingCollection([EmbeddingConfig(30, 4, "s", feature_names=["u"])])
        self.over = nn.Linear(16, 1)

    def forward(self, given):
        pooled = self.tables(given.features).values() + self.tables(given.features).values()
        lengths = given.features["u"].lengths()
        made = KeyedJaggedTensor(["u"], given.features["u"].values(), lengths=lengths)
        rows = self.sequences(made)["u"].values()
        scores = self.over(pooled + given.dense).squeeze(1)
        return scores.square().mean() + rows.square().sum(), scores


def two_collections(kind):
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = TwoCollections()
    plan = plan_of(model, user=("row_wise",), item=("table_wise", 1)).plan
    plan["sequences"] = construct_module_sharding_plan(
        model.sequences, {"s": table_wise(0)}, local_size=2, world_size=2, device_type="cpu"
    )
    model = DistributedModelParallel(model, plan=ShardingPlan(plan))
    steps = pipeline(kind, model)
    data = [Both(batch(rank, step), torch.full((4, 16), 0.1 * step)) for step in range(5)]
    found = outputs(steps, iter(data))
    return found, local_state(model), steps


def several_calls():
    plain = two_collections(TrainPipelineBase)
    piped = two_collections(TrainPipelineSparseDist)
    same(plain[0], piped[0])
    same(plain[1], piped[1])
    report = piped[2].report()
    text = str(report)
    return (
        report.steps,
        {each.name: (each.ahead, each.not_ahead) for each in report.exchanges},
        text,
    )


def test_each_call_of_a_collection_is_sent_ahead_if_it_is_with_a_part_of_the_batch():
    for steps, calls, text in run(several_calls, 2):
        assert steps == 5
        first = {"was not known ahead in the first steps": 1}
        assert calls["tables"] == (4, first)
        assert calls["tables, call 2"] == (4, first)
        made = "is called with what the model makes of its batch, not with a part of it"
        assert calls["sequences"] == (0, {made: 5})
        assert "tables: ids sent ahead in 4 steps" in text


def turns():
    """Validation in the middle of training takes up where each iterator was left."""
    rank = dist.get_rank()
    found = []
    for kind in (TrainPipelineBase, TrainPipelineSparseDist):
        model = sharded()
        steps = pipeline(kind, model)
        train = (batch(rank, step) for step in range(6))
        valid = (batch(rank, 50 + step) for step in range(4))
        seen = []
        for _ in range(2):
            model.train()
            seen += [steps.progress(train).detach() for _ in range(3)]
            model.eval()
            seen += [steps.progress(valid).detach() for _ in range(2)]
        found.append((seen, local_state(model)))
    same(found[0][0], found[1][0])
    same(found[0][1], found[1][1])
    return True


def test_iterators_in_turn_give_what_the_plain_loop_gives():
    assert run(turns, 2) == [True, True]


class Busy(nn.Module):
    """Layers that take their time, forwards and backwards."""

    def __init__(self, model, seconds):
        super().__init__()
        self.tables, self.over, self.seconds = model.tables, model.over, seconds

    def forward(self, features):
        values = self.tables(features).values()
        values.register_hook(self.work)
        self.work(values)
        scores = self.over(values).squeeze(1)
        return scores.square().mean(), scores

    def work(self, values):
        time.sleep(self.seconds)
        return values


def slowed(kind, delay):
    """Train where each message takes ``delay`` to arrive, and return what the pipeline says."""
    group = dist.group.WORLD
    use_channel(group, SlowChannel(group, Link(1e3 * delay)))
    steps = pipeline(kind, sharded(Busy(fused(), delay)))
    data = itertools.cycle([batch(dist.get_rank(), step) for step in range(4)])
    for _ in range(9):
        steps.progress(data)
    return steps.report()


@pytest.mark.slow
def test_at_least_four_fifths_of_the_exchange_of_ids_are_hidden_on_a_slow_link():
    delay = 0.5  # far above what a busy machine adds to a step
    for report in run(slowed, 2, TrainPipelineSparseDist, delay):
        (tables,) = report.exchanges
        assert tables.ahead == 8
        assert tables.not_ahead_seconds > delay  # of the first step
        assert tables.hidden > 0.8
        assert tables.waited < 0.2 * delay * 8
        assert tables.sizes_waited < 0.2 * delay * 8


def mapped(kind):
    """Train a model whose maps learn from each batch, and evict, and return all that comes of it."""
    rank = dist.get_rank()
    model = test_mc_models.sharded()
    steps = kind(model, test_mc_models.optimizer_of(model), CPU)
    data, found = (mc_batch(rank, step, 3) for step in range(3 + rank)), []
    while True:
        try:
            scores, rows = steps.progress(data)
        except StopIteration:
            break
        found += [scores.clone(), rows.values().clone(), rows.lengths().clone()]
    here = [*model.module.parameters(), *model.module.buffers()]
    return found, [each.detach().clone() for each in here], steps


def maps():
    plain, piped = mapped(TrainPipelineBase), mapped(TrainPipelineSparseDist)
    same(plain[0], piped[0])
    same(plain[1], piped[1])
    (tables,) = piped[2].report().exchanges
    return tables.ahead


def test_maps_learn_in_the_order_of_batches():
    assert run(maps, 2) == [3, 3]


def parts():
    """A program that makes the steps of a step itself."""

    class Own(TrainPipelineSparseDist):
        taken = 0

        def _next_batch(self, dataloader_iter):
            self.taken += 1
            return next(dataloader_iter, None)

        def copy_batch_to_gpu(self, dataloader_iter):
            return super().copy_batch_to_gpu(dataloader_iter)

        def progress(self, dataloader_iter):
            output = super().progress(dataloader_iter)
            return output * 1

    rank = dist.get_rank()
    model = sharded()
    steps = pipeline(Own, model)
    assert steps._model is model
    assert steps._device == CPU
    assert not steps._connected
    data = iter([batch(rank, step) for step in range(4)])
    steps.progress(data)
    assert steps._connected
    assert len(steps.batches) == 2
    assert len(steps.contexts) == 2
    assert steps.taken == 3
    assert steps.detach() is model
    found = [*outputs(steps, data)]
    steps.reset()
    assert not steps._connected
    return len(found)


def test_a_pipeline_can_be_subclassed_detached_and_reset():
    assert run(parts, 2) == [3, 3]


def left_out():
    steps = pipeline(TrainPipelineSparseDist, sharded(), execute_all_batches=False)
    rank = dist.get_rank()
    return [len(outputs(steps, iter([batch(rank, s) for s in range(n)]))) for n in (4, 1, 0)]


def test_the_last_batch_is_left_out_where_not_all_are_executed():
    assert run(left_out, 2) == [[3, 0, 0], [3, 0, 0]]


def evaluated(kind, options):
    rank = dist.get_rank()
    model = sharded()
    before = local_state(model)
    steps = pipeline(kind, model, **options)
    scores = outputs(steps, iter([batch(rank, step) for step in range(3)]))
    same(before, local_state(model))
    with torch.no_grad():
        same(scores, [model(batch(rank, step))[1] for step in range(3)])
    return len(scores)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (EvalPipelineSparseDist, {}),
        (EvalPipelineFusedSparseDist, {}),
        (EvalPipelineFusedSparseDist, {"enable_embedding_lookup_prefetch": True}),
    ],
)
def test_evaluation_trains_nothing_and_gives_what_the_model_gives(kind, options):
    assert run(evaluated, 2, kind, options) == [3, 3]


class Stale(TrainPipelineBase):
    """The plain loop, but tables are looked up a step early from batch ``start + 1`` on."""

    start, number, early = 2, 0, None

    def progress(self, dataloader_iter):
        if self.number == 0:
            self.data = list(dataloader_iter)
        if self.number == len(self.data):
            raise StopIteration
        inner, batches = self._model.module, self.data
        self._optimizer.zero_grad()
        pooled = inner.tables(batches[self.number]) if self.early is None else self.early
        scores = inner.over(pooled.values()).squeeze(1)
        self.early = None
        if self.number >= self.start and self.number + 1 < len(batches):
            self.early = inner.tables(batches[self.number + 1])
            self.early.values()
        scores.square().mean().backward()
        for param in inner.over.parameters():  # which the wrapper around the model would have done
            dist.all_reduce(param.grad)
            param.grad /= dist.get_world_size()
        self.update()
        self.number += 1
        return scores

    def update(self):
        self._optimizer.step()


class Late(Stale):
    """The same, with layers that are updated by the gradients of the batch before as well."""

    waiting = None

    def update(self):
        params = list(self._model.module.over.parameters())
        if self.number < self.start:
            return self._optimizer.step()
        waiting, self.waiting = self.waiting, [param.grad.clone() for param in params]
        return self.step_by(waiting)

    def step_by(self, gradients):
        if gradients is not None:
            for param, gradient in zip(
                self._model.module.over.parameters(), gradients, strict=True
            ):
                param.grad = gradient
            self._optimizer.step()

    def progress(self, dataloader_iter):
        if self.number and self.number == len(self.data):
            self.step_by(self.waiting)
        return super().progress(dataloader_iter)


def late_gradients():
    rank, found = dist.get_rank(), []
    for kind, options in (
        (Late, {}),
        (TrainPipelineSemiSync, {"start_batch": 2, "stash_gradients": True}),
        (TrainPipelineSemiSync, {"start_batch": 2}),
    ):
        model = sharded()
        steps = pipeline(kind, model, **options)
        found.append((outputs(steps, (batch(rank, s) for s in range(6))), local_state(model)))
    expected, late, semi = found
    same(late[0], expected[0])
    same(late[1], expected[1])
    return [torch.equal(a, b) for a, b in zip(late[0], semi[0], strict=True)]


def test_gradients_that_are_stashed_train_layers_a_step_late():
    for equal in run(late_gradients, 2):
        assert equal == [True, True, True, False, False, False]


def detached(how):
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    model[0].weight.data.fill_(0.0)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    steps = TrainPipelineSemiSync(
        model,
        optimizer,
        CPU,
        start_batch=0,
        stash_gradients=True,
        custom_model_fwd=lambda x: (model(x).sum(), None),
    )
    data = iter([torch.ones(1, 1)] * 3)
    for _ in range(2):
        steps.progress(data)
    assert model[0].weight.item() == -1.0  # of the first of two
    getattr(steps, how)()
    return model[0].weight.item()


def test_stashed_gradients_are_applied_by_detach_and_forgotten_by_reset():
    assert [detached("detach"), detached("reset")] == [-2.0, -1.0]


def semi_synchronous():
    rank, found = dist.get_rank(), []
    for kind, options in (
        (Stale, {}),
        (TrainPipelineSemiSync, {"start_batch": 2}),
        (TrainPipelineSemiSync, {"start_batch": 9}),
        (TrainPipelineBase, {}),
    ):
        model = sharded()
        steps = pipeline(kind, model, **options)
        found.append((outputs(steps, (batch(rank, s) for s in range(7))), local_state(model)))
    stale, early, late, plain = found
    for one, other in ((stale, early), (late, plain)):
        same(one[0], other[0])
        same(one[1], other[1])
    assert not torch.equal(stale[0][-1], plain[0][-1])
    return [torch.equal(a, b) for a, b in zip(stale[0], plain[0], strict=True)]


def test_a_semi_synchronous_pipeline_looks_up_before_the_last_update():
    for equal in run(semi_synchronous, 2):
        assert equal[:3] == [True, True, True]
        assert not equal[3]


def accumulated():
    """Two batches a step, behind one of its own; tables are updated in each backward pass."""
    rank, found = dist.get_rank(), []
    model = sharded()
    steps = pipeline(TrainPipelineSparseDist, model)
    config = GradientAccumulationConfig(True, num_steps=2, num_warmup_steps=1)
    waiting = GradientAccumulationWrapper(steps, steps._optimizer, model, config)
    data = (batch(rank, s) for s in range(6))
    found = [waiting.progress(data, is_last_batch=s == 5).detach() for s in range(6)]
    state = local_state(model)
    assert waiting.current_step == 6
    slow, expected = sharded(), []
    optimizer = pipeline(TrainPipelineBase, slow)._optimizer
    for group in ([0], [1, 2], [3, 4], [5]):
        optimizer.zero_grad()
        for step in group:
            loss, scores = slow(batch(rank, step))
            loss.backward()
            expected.append(scores.detach())
        optimizer.step()
    same(found, expected)
    same(state, local_state(slow))
    return True


def test_gradients_add_up_until_the_optimizer_steps():
    assert run(accumulated, 2) == [True, True]


def test_an_optimizer_that_waits_can_be_copied():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    steps = TrainPipelineBase(model, optimizer, CPU)
    config = GradientAccumulationConfig(True, num_steps=2)
    waiting = GradientAccumulationWrapper(steps, optimizer, model, config).optimizer_wrapper
    assert copy.copy(waiting).param_groups is optimizer.param_groups


def test_what_is_not_supported_is_refused():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    late = TrainPipelineSemiSync(model, optimizer, CPU, stash_gradients=True)
    with pytest.raises(ValueError, match="`stash_gradients` should be False"):
        GradientAccumulationWrapper(
            late, optimizer, model, GradientAccumulationConfig(True, num_steps=2)
        )
    with pytest.raises(ValueError, match="`emb_lookup_stream` should be one of"):
        TrainPipelineFusedSparseDist(model, optimizer, CPU, emb_lookup_stream="none")
    with pytest.raises(ValueError, match="`apply_jit` should be False"):
        PrefetchTrainPipelineSparseDist(model, optimizer, CPU, apply_jit=True)
    with pytest.raises(ValueError, match="`num_steps` should be at least 1"):
        GradientAccumulationConfig(num_steps=0)


def test_a_model_is_compiled_before_the_step_that_is_asked_for():
    model, said = Plain(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    steps = TrainPipelinePT2(
        model,
        optimizer,
        CPU,
        TorchCompileConfig(backend="eager", compile_on_iter=1),
        lambda _: said.append(("before", len(found))),
        lambda _: said.append(("after", len(found))),
        lambda given: given + 1,
    )
    found = []
    data = iter([torch.ones(2, 1)] * 3)
    for _ in range(3):
        found += [steps.progress(data)]
    assert said == [("before", 1), ("after", 1)]
    assert [each.tolist() for each in found] == [[[2.0], [2.0]]] * 3


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, given):
        return (self.weight * given).sum(), given


def test_a_thread_loads_batches_ends_and_passes_errors_on():
    def failing():
        yield torch.ones(1)
        raise OSError("the disk is gone")

    thread = DataLoadingThread(CPU, failing(), False)
    thread.start()
    assert thread.get_next_batch().tolist() == [1.0]
    with pytest.raises(OSError, match="the disk is gone"):
        thread.get_next_batch()
    assert thread.get_next_batch() is None
    with pytest.raises(StopIteration):
        thread.get_next_batch(none_throws=True)
    endless = DataLoadingThread(CPU, itertools.repeat(torch.ones(1)), False)
    endless.start()
    endless.get_next_batch()
    endless.stop()
    assert not endless.is_alive()


def test_a_thread_that_was_not_started_gives_no_batch():
    thread = DataLoadingThread(CPU, iter([torch.ones(1)]), False)
    with pytest.raises(RuntimeError, match=r"call `start.*Received no batch from one that was not"):
        thread.get_next_batch()
    thread.start()
    assert thread.get_next_batch().tolist() == [1.0]
    assert thread.get_next_batch() is None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_thread_passes_on_what_ends_programs(kind):
    def ending():
        yield torch.ones(1)
        raise kind("enough")

    thread = DataLoadingThread(CPU, ending(), False)
    thread.start()
    assert thread.get_next_batch().tolist() == [1.0]
    with pytest.raises(kind, match="enough"):
        thread.get_next_batch()
    assert thread.get_next_batch() is None


class Linked:
    def __init__(self):
        self.ids, self.owner = torch.ones(1), self
        self.more = [self, {"lengths": torch.ones(2)}]


def test_parts_of_a_batch_that_refers_to_itself_are_found_once():
    linked = Linked()
    found = parts_of(linked)
    assert [path for path, _ in found] == [
        (("attribute", "ids"),),
        (("attribute", "more"), ("item", 1), ("item", "lengths")),
    ]
    assert all(part_at(linked, path) is part for path, part in found)


def test_a_stream_to_load_batches_on_is_refused():
    stream = object()
    with pytest.raises(ValueError, match=r"`memcpy_stream` should be None.*Received <object"):
        DataLoadingThread(CPU, iter([]), False, memcpy_stream=stream)


def spoilt(rank):
    """Batches of which rank 1 cannot use the second, nor get the fourth."""
    for step in range(6):
        if rank == 1 and step == 3:
            yield "no features"
        elif rank == 1 and step == 1:
            users, items = [[1]] * 4, [[1], [2], [3, 11], [1]]
            yield KeyedJaggedTensor.from_lists({"u": users, "i": items})
        else:
            yield batch(rank, step)


def outcome(steps, data, scores):
    """Return what a step raises; empty: nothing; None: there is no more."""
    try:
        scores.append(steps.progress(data).detach())
    except StopIteration:
        return None
    except (IndexError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def outcomes(kind):
    model = sharded()
    steps, found, scores = pipeline(kind, model), [], []
    data = spoilt(dist.get_rank())
    while (said := outcome(steps, data, scores)) is not None:
        found.append(said)
    return found, scores, local_state(model)


def spoilt_batches():
    plain, piped = outcomes(TrainPipelineBase), outcomes(TrainPipelineSparseDist)
    assert plain[0] == piped[0]
    same(plain[1], piped[1])
    same(plain[2], piped[2])
    return piped[0]


def test_a_batch_that_cannot_be_used_fails_in_its_own_step_and_spoils_no_other():
    one, other = run(spoilt_batches, 2, timeout=40)
    assert one == other
    assert [bool(each) for each in one] == [False, True, False, True, False, False]
    assert one[1].startswith("IdOutOfRangeError: Ids of feature 'i' should be in [0, 11)")
    assert one[3].startswith("TypeError: On rank 1: `features` should be a KeyedJaggedTensor")
