"""Sentence pairs: a number for two texts, such as how much alike they are."""

from .data import SentencePairsData
from .module import SentencePairs

__all__ = ["SentencePairs", "SentencePairsData"]
