"""Cheap dropout is dropout: in distribution, in its gradient, and in what a seed repeats."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loralight.kernels.dropout import CheapDropout, attend, set_cheap_dropout_
from loralight.kernels.linear import keep_mask


def cheap(p: float = 0.1) -> nn.Module:
    module = nn.Sequential(nn.Dropout(p))
    set_cheap_dropout_(module.modules(), True)
    return module.train()[0]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_elements_are_dropped_as_asked_for_and_the_others_scaled(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = cheap(p)(torch.ones(400, 500, dtype=dtype))
    dropped = float((y == 0).double().mean())
    assert abs(dropped - p) < 5 * (p * (1 - p) / y.numel()) ** 0.5
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=2e-4, atol=0)
    rows = (y == 0).double().mean(1)
    assert abs(float(rows.var()) / (p * (1 - p) / 500) - 1) < 0.4, "elements are dropped independently"


def test_the_gradient_goes_where_the_value_went() -> None:
    x = torch.randn(20, 30, requires_grad=True)
    y = cheap()(x)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), x.detach() * x.grad)


def test_a_seed_repeats_it_and_a_checkpoint_recomputes_it() -> None:
    module, x = cheap(), torch.randn(20, 30, requires_grad=True)
    torch.manual_seed(3)
    first = module(x)
    first.sum().backward()
    assert x.grad is not None
    gradient, x.grad = x.grad, None
    torch.manual_seed(3)
    again = checkpoint(module, x, use_reentrant=False)
    again.sum().backward()
    assert torch.equal(first, again) and torch.equal(x.grad, gradient)


def test_what_is_kept_for_the_backward_pass_is_a_byte_an_element() -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        cheap()(torch.randn(20, 30, requires_grad=True))
    assert kept == [600]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_pytorch_with_the_probabilities_that_were_drawn(masked: bool) -> None:
    query, key, value = (torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = (torch.arange(7) < torch.tensor([[7], [4]]))[:, None, None, :] if masked else None
    torch.manual_seed(3)
    found = attend(query, key, value, mask, 0.3, 0.4)
    torch.manual_seed(3)
    kept, scale = keep_mask(torch.empty(2, 3, 7, 7), 0.3)
    scores = query @ key.mT * 0.4
    probabilities = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
    undropped = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.4)
    torch.testing.assert_close(probabilities @ value, undropped)
    expected = (probabilities * kept * scale) @ value
    torch.testing.assert_close(found, expected)
    upstream, inputs = torch.randn_like(found), (query, key, value)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    )


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-6])
def test_nothing_and_everything_are_dropped_by_pytorch_s_own(p: float) -> None:
    x = torch.randn(5, 5)
    torch.testing.assert_close(cheap(p)(x), x * (p < 1))


def test_evaluation_and_other_devices_are_pytorch_s_own() -> None:
    x = torch.randn(5, 5)
    assert torch.equal(cheap().eval()(x), x)
    assert cheap()(x.to("meta")).device.type == "meta"


def test_only_exact_dropout_becomes_cheap_and_it_turns_back() -> None:
    class Mine(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.1), Mine(0.1), nn.Dropout2d(0.1))
    set_cheap_dropout_(model.modules(), True)
    assert [type(part) for part in model] == [CheapDropout, Mine, nn.Dropout2d]
    assert [type(part) for part in copy.deepcopy(model)] == [type(part) for part in model]
    assert type(pickle.loads(pickle.dumps(model[0]))) is CheapDropout
    set_cheap_dropout_(model.modules(), False)
    assert [type(part) for part in model] == [nn.Dropout, Mine, nn.Dropout2d]
