"""A merged model finds entities in transformers' own pipeline, by the names of their types."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import pipeline

import loralight


def test_a_merged_run_is_a_pipeline_that_finds_the_same_entities(
    in_process: Callable[..., int], checkpoints: Callable[[str], str], towns: Path, tmp_path: Path
) -> None:
    line = ["task=ner", "data=ner", f"data.path='{towns}'", f"model.checkpoint='{checkpoints('BERT')}'"]
    line += ["trainer=cpu", "trainer.max_epochs=12", "optimizer.lr=0.02", "data.batch_size=8", "model.max_length=48"]
    assert in_process("train", *line, "model.stride=8", "hydra.run.dir=run") == 0
    assert in_process("merge", "run=run", "output=merged", "device=cpu") == 0
    found = json.loads((tmp_path / "merged" / "merge_certificate.json").read_text())
    assert found["within_tolerance"]
    assert found["metrics"]["merged"] == pytest.approx(found["metrics"]["adapted"], rel=1e-4)
    texts = ["Anna lives in Paris.", "In Oslo, Bob sleeps", "nobody is there"]
    find = pipeline("token-classification", model="merged", aggregation_strategy="first", device="cpu")
    expected = [answer["entities"] for answer in loralight.load("run", device="cpu").predict(texts)]
    assert expected[0] and expected[1]
    for text, entities in zip(texts, expected, strict=True):
        assert [(one["entity_group"], one["start"], one["end"]) for one in find(text)] == [
            (one["type"], one["start"], one["end"]) for one in entities
        ]
