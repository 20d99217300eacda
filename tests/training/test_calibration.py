"""The temperature is the one that scipy finds, and the calibration error the textbook's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax
from torch import Tensor

from loralight.errors import InputError
from loralight.training import CalibrationError, check_temperature, fit_temperature

from ..textbook import calibration_error


def made_logits(scale: float, *, num_classes: int = 4, num_rows: int = 400) -> tuple[Tensor, Tensor]:
    """Logits that are ``scale`` times what they should be for the targets that were drawn by them."""
    generator = torch.Generator().manual_seed(num_classes)
    logits = 2 * torch.randn(num_rows, num_classes, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return scale * logits, targets


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
@pytest.mark.parametrize("num_classes", [2, 4, 50])
def test_the_temperature_is_the_one_that_scipy_finds(scale: float, num_classes: int) -> None:
    logits, targets = made_logits(scale, num_classes=num_classes)
    given, rows = logits.double().numpy(), np.arange(len(targets))
    expected = minimize_scalar(
        lambda log_t: -log_softmax(given / np.exp(log_t), axis=1)[rows, targets.numpy()].mean(), bounds=(-6, 6)
    )
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(float(np.exp(expected.x)), rel=1e-4)
    assert scale / 1.4 < found < scale * 1.4


def test_several_labels_a_row_have_one_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 5, generator=generator)
    targets = (torch.rand(300, 5, generator=generator) < logits.sigmoid()).long()
    given, signs = 3 * logits.double().numpy(), 2 * targets.numpy() - 1

    def loss(log_t: float) -> float:
        return float(-log_expit(signs * given / np.exp(log_t)).mean())

    expected = float(np.exp(minimize_scalar(loss, bounds=(-3, 3)).x))
    assert fit_temperature(3 * logits, targets) == pytest.approx(expected, rel=1e-4)


def test_a_temperature_has_a_limit_where_the_best_one_has_none() -> None:
    logits = torch.eye(3).repeat(4, 1)
    targets = torch.arange(3).repeat(4)
    assert fit_temperature(logits, targets) < 0.1  # never wrong: the surer the better
    assert fit_temperature(-logits, targets) > 10  # worse than knowing nothing
    assert fit_temperature(torch.zeros(6, 3), targets[:6]) == pytest.approx(1)  # nothing to divide


@pytest.mark.parametrize("given", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused(given: float) -> None:
    with pytest.raises(InputError, match=r"^E-TEMPERATURE: task\.temperature is"):
        check_temperature(given)


@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0])
def test_the_calibration_error_is_the_textbook_s_whatever_the_batches(scale: float) -> None:
    logits, targets = made_logits(scale)  # at 0.05 some rows have logits between 0 and 1 alone
    metric = CalibrationError(4)
    for batch in torch.arange(len(targets)).split(37):
        metric.update(logits[batch], targets[batch])
    assert float(metric.compute()) == pytest.approx(calibration_error(logits.numpy(), targets.numpy()), abs=1e-5)


def test_a_fitted_temperature_lowers_the_calibration_error_and_leaves_the_answers() -> None:
    logits, targets = made_logits(6.0)
    cooled = logits / fit_temperature(logits, targets)
    errors = []
    for one in (logits, cooled):
        metric = CalibrationError(4)
        metric.update(one, targets)
        errors.append(float(metric.compute()))
    assert errors[1] < errors[0] / 2
    assert torch.equal(cooled.argmax(-1), logits.argmax(-1))
    assert F.cross_entropy(cooled, targets) < F.cross_entropy(logits, targets)
