"""Collections whose vectors travel in reduced precision, against one process that rounds what would travel."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import Workers
from tests.distributed.test_collections import (
    FEATURES,
    batch,
    joined,
    loss,
    make,
    of_samples,
    outputs,
    shard,
)
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed._codecs import VectorContext
from torchrec.distributed.channel import Channel, use_channel
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.types import QuantizedCommCodec, QuantizedCommCodecs

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels

CONFIGS = {
    "fp16": QCommsConfig(CommType.FP16, CommType.BF16),
    "scaled": QCommsConfig(CommType.BF16, CommType.FP16, None, 256.0),
    "fp8": QCommsConfig(CommType.FP8, CommType.FP8, fp8_quantize_dim=4),
    "int8": QCommsConfig(CommType.INT8, CommType.INT8),
    "forward only": QCommsConfig(CommType.INT8),
    "backward only": QCommsConfig(backward_precision=CommType.FP16),
}


@pytest.fixture(scope="module")
def workers():
    with Workers() as found:
        yield found


def rounded(codec, values, dim):
    """What arrives of rows of vectors of ``dim`` columns."""
    ctx = codec.create_context()
    if isinstance(ctx, VectorContext):
        ctx = VectorContext(torch.tensor([dim] * (values.numel() // dim)))
    return codec.decode(codec.encode(values.reshape(-1), ctx), ctx).view_as(values)


class Sent(torch.autograd.Function):
    """What a slot's vectors become on their way, and their gradients, of which ranks take the mean."""

    @staticmethod
    def forward(ctx, values, codecs, dims, ranks):
        ctx.codecs, ctx.dims, ctx.ranks = codecs, dims, ranks
        parts = values.split(dims, 1)
        return torch.cat([rounded(codecs.forward, p.contiguous(), p.shape[1]) for p in parts], 1)

    @staticmethod
    def backward(ctx, grad):
        parts = (grad / ctx.ranks).split(ctx.dims, 1)
        back = [rounded(ctx.codecs.backward, p.contiguous(), p.shape[1]) for p in parts]
        return torch.cat(back, 1), None, None, None


def as_one_process(pooled, kind, name):
    """Outputs and weights are those of one process that rounds each vector, to the last bit."""
    config, rank, world_size = CONFIGS[name], dist.get_rank(), dist.get_world_size()
    codecs, registry = get_qcomm_codecs(config), get_qcomm_codecs_registry(config)
    plain = make(pooled, "sgd")
    module = shard(make(pooled, "sgd"), kind, qcomm_codecs_registry=registry)
    assert module.qcomm_codecs_registry == registry
    for step in range(2):
        sizes = [3 + r if step else 4 * (r != 1) for r in range(world_size)]
        batches = [batch(r, step, size) for r, size in enumerate(sizes)]
        found = []
        for values, lengths in outputs(plain, joined(batches)):
            dims = [8, 8, 5, 12] if pooled else [values.shape[1]]
            found.append((Sent.apply(values, codecs, dims, world_size), lengths))
        starts = [sum(sizes[:r]) for r in range(world_size + 1)]
        parts = [of_samples(found, starts[r], starts[r + 1]) for r in range(world_size)]
        expected = [part.detach().clone() for part in parts[rank]]
        sum(loss(each) for each in parts).backward()
        mine = [values for values, _ in outputs(module, batches[rank])]
        loss(mine).backward()
        for received, wanted in zip(mine, expected, strict=True):
            assert torch.equal(received, wanted)
    for key, whole in plain.state_dict().items():
        for part in module.state_dict()[key].local_shards():
            row, column = part.metadata.shard_offsets
            rows, columns = part.metadata.shard_sizes
            assert torch.equal(part.tensor, whole[row : row + rows, column : column + columns])
    return True


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("pooled", "kind"),
    [(True, "table_wise"), (False, "table_wise"), (False, "row_wise")],
    ids=["bags", "sequences", "sequences by rows"],
)
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_equals_one_process_that_rounds(workers, pooled, kind, name, world_size):
    assert workers.run(as_one_process, world_size, pooled, kind, name) == [True] * world_size


def columns_too(pooled):
    """Precisions of single elements do not depend on who has which columns."""
    registry = get_qcomm_codecs_registry(CONFIGS["fp16"])
    found = []
    for kind in ("table_wise", "column_wise"):
        module = shard(make(pooled, "sgd"), kind, qcomm_codecs_registry=registry)
        for step in range(2):
            values = [each for each, _ in outputs(module, batch(dist.get_rank(), step, 4))]
            loss(values).backward()
            found.append([each.detach() for each in values])
    return all(
        torch.equal(a, b) for i in range(2) for a, b in zip(found[i], found[i + 2], strict=True)
    )


