"""Plain text, answers to prompts, and chat, by a causal language model such as GPT-2 or Llama."""

from .data import TextGenerationData
from .module import TextGeneration

__all__ = ["TextGeneration", "TextGenerationData"]
