"""`loralight evaluate base=true`: the base model's metrics beside the run's show what the model has forgotten."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GENERAL = ["the quick brown fox jumps over it", "what is it? it is a dog"]


@pytest.fixture
def measured(in_process: Callable[..., int], tiny_llama: str, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Trains by a method on one text, and measures on others, beside the base model."""
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": "a lazy dog"}) + "\n" for _ in range(8)))
    (tmp_path / "general.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in GENERAL))

    def measure(*words: str) -> dict[str, float]:
        train = ["task=text_generation", "data=text_generation", f"model.checkpoint='{tiny_llama}'", "trainer=cpu"]
        rows = [
            "data.train=own.jsonl",
            "data.validation=own.jsonl",
            "data.batch_size=4",
            "optimizer.lr=0.05",
            "model.max_length=64",
        ]
        length = ["trainer.max_epochs=4", "trainer.num_sanity_val_steps=0"]
        assert in_process("train", *train, *rows, *length, *words, "hydra.run.dir=run") == 0
        on_others = ["data.validation=general.jsonl", "split=validation", "base=true", "output=measured.json"]
        assert in_process("evaluate", "run=run", *on_others) == 0
        found: dict[str, float] = json.loads((tmp_path / "measured.json").read_text())
        return found

    return measure


def loss_of_transformers(checkpoint: str) -> float:
    """The mean loss of a token, with the end of each text."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(checkpoint).eval(),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    losses, tokens = 0.0, 0
    for text in GENERAL:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            losses += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return losses / tokens


@pytest.mark.parametrize("words", [["adapter=lora"], ["adapter=full"], ["adapter=prefix_tuning"]], ids=str)
def test_the_base_beside_a_run_is_the_pretrained_model_whatever_was_trained(
    words: list[str], measured: Callable[..., dict[str, float]], tiny_llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(*words)
    assert found["base/validation/loss"] == pytest.approx(loss_of_transformers(tiny_llama), rel=1e-5)
    assert abs(found["validation/loss"] - found["base/validation/loss"]) > 0.01, "and the run is the trained one"
    assert "base model" in capsys.readouterr().out


def test_a_base_without_a_head_for_the_task_is_refused(
    in_process: Callable[..., int], refused: Callable[..., str], tiny_run: list[str]
) -> None:
    assert in_process("train", *tiny_run, "hydra.run.dir=run") == 0
    assert "E-BASE: base=true: " in refused("evaluate", "run=run", "base=true")
