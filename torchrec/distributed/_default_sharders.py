"""One sharder for each type of collection: what models and towers find theirs in."""

from __future__ import annotations

from typing import Any

from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import BaseEmbeddingSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fp_embeddingbag import FeatureProcessedEmbeddingBagCollectionSharder
from torchrec.distributed.fused_embedding import FusedEmbeddingCollectionSharder
from torchrec.distributed.fused_embeddingbag import FusedEmbeddingBagCollectionSharder
from torchrec.distributed.mc_embedding import ManagedCollisionEmbeddingCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.types import QuantizedCommCodecs

__all__ = ["collection_sharders"]


def collection_sharders(
    fused_params: dict[str, Any] | None = None,
    qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    exact: bool = False,
) -> list[BaseEmbeddingSharder[Any]]:
    """Return a sharder for every type of collection.

    Args:
        fused_params: of each, see `BaseEmbeddingSharder`.
        qcomm_codecs_registry: likewise.
        exact: likewise.
    """
    bags = EmbeddingBagCollectionSharder(fused_params, qcomm_codecs_registry, exact=exact)
    sequences = EmbeddingCollectionSharder(fused_params, qcomm_codecs_registry, exact=exact)
    return [
        bags,
        FeatureProcessedEmbeddingBagCollectionSharder(bags, qcomm_codecs_registry),
        sequences,
        FusedEmbeddingBagCollectionSharder(fused_params, qcomm_codecs_registry, exact=exact),
        FusedEmbeddingCollectionSharder(fused_params, qcomm_codecs_registry, exact=exact),
        ManagedCollisionEmbeddingBagCollectionSharder(bags),
        ManagedCollisionEmbeddingCollectionSharder(sequences),
    ]
