"""A threshold is where F1 is highest on the rows it was chosen on, as scikit-learn counts it."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_curve
from torch import Tensor

from loralight.errors import InputError
from loralight.training.thresholds import ENOUGH, best_threshold, check_thresholds, choose_thresholds


def made_scores(*, share: float, seed: int, levels: int | None = None) -> tuple[Tensor, Tensor]:
    """Probabilities that tell a label's rows from others, but not well; of few levels many are equal."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(200, generator=generator) < share).long()
    scores = (torch.randn(200, generator=generator) + 1.5 * targets - 2).sigmoid()
    return (scores if levels is None else (scores * levels).ceil() / levels), targets


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.9])
def test_no_other_threshold_has_a_higher_f1(share: float, levels: int | None) -> None:
    for seed in range(5):
        scores, targets = made_scores(share=share, seed=seed, levels=levels)
        found = best_threshold(scores, targets)
        precision, recall, _ = precision_recall_curve(targets, scores)
        both = np.divide(2 * precision * recall, precision + recall, where=precision + recall > 0, out=0 * precision)
        assert f1_score(targets, scores > found) == pytest.approx(both.max())
        assert not (scores == found).any(), "a row at the threshold would be on either side by rounding"


def test_of_thresholds_as_good_the_lowest_is_taken() -> None:
    scores, targets = torch.tensor([0.9, 0.6, 0.4, 0.2]), torch.tensor([1, 0, 1, 0])
    # above 0.75: one right of two, F1 2/3; above 0.3: two right and one wrong, F1 4/5
    assert best_threshold(scores, targets) == pytest.approx(0.3)
    # above 0.75: F1 2/3; above 0.1: two right and two wrong, F1 2/3
    assert best_threshold(scores, torch.tensor([1, 0, 0, 1])) == pytest.approx(0.1)


@pytest.mark.parametrize("score", [1e-3, 1.0])
def test_rows_of_one_score_that_all_have_the_label_are_above_the_threshold(score: float) -> None:
    assert best_threshold(torch.full((4,), score), torch.ones(4)) == pytest.approx(score / 2)


def test_a_label_that_no_row_has_is_decided_at_one_half() -> None:
    assert best_threshold(torch.rand(5), torch.zeros(5)) == 0.5


def test_labels_of_few_rows_share_the_threshold_that_is_best_for_all_together() -> None:
    pairs = [made_scores(share=share, seed=seed) for seed, share in enumerate([0.5, 0.02, 0.03])]
    scores, targets = (torch.stack(each, dim=1) for each in zip(*pairs, strict=True))
    assert (targets.sum(0) >= ENOUGH).tolist() == [True, False, False]
    own, *shared = choose_thresholds(scores, targets)
    assert own == best_threshold(scores[:, 0], targets[:, 0])
    assert shared == [best_threshold(scores.flatten(), targets.flatten())] * 2


@pytest.mark.parametrize(
    ("given", "multi_label"),
    [(0.0, True), (1.0, True), (float("nan"), True), ([0.5], True), ([0.5, 2.0], True), ("best", True), (0.5, False)],
)
def test_what_is_no_threshold_is_refused(given: Any, multi_label: bool) -> None:
    with pytest.raises(InputError, match=r"^E-THRESHOLD: task\.thresholds is"):
        check_thresholds(given, ["a", "b"], multi_label=multi_label)