@pytest.mark.parametrize("pooled", [True, False], ids=["bags", "sequences"])
def test_rounding_does_not_depend_on_columns(workers, pooled):
    assert workers.run(columns_too, 2, pooled) == [True, True]


# What travels of a bag, its rows or sums of some of them, is each off by so much of an element, and of the largest of
# its vector: at most by what its rows would be off, all in one direction.
UNITS = {"fp16": (2**-11, 0), "fp8": (2**-4, 2**-10 / 448), "int8": (0, 1 / 254)}


def error_of_sums(kind, name):
    """How far bags of rows that lie on several ranks are off, in units of the bound."""
    registry = get_qcomm_codecs_registry(CONFIGS[name])
    module = shard(make(True, "sgd"), kind, qcomm_codecs_registry=registry)
    plain = make(True, "sgd")
    with torch.no_grad():
        features = batch(dist.get_rank(), 0, 50)
        found, exact = module(features).values(), plain(features).values()
        for param in plain.parameters():
            param.abs_()
        relative, of_largest = UNITS[name]
        bound = plain(features).values() * relative
        for param in plain.parameters():
            param.copy_(param.amax(1, True).expand_as(param))
        bound += plain(features).values() * of_largest
        bound = bound.clamp_min(1e-6) * (1 + 1e-4)
    return float(((found - exact).abs() / bound).max())


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("kind", ["row_wise", "mixed"])
def test_error_of_sums(workers, kind, name):
    for error in workers.run(error_of_sums, 2, kind, name):
        assert 0.1 < error <= 1


class Counted(Channel):
    """Counts the bytes that a rank sends to others in exchanges, by dtype."""

    def __init__(self, beside):
        super().__init__(beside)
        self.bytes = {}

    def start(self, sent, sizes, *rest):
        elements = sent.numel() - sizes[self.rank]
        self.bytes[sent.dtype] = self.bytes.get(sent.dtype, 0) + elements * sent.itemsize
        return super().start(sent, sizes, *rest)


def bytes_sent(pooled, kind):
    """Of vectors and gradients, by precision."""
    found, channel = {}, Counted(dist.group.WORLD)
    use_channel(dist.group.WORLD, channel)
    for name in (None, "fp16", "int8"):
        registry = name and get_qcomm_codecs_registry(CONFIGS[name])
        module = shard(make(pooled, "sgd"), kind, qcomm_codecs_registry=registry)
        channel.bytes.clear()
        loss([each for each, _ in outputs(module, batch(dist.get_rank(), 0, 8))]).backward()
        found[name] = channel.bytes.get(torch.uint8 if name else torch.float32)
    return found


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_bytes_on_the_wire(workers, kind):
    for found in workers.run(bytes_sent, 2, True, kind):
        assert found["fp16"] * 2 == found[None]
        assert found["int8"] < found[None] * (0.75 if kind == "column_wise" else 0.45)
    for found in workers.run(bytes_sent, 2, False, kind):  # vectors of 8 columns: 12 bytes, not 32
        assert found["fp16"] * 2 == found[None]
        if kind != "column_wise":
            assert found["int8"] * 32 == found[None] * 12


class Halves(QuantizedCommCodec):
    """A codec of somebody else: pairs of elements, the second one as it is, the first one not at all."""

    def __init__(self, fails_on=None, longer=0):
        self._fails_on, self._longer = fails_on, longer

    def encode(self, input_tensor, ctx=None):
        if self._fails_on == dist.get_rank():
            raise ArithmeticError("cannot be encoded")
        assert ctx == {"about": "this part"}
        return input_tensor[1::2].double()

    def decode(self, input_grad, ctx=None):
        return torch.stack([torch.zeros(len(input_grad)), input_grad.float()], 1)

    @property
    def quantized_dtype(self):
        return torch.float64

    def calc_quantized_size(self, input_len, ctx=None):
        return input_len // 2 + self._longer

    def create_context(self):
        return {"about": "this part"}


def with_codec_of_somebody_else(codec):
    registry = {"SEQUENCE_EMBEDDINGS_ALL_TO_ALL": QuantizedCommCodecs(forward=codec)}
    module = shard(make(False, "sgd"), "row_wise", qcomm_codecs_registry=registry)
    features = batch(dist.get_rank(), 0, 5)
    found = outputs(module, features)
    loss([each for each, _ in found]).backward()
    for (received, _), (values, _) in zip(found, outputs(make(False), features), strict=True):
        assert torch.equal(received[:, 1::2], values[:, 1::2])
        assert not received[:, ::2].any()
    return True


