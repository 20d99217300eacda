"""Scores are those of independent implementations, however the tokens and texts come in batches."""

import pytest
import sacrebleu
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from loralight.errors import InputError
from loralight.tasks.text_generation.metrics import text_metrics, text_scores, token_metrics

TEXTS = ["The Vaults is a cheap pub near the river.", "It serves fish.", "A pub, Café Brazil!"]
REFERENCES = [
    ["The Vaults is a pub by the river. It is cheap.", "Near the river is a cheap pub, The Vaults."],
    ["It serves good fish.", "Fish is served.", "You can eat fish there."],
    ["Café Brazil is a pub."],
]


def test_perplexity_and_accuracy_are_torchmetrics_own_over_all_tokens() -> None:
    torch.manual_seed(0)
    scores, perplexity, accuracy = token_metrics(), Perplexity(), MulticlassAccuracy(7, average="micro")
    for size in (1, 13, 4):
        logits, targets = torch.randn(size, 7), torch.randint(7, (size,))
        scores.update(F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets)
        perplexity.update(logits[None], targets[None])
        accuracy.update(logits, targets)
    found = scores.compute()
    torch.testing.assert_close(found["perplexity"], perplexity.compute())
    torch.testing.assert_close(found["token_accuracy"], accuracy.compute())


def test_a_batch_without_tokens_changes_no_score() -> None:
    scores = token_metrics()
    scores.update(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    scores.update(torch.tensor([]), torch.tensor([], dtype=torch.bool))
    assert float(scores.compute()["perplexity"]) == pytest.approx(4.4816890)
    assert float(scores.compute()["token_accuracy"]) == 0.5


def test_bleu_is_that_of_sacrebleu_with_all_references() -> None:
    metrics = text_metrics(["bleu"])
    for start, end in ((0, 1), (1, 3)):
        metrics["bleu"].update(TEXTS[start:end], REFERENCES[start:end])
    # sacreBLEU takes streams of references, None where a text has fewer
    streams = [[found[at] if at < len(found) else None for found in REFERENCES] for at in range(3)]
    expected = sacrebleu.corpus_bleu(TEXTS, streams).score
    assert text_scores(metrics)["bleu"] == pytest.approx(expected, abs=1e-3)


def test_chrf_is_that_of_sacrebleu() -> None:
    single = [found[:1] for found in REFERENCES]
    chrf = text_metrics(["chrf"])
    chrf["chrf"].update(TEXTS, single)
    expected = sacrebleu.corpus_chrf(TEXTS, [[found[0] for found in single]], word_order=2).score
    assert text_scores(chrf)["chrf"] == pytest.approx(expected, abs=0.05)  # another epsilon


def test_rouge_is_the_f_measure_of_shared_words_pairs_and_subsequences() -> None:
    metrics = text_metrics(["rouge"])
    metrics["rouge"].update(["the cat sat", "a b c d"], [["the cat sat down"], ["b a c d", "x"]])
    # 3 of 3 and of 4 words; 2 of 2 and of 3 pairs; 4 of 4 words, of which 3 in order; 1 of 3 pairs
    expected = {"rouge1": (6 / 7 + 1) / 2, "rouge2": (4 / 5 + 1 / 3) / 2, "rougeL": (6 / 7 + 3 / 4) / 2}
    assert text_scores(metrics) == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-3)


def test_an_unknown_score_is_an_error_that_names_the_known() -> None:
    with pytest.raises(InputError, match=r"^E-METRIC: .* no 'blue'\. Did you mean 'bleu'\? Possible: bleu, chrf"):
        text_metrics(["blue"])
