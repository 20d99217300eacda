"""One label, or several, for a text or a pair of texts, by an encoder such as BERT."""

from .data import TextClassificationData
from .module import TextClassification

__all__ = ["TextClassification", "TextClassificationData"]
