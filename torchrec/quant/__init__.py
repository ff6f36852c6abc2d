"""Tables of few bits a number, for models that predict."""

from torchrec.quant.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

__all__ = ["EmbeddingBagCollection", "EmbeddingCollection"]
