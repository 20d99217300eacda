"""What every task promises (`loralight.testing`), and what only this one does; by a tiny T5 that reads bytes."""

from pathlib import Path

import pytest
from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

from loralight.testing import TaskContract

PLUGIN = Path(__file__).parents[1] / "sequence_to_sequence"


def save_tiny_model(folder: Path) -> None:
    """A T5 with random weights that reads bytes."""
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=384, decoder_start_token_id=0, **sizes)).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)


class TestSequenceToSequence(
    TaskContract, overrides=["task=sequence_to_sequence", "data.batch_size=4", "task.max_new_tokens=4"], plugin=PLUGIN
):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def tiny(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("tiny_t5")
        save_tiny_model(folder)
        cls.overrides = [*cls.overrides, f"model.checkpoint='{folder}'"]


def test_a_text_counts_as_a_whole() -> None:
    from sequence_to_sequence.metrics import Texts

    metric = Texts()
    metric.update(written=["2024-03-12 ", "2024-03-1"], wanted=["2024-03-12", "2024-03-12"])
    assert float(metric.compute()) == 0.5
