"""Precision, recall and F1 are those of seqeval's strict mode, on tags sound and unsound, in one process or several."""

from random import Random

import pytest
import torch
from seqeval.metrics import classification_report
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from loralight.tasks.ner.metrics import EntityF1, entity_metrics
from loralight.tasks.ner.tags import tag_names

TYPES = ["PER", "LOC", "creative-work"]
NAMES = tag_names(TYPES)
Sentences = list[list[int]]


def random_sentences(random: Random, count: int, outside: float) -> tuple[Sentences, Sentences]:
    """Predictions and targets: any tags in any order, half of them alike."""
    predictions, targets = [], []
    for _ in range(count):
        target = [
            0 if random.random() < outside else random.randrange(len(NAMES)) for _ in range(random.randrange(1, 9))
        ]
        targets.append(target)
        predictions.append([tag if random.random() < 0.7 else random.randrange(len(NAMES)) for tag in target])
    return predictions, targets


def padded(sentences: Sentences) -> Tensor:
    return pad_sequence([torch.tensor(each) for each in sentences], batch_first=True, padding_value=-1)


def named(sentences: Sentences) -> list[list[str]]:
    return [[NAMES[tag] for tag in each] for each in sentences]


def expected(predictions: Sentences, targets: Sentences) -> dict[str, float]:
    judge = {"scheme": IOB2, "zero_division": 0}
    tags = named(targets), named(predictions)
    precision, recall, f1, _ = precision_recall_fscore_support(*tags, average="micro", **judge)
    report = classification_report(*tags, output_dict=True, mode="strict", **judge)
    each = {f"f1_{label}": float(report.get(label, {"f1-score": 0.0})["f1-score"]) for label in TYPES}
    return {"f1": float(f1), "precision": float(precision), "recall": float(recall), **each}


@pytest.mark.parametrize("outside", [0.0, 0.5, 0.9])
def test_scores_are_those_of_seqeval(outside: float) -> None:
    random = Random(0)
    for _ in range(100):
        predictions, targets = random_sentences(random, 20, outside)
        predictions[0], targets[0] = [1], [1]  # seqeval itself fails where there is no entity at all
        metrics = entity_metrics(TYPES)
        for start in range(0, 20, 7):
            metrics.update(padded(predictions[start : start + 7]), padded(targets[start : start + 7]))
        found = {name: float(value) for name, value in metrics.compute().items()}
        assert found == pytest.approx(expected(predictions, targets), abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "targets"),
    [([[0, 0]], [[0, 0]]), ([[0, 0]], [[1, 2]]), ([[3, 4]], [[0, 0]]), ([[2, 2]], [[2, 2]]), ([[1, 0]], [[1, 2]])],
)
def test_where_nothing_is_right_all_scores_are_0(predictions: Sentences, targets: Sentences) -> None:
    metrics = entity_metrics(TYPES)
    scores = metrics(torch.tensor(predictions), torch.tensor(targets))
    assert {float(value) for value in scores.values()} == {0.0}


def test_a_batch_without_words_changes_nothing() -> None:
    metric = EntityF1(len(TYPES))
    metric.update(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 2, 1]]))
    before = float(metric.compute())
    metric.update(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long))
    assert float(metric.compute()) == before == pytest.approx(2 / 3)


def test_processes_together_measure_what_one_would() -> None:
    random = Random(0)
    predictions, targets = random_sentences(random, 50, 0.3)
    ranks = []
    for rank in range(3):
        metrics = entity_metrics(TYPES)
        metrics.update(padded(predictions[rank::3]), padded(targets[rank::3]))
        ranks.append(metrics)
    for name, metric in ranks[0].items():
        for other in ranks[1:]:
            metric.merge_state(other[name].metric_state)
        assert float(metric.compute()) == pytest.approx(expected(predictions, targets)[name], abs=1e-12)


def test_types_may_have_any_names() -> None:
    assert {"f1_a.b", "f1_a_b"} & set(map(str, entity_metrics(["a.b", "ü/x", "-"]).keys())) == {"f1_a_b"}
