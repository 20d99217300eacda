"""The share of texts whose most similar text is the right one."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class RecallAtOne(Metric):
    """The share of first texts whose most similar second text in the whole split is that of the same pair."""

    first: list[Tensor]
    second: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("first", [], dist_reduce_fx="cat")
        self.add_state("second", [], dist_reduce_fx="cat")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Vectors of pairs, (pairs, width) each."""
        self.first.append(first)
        self.second.append(second)

    def compute(self) -> Tensor:
        found = (dim_zero_cat(self.first) @ dim_zero_cat(self.second).T).argmax(1)
        return (found == torch.arange(len(found), device=found.device)).float().mean()
