"""Thresholds: the least probability at which a row gets a label, chosen for the best F1 on validation rows.

The best threshold of a rare label is far below one half. If probabilities are true, it is half of the best F1 (Lipton
et al., 2014, https://arxiv.org/abs/1402.1892).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from loralight.errors import InputError

ENOUGH = 20
"""Least number of validation rows with a label for a threshold of its own (docs/recipes.md)."""
_EDGE = 1e-6  # least distance from 0 and 1, where logits are still finite


def choose_thresholds(probabilities: Tensor, targets: Tensor) -> list[float]:
    """A threshold for each label: its own if enough rows have the label, else the best for all labels together.

    Args:
        probabilities: of validation rows, (rows, labels).
        targets: 0 and 1, (rows, labels).
    """
    together = best_threshold(probabilities.flatten(), targets.flatten())
    return [
        best_threshold(scores, given) if int(given.sum()) >= ENOUGH else together
        for scores, given in zip(probabilities.unbind(1), targets.unbind(1), strict=True)
    ]


def best_threshold(scores: Tensor, targets: Tensor) -> float:
    """The threshold with the highest F1, halfway between two scores; if several are equal, the lowest.

    It is one half if no row has the label, since F1 is 0 at all thresholds then.

    Args:
        scores: probabilities, (rows,).
        targets: 0 and 1, (rows,).
    """
    if not targets.any():
        return 0.5
    ranked, order = scores.double().sort(descending=True)
    hits, taken = targets[order].cumsum(0), torch.arange(1, len(order) + 1, device=order.device)
    f1 = 2 * hits.double() / (taken + hits[-1])
    below = torch.cat([ranked[1:], ranked.new_zeros(1)])
    f1[:-1][ranked[:-1] == below[:-1]] = -1  # no threshold separates equal scores
    best = int((f1 == f1.max()).nonzero()[-1])
    return float(((ranked[best] + below[best]) / 2).clamp(_EDGE, 1 - _EDGE))


def check_thresholds(given: float | Sequence[float] | str, labels: Sequence[str], *, multi_label: bool) -> None:
    """Raise ``E-THRESHOLD`` unless it is ``auto``, or (multi-label only) a probability or one for each label."""
    if given == "auto":
        return
    if not multi_label:
        raise InputError(
            "E-THRESHOLD", f"task.thresholds is {given}, but a row has the most probable label; leave it out"
        )
    each = [given] * len(labels) if isinstance(given, int | float) else given
    is_sound = not isinstance(each, str) and len(each) == len(labels) and all(0 < one < 1 for one in each)
    if not is_sound:
        raise InputError(
            "E-THRESHOLD",
            f"task.thresholds is {given}; give auto, a probability between 0 and 1, or one for each of {len(labels)} "
            "labels",
        )
