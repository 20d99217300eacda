"""The names of people, places and whatever else in a text (named entity recognition), by an encoder such as BERT."""

from .data import NerData
from .module import Ner

__all__ = ["Ner", "NerData"]
