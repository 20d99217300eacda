"""What every task promises (`loralight.testing`), and what only this one does."""

import json
from pathlib import Path

import torch

from loralight.testing import TaskContract

PLUGIN = Path(__file__).parents[1] / "question_answering"


class TestQuestionAnswering(
    TaskContract, overrides=["task=question_answering", "data.batch_size=4"], plugin=PLUGIN
): ...


def test_a_span_has_all_tokens_that_touch_the_answer_or_is_none() -> None:
    from question_answering.encoding import span_of

    allowed, offsets = [1, 0, 0, 1, 1, 1, 0], [(0, 0), (0, 3), (0, 0), (0, 2), (3, 7), (7, 9), (0, 0)]
    assert span_of(allowed, offsets, 3, 8) == (4, 5)
    assert span_of(allowed, offsets, 0, 2) == (3, 3)
    assert span_of(allowed, offsets, 7, 12) == (0, 0), "its end is cut off"
    assert span_of(allowed, offsets, 0, 0) == (0, 0), "there is no answer"


def test_f1_counts_the_tokens_that_two_spans_share() -> None:
    from question_answering.metrics import SpanF1

    metric = SpanF1()
    metric.update(torch.tensor([[2, 3], [1, 1]]), torch.tensor([[3, 4], [5, 6]]))
    assert float(metric.compute()) == 0.25


def test_squad_s_own_files_are_read(tmp_path: Path) -> None:
    from question_answering.data import read_squad

    asked = {"question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ann.", "qas": [asked]}]}]}))
    assert read_squad(str(tmp_path / "train.json")).to_list() == [{"context": "Ann.", **asked}]
