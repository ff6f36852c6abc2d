"""Precisions on the wire: how wrong they may be, how long what they send is, what is refused."""

from __future__ import annotations

import pytest
import torch

from torchrec.distributed._codecs import VectorContext
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.types import CommOp, NoOpQuantizedCommCodec

pytestmark = pytest.mark.once

LENGTHS = [8, 1, 0, 5, 64, 3, 8]  # of vectors, one of them empty


def _vectors(magnitude: float) -> torch.Tensor:
    """Vectors of many magnitudes, some elements 0."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for i, length in enumerate(LENGTHS):
        spread = torch.empty(length).uniform_(-6, 0, generator=generator).exp2()
        sign = torch.randint(-1, 2, (length,), generator=generator)
        parts.append(spread * sign * magnitude * 10.0 ** (i - 3))
    return torch.cat(parts)


def _largest(values: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    """For each element the largest of those that share its scale."""
    found = []
    for vector in (each for each in values.split(LENGTHS) if len(each)):
        for group in vector.split(columns or len(vector)):
            found += [group.abs().max()] * len(group)
    return torch.stack(found)


def _bound(config: QCommsConfig, direction: str, x: torch.Tensor) -> torch.Tensor:
    """How far an element may be off: half of the distance of two neighbours that can be written, and what
    float32 rounds on the way."""
    precision = getattr(config, f"{direction}_precision")
    scale = getattr(config, f"{direction}_loss_scale") or 1
    if precision is CommType.FP16:
        return (x.abs() * 2**-11).clamp_min(2**-25 / scale)
    if precision is CommType.BF16:
        return (x.abs() * 2**-8).clamp_min(2.0**-134)
    if precision is CommType.INT8:
        return _largest(x) / 254 * (1 + 1e-5)
    m = _largest(x, config.fp8_quantize_dim)
    if direction == "forward" or config.fp8_bwd_uses_143:
        return torch.maximum(x.abs() * 2**-4, m / 448 * 2**-10) * (1 + 1e-5)
    return torch.maximum(x.abs() * 2**-3, m / 57344 * 2**-17) * (1 + 1e-5)


CONFIGS = {
    "fp16": QCommsConfig(CommType.FP16, CommType.FP16),
    "fp16 scaled": QCommsConfig(CommType.FP16, CommType.FP16, 16.0, 16.0),
    "bf16": QCommsConfig(CommType.BF16, CommType.BF16),
    "fp8": QCommsConfig(CommType.FP8, CommType.FP8),
    "fp8 by 4 columns": QCommsConfig(CommType.FP8, CommType.FP8, fp8_quantize_dim=4),
    "fp8 143": QCommsConfig(CommType.FP8, CommType.FP8, fp8_bwd_uses_143=True),
    "int8": QCommsConfig(CommType.INT8, CommType.INT8),
}
BYTES = {"fp16": 2, "fp16 scaled": 2, "bf16": 2}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", CONFIGS)
def test_error_and_size(name, direction):
    config = CONFIGS[name]
    codec = getattr(get_qcomm_codecs(config), direction)
    ctx = codec.create_context() and VectorContext(torch.tensor(LENGTHS))
    x = _vectors(1.0)
    sent = codec.encode(x, ctx)
    assert sent.dtype == codec.quantized_dtype
    assert len(sent) == codec.calc_quantized_size(len(x), ctx)
    columns = config.fp8_quantize_dim
    scales = sum(1 if columns is None else -(-n // columns) for n in LENGTHS if n)
    expected = len(x) * BYTES.get(name, 1) + (0 if name in BYTES else 4 * scales)
    assert len(sent) * sent.element_size() == expected
    found = codec.decode(sent, ctx)
    assert found.dtype == torch.float32
    error, bound = (found - x).abs(), _bound(config, direction, x)
    assert (error <= bound).all()
    assert (error > bound / 3).any()  # as wrong as it may be: the bound says something
    assert (found[x == 0] == 0).all()


def test_a_loss_scale_keeps_small_gradients():
    tiny = torch.tensor([3e-9, -1e-8])
    plain = get_qcomm_codecs(QCommsConfig(backward_precision=CommType.FP16)).backward
    scaled = get_qcomm_codecs(
        QCommsConfig(backward_precision=CommType.FP16, backward_loss_scale=65536.0)
    ).backward
    assert plain.decode(plain.encode(tiny)).tolist() == [0, 0]
    torch.testing.assert_close(scaled.decode(scaled.encode(tiny)), tiny, rtol=2**-11, atol=0)


def test_five_bits_of_exponent_reach_further():
    config = QCommsConfig(backward_precision=CommType.FP8)
    wide, narrow = (
        get_qcomm_codecs(QCommsConfig(backward_precision=CommType.FP8, fp8_bwd_uses_143=uses))
        for uses in (config.fp8_bwd_uses_143, True)
    )
    x = torch.tensor([1.0, 1e-6, 1.06])
    assert wide.backward.decode(wide.backward.encode(x))[1] > 0
    assert narrow.backward.decode(narrow.backward.encode(x))[1] == 0
    assert (narrow.backward.decode(narrow.backward.encode(x))[0] - 1).abs() < 0.06


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_not_finite_shows_where_it_is(name):
    codec = get_qcomm_codecs(CONFIGS[name]).forward
    x = _vectors(1.0)
    for at, value in ((0, torch.nan), (10, torch.inf), (20, -torch.inf)):
        x[at] = value
    ctx = codec.create_context() and VectorContext(torch.tensor(LENGTHS))
    found = codec.decode(codec.encode(x, ctx), ctx)
    assert (found.isfinite() == x.isfinite()).all()
    if name in BYTES:
        assert torch.equal(found.nan_to_num(0, 1, -1)[[0, 10, 20]], torch.tensor([0.0, 1, -1]))


def test_too_large_for_16_bits_is_infinite():
    codec = get_qcomm_codecs(CONFIGS["fp16"]).forward
    assert codec.decode(codec.encode(torch.tensor([1e6, -1e6]))).tolist() == [
        torch.inf,
        -torch.inf,
    ]


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("magnitude", [0.0, 1e-44, 1e-38, 1e38], ids=str)
def test_magnitudes_at_the_end_of_float32(name, magnitude):
    codec = get_qcomm_codecs(CONFIGS[name]).forward
    x = torch.tensor([0.5, -1.0, 0.0]) * magnitude
    found = codec.decode(codec.encode(x))
    assert (found - x).abs().max() <= max(magnitude * 2**-4, 1.2e-38)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [0, 1, 4, 7])
def test_without_a_context_there_is_one_vector(name, size):
    codec = get_qcomm_codecs(CONFIGS[name]).forward
    x = torch.arange(1.0, size + 1)
    sent = codec.encode(x)
    assert len(sent) == codec.calc_quantized_size(size)
    torch.testing.assert_close(codec.decode(sent), x, rtol=0.07, atol=0.04)


def test_lengths_that_are_not_those_of_the_vectors():
    codec = get_qcomm_codecs(CONFIGS["int8"]).forward
    with pytest.raises(ValueError, match=r"should sum to .* 5\. Received a sum of 4"):
        codec.encode(torch.ones(5), VectorContext(torch.tensor([2, 2])))


def test_as_it_is_needs_no_codec():
    assert get_qcomm_codecs_registry(QCommsConfig()) is None
    for codecs in (get_qcomm_codecs(None), get_qcomm_codecs(QCommsConfig())):
        assert isinstance(codecs.forward, NoOpQuantizedCommCodec)
        assert isinstance(codecs.backward, NoOpQuantizedCommCodec)


def test_the_registry_has_what_was_asked_for():
    config = CONFIGS["bf16"]
    assert list(get_qcomm_codecs_registry(config)) == [op.name for op in CommOp]
    assert list(get_qcomm_codecs_registry(config, [CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL])) == [
        "POOLED_EMBEDDINGS_ALL_TO_ALL"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forward_precision": CommType.MX4}, "`forward_precision` should be .* Received mx4"),
        ({"mx4_quantize_dim": 32}, "`mx4_quantize_dim` should be None: it has no effect"),
        ({"output_dtype": torch.float16}, "`output_dtype` should be None"),
        ({"fp8_output_dtype": torch.float16}, "`fp8_output_dtype` should be None"),
        ({"fp8_quantize_dim": 16}, "`fp8_quantize_dim` should be .* for precision fp8"),
        (
            {"forward_precision": CommType.FP8, "fp8_quantize_dim_bwd": 16},
            "`fp8_quantize_dim_bwd` should be .* precisions fp32",
        ),
        (
            {"backward_precision": CommType.FP8, "fp8_quantize_dim": 0},
            "`fp8_quantize_dim` should be .* Received 0",
        ),
        (
            {"forward_precision": CommType.INT8, "forward_loss_scale": 2.0},
            "`forward_loss_scale` should be .* Received 2.0 for int8",
        ),
        (
            {"backward_precision": CommType.FP16, "backward_loss_scale": -1.0},
            "`backward_loss_scale` should be a positive number",
        ),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        get_qcomm_codecs(QCommsConfig(**options))
