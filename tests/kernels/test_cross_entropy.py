"""Losses made by parts are those of cross-entropy over all logits, and so are their gradients."""

import pytest
import torch
from torch import Tensor, nn

from loralight.kernels import onednn, plain_token_scores, token_scores
from loralight.kernels.onednn import Matrix


@pytest.mark.parametrize("tokens", [0, 1, 127, 128, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_losses_hits_and_gradients_equal_those_over_all_logits(tokens: int, bias: bool) -> None:
    torch.manual_seed(tokens)
    layer = nn.Linear(24, 90, bias=bias).double().requires_grad_(False)
    hidden = torch.randn(tokens, 24, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 90, (tokens,))
    upstream = torch.randn(tokens, dtype=torch.float64)
    plain = plain_token_scores(layer(hidden), targets)
    parts = token_scores(hidden, targets, layer.weight, layer.bias)
    torch.testing.assert_close(parts.losses, plain.losses, rtol=1e-12, atol=1e-12)
    assert torch.equal(parts.hits, plain.hits)
    found, expected = (torch.autograd.grad((s.losses * upstream).sum(), hidden)[0] for s in (parts, plain))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_half_precision_is_as_near_to_the_exact_loss_as_all_logits_are(autocast: bool, bias: bool) -> None:
    torch.manual_seed(0)
    exact = nn.Linear(24, 90, bias=bias).bfloat16().double().requires_grad_(False)
    layer = nn.Linear(24, 90, bias=bias).requires_grad_(False)
    layer.load_state_dict(exact.state_dict())
    given, targets = torch.randn(300, 24).bfloat16(), torch.randint(0, 90, (300,))
    if not autocast:
        layer.bfloat16()
    hidden = given.to(layer.weight.dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, parts = plain_token_scores(layer(hidden), targets), token_scores(hidden, targets, *_of(layer))
    truth = given.double().requires_grad_()
    whole = plain_token_scores(exact(truth), targets)
    (expected,) = torch.autograd.grad(whole.losses.sum(), truth)
    errors = []
    for scores in (parts, plain):
        (gradient,) = torch.autograd.grad(scores.losses.sum(), hidden)
        assert scores.losses.dtype is torch.float32 and gradient.dtype is hidden.dtype
        errors.append(
            torch.stack([(scores.losses - whole.losses).norm(), (gradient - expected).norm() / expected.norm()])
        )
    assert torch.equal(parts.hits, plain.hits)
    assert (errors[0] <= 1.1 * errors[1] + 1e-3).all()


def _of(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return layer.weight, layer.bias


@pytest.mark.parametrize("tokens", [100, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_single_precision_is_multiplied_by_onednn_and_as_near(
    tokens: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "gains", lambda values, packed=False: True)
    torch.manual_seed(tokens)
    layer = nn.Linear(24, 90, bias=bias).requires_grad_(False)
    hidden, targets = torch.randn(tokens, 24, requires_grad=True), torch.randint(0, 90, (tokens,))
    rows: list[int] = []
    linear = Matrix.linear
    monkeypatch.setattr(Matrix, "linear", lambda self, x, b: (rows.append(len(x)), linear(self, x, b))[1])
    ours = token_scores(hidden, targets, *_of(layer)).losses
    assert sum(rows) == 2 * tokens, "the logits, and the gradient of the states"
    exact = hidden.detach().double().requires_grad_()
    expected = plain_token_scores(layer.double()(exact), targets).losses
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(loss.sum(), x)[0] for loss, x in ((ours, hidden), (expected, exact)))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
