"""Vectors in reduced precision between ranks: what is encoded by whom, and how long it gets.

Every part of a message is encoded, a rank's own too, so that what a rank gets does not depend on who has the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from torchrec.distributed._codecs import (
    NoOpQuantizedCommCodec,
    QuantizedCommCodec,
    QuantizedCommCodecs,
    VectorContext,
)
from torchrec.distributed._kinds import CommOp
from torchrec.distributed._precision import CastCodec, ScaledCodec
from torchrec.distributed.wire import Wire

__all__ = ["Coding", "Transfer", "Vectors", "check_codecs", "codings_of"]


@dataclass(frozen=True)
class Vectors:
    """Part of a message to one rank: so many times some vectors side by side.

    Attributes:
        count: rows.
        widths: columns of each of the vectors of a row.
        ops: what each of them travels as.
    """

    count: int
    widths: Sequence[int]
    ops: Sequence[CommOp]

    @property
    def size(self) -> int:
        """Elements."""
        return self.count * sum(self.widths)


@dataclass(frozen=True)
class _Part:
    """What one codec writes of a message to one rank.

    Attributes:
        codec: who; None: it is sent as it is.
        ctx: of the codec.
        where: its elements in the message; None: all.
        size: how many elements.
        num_bytes: of what is sent.
    """

    codec: QuantizedCommCodec[object] | None
    ctx: object
    where: Tensor | None
    size: int
    num_bytes: int


class Coding:
    """Exchanges vectors in one direction, encoded.

    Args:
        codecs: who writes what; what is not there is sent as it is.
    """

    def __init__(self, codecs: Mapping[CommOp, QuantizedCommCodec[object]]) -> None:
        self._codecs = {
            op: codec
            for op, codec in codecs.items()
            if not isinstance(codec, NoOpQuantizedCommCodec)
        }
        ours = (CastCodec, ScaledCodec)
        self._may_fail = not all(isinstance(codec, ours) for codec in self._codecs.values())

    def swap(
        self,
        sent: Tensor,
        messages: Sequence[Sequence[Vectors]],
        expected: Sequence[Sequence[Vectors]],
        swap: Callable[[Tensor, Sequence[int], Sequence[int]], Tensor],
        agree: Callable[[Exception | None], None],
    ) -> Tensor:
        """Send each rank its vectors, and return what each has sent here.

        Args:
            sent: the vectors, one rank's behind the other's.
            messages: what goes to each rank.
            expected: what comes from each.
            swap: sends elements, given how many go to and come from each rank.
            agree: raises on all ranks what has failed on one of them.
        """
        sizes = [sum(vectors.size for vectors in message) for message in expected]
        if not self._codecs:
            own = [sum(vectors.size for vectors in message) for message in messages]
            return swap(sent, own, sizes)
        encoded: list[Tensor] = []
        error: Exception | None = None
        try:
            encoded = self._encode_all(sent, messages)
        except Exception as failed:
            error = failed
        if error is not None or self._may_fail:
            agree(error)
        parts = [self._parts(message, sent) for message in expected]
        received = swap(
            torch.cat(encoded),
            [len(each) for each in encoded],
            [sum(part.num_bytes for part in each) for each in parts],
        )
        found = sent.new_empty(sum(sizes))
        at = 0
        for (start, end), of_rank in zip(
            pairwise(accumulate(sizes, initial=0)), parts, strict=True
        ):
            for part in of_rank:
                values = _decoded(part, received[at : at + part.num_bytes], found.dtype)
                at += part.num_bytes
                if part.where is None:
                    found[start:end] = values
                else:
                    found[start:end][part.where] = values
        return found

    def _encode_all(self, sent: Tensor, messages: Sequence[Sequence[Vectors]]) -> list[Tensor]:
        sizes = [sum(vectors.size for vectors in message) for message in messages]
        encoded = []
        for values, message in zip(sent.split(sizes), messages, strict=True):
            parts = [
                _encoded(part, values if part.where is None else values[part.where])
                for part in self._parts(message, sent)
            ]
            encoded.append(torch.cat(parts) if parts else sent.new_empty(0, dtype=torch.uint8))
        return encoded

    def _parts(self, message: Sequence[Vectors], like: Tensor) -> list[_Part]:
        """Return who writes what of a message to one rank."""
        message = [vectors for vectors in message if vectors.size]
        ops = {op for vectors in message for op in vectors.ops}
        codecs = list(dict.fromkeys(self._codecs.get(op) for op in CommOp if op in ops))
        if len(codecs) == 1:
            lengths = _Lengths(message)
            return [_part(codecs[0], lengths, None, lengths.total, like.element_size())]
        parts = []
        for codec in codecs:
            mine = {op for op in ops if self._codecs.get(op) is codec}
            lengths = _Lengths(message, mine)
            where = lengths.places()
            parts.append(_part(codec, lengths, where, len(where), like.element_size()))
        return parts


@dataclass(frozen=True)
class Transfer:
    """What goes from rank to rank in one answer, and its gradients the other way.

    Attributes:
        wire: the ranks.
        codings: how vectors are written, and their gradients.
        sent: vectors to each rank.
        expected: vectors from each.
    """

    wire: Wire
    codings: tuple[Coding, Coding]
    sent: list[list[Vectors]]
    expected: list[list[Vectors]]

    def there(self, vectors: Tensor) -> Tensor:
        """Send each rank its vectors, and return what each has sent here."""
        wire = self.wire
        return self.codings[0].swap(vectors, self.sent, self.expected, wire.swap, wire.agree)

    def back(self, gradients: Tensor) -> Tensor:
        """Send back the gradients of what each rank has sent here, and return those of what was sent."""
        wire = self.wire
        return self.codings[1].swap(gradients, self.expected, self.sent, wire.swap, wire.agree)


class _Lengths:
    """The lengths of the vectors of a message, of all or of those that travel as some of its kinds.

    Args:
        message: to one rank.
        ops: the kinds. Default: all.
    """

    def __init__(self, message: Sequence[Vectors], ops: set[CommOp] | None = None) -> None:
        self._message, self._ops = message, ops
        self.total = sum(vectors.size for vectors in message)

    def _all(self) -> tuple[Tensor, Tensor]:
        """Return the lengths of all vectors, and which of them are meant."""
        lengths: list[Tensor] = []
        meant: list[Tensor] = []
        # Rows come in many lanes of one vector each: those in one go.
        for one, run in groupby(self._message, key=lambda vectors: len(vectors.widths) == 1):
            part = list(run)
            for many in [part] if one else [[vectors] for vectors in part]:
                widths = torch.tensor([width for vectors in many for width in vectors.widths])
                ops = [op for vectors in many for op in vectors.ops]
                chosen = torch.tensor([self._ops is None or op in self._ops for op in ops])
                counts = torch.tensor([vectors.count for vectors in many])
                for found, each in ((lengths, widths), (meant, chosen)):
                    found.append(
                        each.repeat_interleave(counts) if one else each.repeat(many[0].count)
                    )
        none = torch.zeros(0, dtype=torch.int64)
        return torch.cat([none, *lengths]), torch.cat([none.bool(), *meant])

    def lengths(self) -> Tensor:
        """Return them, int64."""
        lengths, meant = self._all()
        return lengths if self._ops is None else lengths[meant]

    def places(self) -> Tensor:
        """Return where their elements are in the message."""
        lengths, meant = self._all()
        return meant.repeat_interleave(lengths).nonzero()[:, 0]


def _part(
    codec: QuantizedCommCodec[object] | None,
    lengths: _Lengths,
    where: Tensor | None,
    size: int,
    element_size: int,
) -> _Part:
    if codec is None:
        return _Part(None, None, where, size, size * element_size)
    ctx = codec.create_context()
    if isinstance(ctx, VectorContext):
        ctx = VectorContext(lengths.lengths())
    num_bytes = codec.calc_quantized_size(size, ctx) * codec.quantized_dtype.itemsize
    return _Part(codec, ctx, where, size, num_bytes)


def _encoded(part: _Part, values: Tensor) -> Tensor:
    """Return the bytes that are sent for a part."""
    if part.codec is None:
        return values.contiguous().view(torch.uint8)
    sent = part.codec.encode(values.float(), part.ctx)
    if sent.dtype != part.codec.quantized_dtype or sent.nbytes != part.num_bytes:
        raise ValueError(
            f"`encode` of {type(part.codec).__name__} should return as many elements as "
            f"`calc_quantized_size` says, of `quantized_dtype`: {part.num_bytes} bytes of "
            f"{part.codec.quantized_dtype}. Received {sent.nbytes} of {sent.dtype}."
        )
    return sent.contiguous().flatten().view(torch.uint8)


def _decoded(part: _Part, received: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the vectors that bytes stand for."""
    # Copied: memory of a dtype has to begin at a multiple of its size.
    if part.codec is None:
        return received.clone().view(dtype)
    sent = received.clone().view(part.codec.quantized_dtype)
    values = part.codec.decode(sent, part.ctx).flatten()
    if len(values) != part.size:
        raise ValueError(
            f"`decode` of {type(part.codec).__name__} should return the {part.size} elements that were encoded. "
            f"Received {len(values)}."
        )
    return values.to(dtype)


