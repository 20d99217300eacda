"""Sentence embeddings: texts that mean the same get like vectors, learnt from pairs alone."""

from .data import TextPairsData
from .module import SentenceEmbeddings

__all__ = ["SentenceEmbeddings", "TextPairsData"]
