"""Extractive question answering: the words of a text that answer a question."""

from .data import QuestionsData
from .module import QuestionAnswering

__all__ = ["QuestionAnswering", "QuestionsData"]