def test_a_codec_of_somebody_else(workers):
    assert workers.run(with_codec_of_somebody_else, 2, Halves()) == [True, True]


def test_a_codec_that_fails_on_one_rank(workers):
    for error in workers.run(with_codec_of_somebody_else, 2, Halves(fails_on=1)):
        assert str(error) == "On rank 1: cannot be encoded"


def test_a_codec_whose_size_is_wrong(workers):
    for error in workers.run(with_codec_of_somebody_else, 2, Halves(longer=1)):
        assert isinstance(error, ValueError)
        assert "`encode` of Halves should return as many elements as `calc_quantized" in str(error)


def by_operation():
    """Tables whose rows are divided in another precision than the others, vectors of both in one message."""
    registry = {
        "POOLED_EMBEDDINGS_ALL_TO_ALL": get_qcomm_codecs(QCommsConfig(CommType.FP16)),
        "POOLED_EMBEDDINGS_REDUCE_SCATTER": QuantizedCommCodecs(),
    }
    plain, rank = make(True), dist.get_rank()
    module = shard(make(True), "mixed", qcomm_codecs_registry=registry)
    features = batch(rank, 0, 6)
    found, expected = module(features).to_dict(), plain(features).to_dict()
    for key, values in expected.items():
        if key == "f1" or key.endswith("@a"):  # by rows
            torch.testing.assert_close(found[key], values)
        else:
            assert torch.equal(found[key], values.half().float()), key
    return sorted(found)


def test_precisions_of_several_kinds_in_one_message(workers):
    assert workers.run(by_operation, 2)[0] == ["f1", "f2@a", "f2@b", "f3"]


def in_bfloat16():
    """Vectors that are no float32 themselves arrive as what they are, in fewer bits or not."""
    ops = ["POOLED_EMBEDDINGS_ALL_TO_ALL", "POOLED_EMBEDDINGS_REDUCE_SCATTER"]
    registry = {ops[0]: get_qcomm_codecs(QCommsConfig(CommType.INT8, CommType.INT8))}
    registry[ops[1]] = QuantizedCommCodecs()
    for kind in ("table_wise", "row_wise"):
        tables = [
            EmbeddingBagConfig(9, 8, name, feature_names=[name], optimizer="sgd", lr=0.1)
            for name in FEATURES
        ]
        torch.manual_seed(0)
        plain = EmbeddingBagCollection(tables, output_dtype=torch.bfloat16)
        torch.manual_seed(0)
        module = EmbeddingBagCollection(tables, output_dtype=torch.bfloat16)
        module = shard(module, kind, qcomm_codecs_registry=registry)
        features = batch(dist.get_rank(), 0, 6)
        found, expected = module(features).values(), plain(features).values()
        assert found.dtype == torch.bfloat16
        largest = expected.float().abs().max()
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=float(largest) / 100)
        found.sum().backward()
    return True


def test_vectors_of_16_bits(workers):
    assert workers.run(in_bfloat16, 2) == [True, True]


def not_finite(name):
    registry = get_qcomm_codecs_registry(CONFIGS[name])
    module = shard(make(True), "table_wise", qcomm_codecs_registry=registry)
    plain = make(True)
    for each in (plain, module):
        for param in each.parameters():
            if len(param) > 2:
                param.data[2, 3], param.data[1, 1] = torch.nan, torch.inf
    features = batch(dist.get_rank(), 0, 6)
    found, expected = module(features).values(), plain(features).values()
    assert not expected.isfinite().all()
    return torch.equal(found.isfinite(), expected.isfinite())


@pytest.mark.parametrize("name", ["fp16", "fp8", "int8"])
def test_what_is_not_finite_shows_where_it_is(workers, name):
    assert workers.run(not_finite, 2, name) == [True, True]


REFUSED = {
    "key": ({"pooled_all_to_all": QuantizedCommCodecs()}, ValueError, "names of `CommOp` as keys"),
    "value": ({"POOLED_EMBEDDINGS_ALL_TO_ALL": None}, TypeError, "should have QuantizedCommCodecs"),
    "exact": (
        get_qcomm_codecs_registry(CONFIGS["fp16"]),
        ValueError,
        "`exact` should be False where vectors are rounded",
    ),
}


def refused(case):
    registry, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        shard(make(True), "table_wise", True, qcomm_codecs_registry=registry)
    return True


@pytest.mark.parametrize("case", REFUSED)
def test_registries_without_effect_are_refused(workers, case):
    assert workers.run(refused, 1, case) == [True]
