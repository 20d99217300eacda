"""Calibrated probabilities by temperature scaling: one temperature, fitted to validation rows.

Guo et al., 2017, https://arxiv.org/abs/1706.04599: ``softmax(logits / temperature)``, with the temperature that
minimises the mean negative log-likelihood. The ranking of the classes does not change, nor does the accuracy.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from loralight.errors import InputError

_LIMIT = 100.0  # for logits without a mistake the best temperature is 0, for useless logits infinity


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature that makes the targets most likely, between 0.01 and 100.

    Args:
        logits: of validation rows, (rows, classes).
        targets: class numbers (rows,), or 0 and 1 (rows, classes) where a row can have several classes.
    """
    given = logits.detach().double()
    log_inverse = torch.zeros((), dtype=given.dtype, device=given.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_inverse], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(given * log_inverse.exp(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = math.exp(-float(log_inverse.detach()))
    return min(max(found, 1 / _LIMIT), _LIMIT) if math.isfinite(found) else 1.0


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def check_temperature(given: float | None) -> float:
    """The temperature, 1 if none is given; raises ``E-TEMPERATURE`` unless it is from 0.001 to 1000."""
    if given is None:
        return 1.0
    if not 1e-3 <= given <= 1e3:
        raise InputError(
            "E-TEMPERATURE",
            f"task.temperature is {given}; give a number from 0.001 to 1000, of which 1 changes nothing",
        )
    return float(given)


class CalibrationError(MulticlassCalibrationError):
    """Expected calibration error (ECE): the gap between confidence and accuracy, averaged over rows.

    Confidence is the probability of the predicted class. There are 15 bins of equal width, as in Guo et al. The inputs
    are logits (rows, classes) and right classes (rows,).
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float().softmax(-1), target)  # else logits in [0, 1] would pass for probabilities