def check_codecs(registry: Mapping[str, QuantizedCommCodecs] | None, exact: bool) -> None:
    """Refuse a registry of codecs that would have no effect, or not the one that is asked for.

    Args:
        registry: how what is exchanged is written, by name of a `CommOp`.
        exact: whether results should be those of one process, to the last bit.
    """
    names = [op.name for op in CommOp]
    for name, codecs in (registry or {}).items():
        if name not in names:
            raise ValueError(
                f"`qcomm_codecs_registry` should have names of `CommOp` as keys, {', '.join(names)}. "
                f"Received {name!r}."
            )
        if not isinstance(codecs, QuantizedCommCodecs):
            raise TypeError(
                f"`qcomm_codecs_registry` should have QuantizedCommCodecs for '{name}'. "
                f"Received {type(codecs).__name__}."
            )
        both = codecs.forward, codecs.backward
        if exact and not all(isinstance(codec, NoOpQuantizedCommCodec) for codec in both):
            raise ValueError(
                "`exact` should be False where vectors are rounded on the way. "
                f"Received exact=True, and codecs for '{name}'."
            )


def codings_of(registry: Mapping[str, QuantizedCommCodecs] | None) -> tuple[Coding, Coding]:
    """Return how vectors are exchanged, and their gradients.

    Args:
        registry: how they are written, by name of a `CommOp`. Default: as they are.
    """
    found = {CommOp[name]: codecs for name, codecs in (registry or {}).items()}
    return (
        Coding({op: codecs.forward for op, codecs in found.items()}),
        Coding({op: codecs.backward for op, codecs in found.items()}),
    )
