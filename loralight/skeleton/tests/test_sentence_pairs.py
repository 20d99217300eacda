"""What every task promises (`loralight.testing`), and what only this one does."""

from pathlib import Path

from loralight.testing import TaskContract

PLUGIN = Path(__file__).parents[1] / "sentence_pairs"


class TestSentencePairs(TaskContract, overrides=["task=sentence_pairs"], plugin=PLUGIN): ...
