"""Fewer bits on the wire: in which precision vectors and their gradients travel between ranks.

=======================  ==============================  =======================================================
precision                bytes of a vector of D columns  error of an element x, of a vector whose largest is m
=======================  ==============================  =======================================================
FP32                     4 D                             none
FP16                     2 D                             up to 2^-11 of x, or 2^-25; beyond 65504 it is infinite
BF16                     2 D                             up to 2^-8 of x
FP8, 4 bits of exponent  D + 4                           up to 2^-4 of x, or m / 448 * 2^-10
FP8, 5 bits of exponent  D + 4                           up to 2^-3 of x, or m / 57344 * 2^-17
INT8                     D + 4                           up to m / 254
=======================  ==============================  =======================================================

Zeros stay zeros. With FP16 and BF16, NaN and infinities arrive as they are; with FP8 and INT8 both arrive as NaN,
and the rest of their vector as if they were not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

import torch

from torchrec.distributed._codecs import (
    NoOpQuantizedCommCodec,
    QuantizedCommCodec,
    QuantizedCommCodecs,
)
from torchrec.distributed._kinds import CommOp
from torchrec.distributed._precision import CastCodec, ScaledCodec

__all__ = ["CommType", "QCommsConfig", "get_qcomm_codecs", "get_qcomm_codecs_registry"]


@unique
class CommType(Enum):
    """In which precision vectors travel. ``MX4`` is refused: there is none here."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    MX4 = "mx4"

    def __str__(self) -> str:
        return self.value


@dataclass
class QCommsConfig:
    """In which precision vectors and their gradients travel.

    Attributes:
        forward_precision: of vectors. Default FP32.
        backward_precision: of gradients. Default FP32.
        forward_loss_scale: what vectors are multiplied by before they are rounded to FP16 or BF16, and divided by
            where they arrive, so that small ones are not lost; large ones are infinite the earlier. Default: 1. Refused
            for other precisions.
        backward_loss_scale: the same, of gradients.
        fp8_quantize_dim: how many neighbouring columns share a scale in FP8. Default: those of a vector.
        fp8_quantize_dim_bwd: the same, of gradients. Default: as ``fp8_quantize_dim``.
        fp8_bwd_uses_143: whether gradients in FP8 have 4 bits of exponent and 3 of mantissa, as vectors have; else
            5 and 2, for a wider range. Default False.
        fp8_output_dtype: not supported, as are the following: vectors arrive in the dtype of their collection.
        mx4_quantize_dim: not supported.
        mx4_quantize_dim_bwd: not supported.
        mx4_rounding_mode: not supported.
        output_dtype: not supported.
    """

    forward_precision: CommType = CommType.FP32
    backward_precision: CommType = CommType.FP32
    forward_loss_scale: float | None = None
    backward_loss_scale: float | None = None
    fp8_quantize_dim: int | None = None
    fp8_quantize_dim_bwd: int | None = None
    fp8_bwd_uses_143: bool | None = False
    fp8_output_dtype: object | None = None
    mx4_quantize_dim: int | None = None
    mx4_quantize_dim_bwd: int | None = None
    mx4_rounding_mode: object | None = None
    output_dtype: object | None = None


_UNSUPPORTED = (
    "fp8_output_dtype",
    "mx4_quantize_dim",
    "mx4_quantize_dim_bwd",
    "mx4_rounding_mode",
    "output_dtype",
)
_CAST = {CommType.FP16: torch.float16, CommType.BF16: torch.bfloat16}


def get_qcomm_codecs(qcomms_config: QCommsConfig | None) -> QuantizedCommCodecs:
    """Return what writes vectors and gradients in the precisions of a configuration.

    Args:
        qcomms_config: the precisions; None: as they are.

    Raises:
        ValueError: for an option that has no effect.

    Example:
        >>> codecs = get_qcomm_codecs(QCommsConfig(forward_precision=CommType.BF16))
        >>> codecs.forward.encode(torch.tensor([1.001, 2.0]))
        tensor([1., 2.], dtype=torch.bfloat16)
    """
    config = qcomms_config or QCommsConfig()
    for name in _UNSUPPORTED:
        if getattr(config, name) is not None:
            raise ValueError(
                f"`{name}` should be None: it has no effect. Received {getattr(config, name)}."
            )
    precisions = config.forward_precision, config.backward_precision
    for name, precisions_of in (
        ("fp8_quantize_dim", precisions),
        ("fp8_quantize_dim_bwd", precisions[1:]),
    ):
        width = getattr(config, name)
        if width is not None and (width < 1 or CommType.FP8 not in precisions_of):
            raise ValueError(
                f"`{name}` should be a number of columns, for precision fp8. "
                f"Received {width}, precisions {', '.join(map(str, precisions_of))}."
            )
    columns = config.fp8_quantize_dim_bwd or config.fp8_quantize_dim
    exponent = torch.float8_e4m3fn if config.fp8_bwd_uses_143 else torch.float8_e5m2
    return QuantizedCommCodecs(
        _codec(
            "forward",
            config.forward_precision,
            config.forward_loss_scale,
            config.fp8_quantize_dim,
            torch.float8_e4m3fn,
        ),
        _codec(
            "backward", config.backward_precision, config.backward_loss_scale, columns, exponent
        ),
    )


def _codec(
    direction: str,
    precision: CommType,
    loss_scale: float | None,
    fp8_columns: int | None,
    fp8: torch.dtype,
) -> QuantizedCommCodec[object]:
    if loss_scale is not None and (precision not in _CAST or not 0 < loss_scale < float("inf")):
        raise ValueError(
            f"`{direction}_loss_scale` should be a positive number, for precision fp16 or bf16: the others need none. "
            f"Received {loss_scale} for {precision}."
        )
    if precision in _CAST:
        return CastCodec(_CAST[precision], 1.0 if loss_scale is None else loss_scale)
    if precision is CommType.INT8:
        return ScaledCodec(torch.int8)
    if precision is CommType.FP8:
        return ScaledCodec(fp8, fp8_columns)
    if precision is CommType.FP32:
        return NoOpQuantizedCommCodec()
    raise ValueError(
        f"`{direction}_precision` should be fp32, fp16, bf16, fp8 or int8. Received {precision}."
    )


def get_qcomm_codecs_registry(
    qcomms_config: QCommsConfig,
    comm_ops: list[CommOp] | None = None,
    device: torch.device | None = None,
) -> dict[str, QuantizedCommCodecs] | None:
    """Return the ``qcomm_codecs_registry`` of sharders for the precisions of a configuration.

    Args:
        qcomms_config: the precisions.
        comm_ops: what is to travel so. Default: all.
        device: has no effect: codecs work where vectors are.

    Returns:
        the codecs, by name of a `CommOp`; None if vectors and gradients are to travel as they are.

    Example:
        >>> config = QCommsConfig(forward_precision=CommType.FP16, backward_precision=CommType.BF16)
        >>> sorted(get_qcomm_codecs_registry(config, [CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL]))
        ['SEQUENCE_EMBEDDINGS_ALL_TO_ALL']
    """
    codecs = get_qcomm_codecs(qcomms_config)
    if qcomms_config.forward_precision is qcomms_config.backward_precision is CommType.FP32:
        return None
    return {op.name: codecs for op in (list(CommOp) if comm_ops is None else comm_ops)}
