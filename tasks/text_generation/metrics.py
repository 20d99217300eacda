"""Metrics of a language model's next-token predictions, and of generated texts against references."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.text import CHRFScore, ROUGEScore, SacreBLEUScore

from loralight.errors import InputError, did_you_mean

_ROUGE = ("rouge1", "rouge2", "rougeL")
_OF_TEXTS: dict[str, Callable[[], Metric]] = {
    "bleu": SacreBLEUScore,
    "chrf": CHRFScore,
    "rouge": lambda: ROUGEScore(rouge_keys=_ROUGE),
}


def token_metrics() -> MetricCollection:
    """Perplexity and token accuracy over all tokens that have a loss."""
    # grouping compares states by value, and these could be equal by chance in the first batch
    return MetricCollection({"perplexity": Perplexity(), "token_accuracy": TokenAccuracy()}, compute_groups=False)


class Perplexity(Metric):
    """The exponential of the mean loss per token, over all tokens and not over batches."""

    full_state_update = False
    total_loss: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total_loss", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, losses: Tensor, hits: Tensor) -> None:
        """Add the loss of each token, and whether it was the first choice (not used)."""
        self.total_loss += losses.sum()
        self.num_tokens += losses.numel()

    def compute(self) -> Tensor:
        return (self.total_loss / self.num_tokens).exp().float()


class TokenAccuracy(Metric):
    """The share of tokens that were the model's first choice."""

    full_state_update = False
    num_hits: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, losses: Tensor, hits: Tensor) -> None:
        """Add the loss of each token (not used), and whether it was the first choice."""
        self.num_hits += hits.sum()
        self.num_tokens += hits.numel()

    def compute(self) -> Tensor:
        return self.num_hits / self.num_tokens


def text_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Metrics of generated texts; each takes (texts, references of each text).

    Raises:
        InputError: there is no such score (``E-METRIC``).
    """
    for name in names:
        if name not in _OF_TEXTS:
            raise InputError(
                "E-METRIC",
                f"task.text_metrics: there is no {name!r}.{did_you_mean(name, _OF_TEXTS)} "
                f"Possible: {', '.join(_OF_TEXTS)}",
            )
    return {name: _OF_TEXTS[name]() for name in names}


def text_scores(metrics: dict[str, Metric]) -> dict[str, float]:
    """The scores in percent, as sacreBLEU and papers give them; for ROUGE the F-measures; chrF is chrF++."""
    scores: dict[str, float] = {}
    for name, metric in metrics.items():
        if name == "rouge":
            found = metric.compute()
            scores |= {key: 100 * float(found[f"{key}_fmeasure"]) for key in _ROUGE}
        else:
            scores[name] = 100 * float(metric.compute())
    return scores
