"""What every task promises (`loralight.testing`), and what only this one does."""

from pathlib import Path

import torch

from loralight.testing import TaskContract

PLUGIN = Path(__file__).parents[1] / "sentence_embeddings"


class TestSentenceEmbeddings(TaskContract, overrides=["task=sentence_embeddings"], plugin=PLUGIN):
    rows_depend = True  # the batch's other pairs are a pair's negatives


def test_recall_is_over_the_whole_split_whatever_the_batches() -> None:
    from sentence_embeddings.metrics import RecallAtOne

    first = torch.eye(4)
    second = first[[0, 1, 3, 2]]
    together, alone = RecallAtOne(), RecallAtOne()
    together.update(first, second)
    for row in range(4):
        alone.update(first[row : row + 1], second[row : row + 1])
    assert float(together.compute()) == float(alone.compute()) == 0.5
