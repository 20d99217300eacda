"""Which heads are one linear layer, and at what rate they learn."""

from functools import partial

import pytest
import torch
from torch import nn

from loralight.adapters import LinearProbe
from loralight.errors import InputError
from loralight.tasks.text_classification import TextClassification
from loralight.training.heads import LINEAR_HEAD_LR, head_rate, linear_layer

LINEAR = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("head", "is_linear"),
    [
        ([LINEAR], True),
        ([nn.Sequential(nn.Dropout(), LINEAR)], True),
        ([LINEAR, LINEAR], True),  # named twice
        ([nn.Sequential(nn.Linear(3, 3), nn.Tanh(), LINEAR)], False),
        ([LINEAR, nn.LayerNorm(3)], False),
        ([nn.Conv2d(3, 2, 1)], False),
        ([], False),
    ],
)
def test_a_head_of_one_linear_layer_is_told(head: list[nn.Module], is_linear: bool) -> None:
    assert (linear_layer(head) is LINEAR) == is_linear
    assert head_rate("auto", head) == (LINEAR_HEAD_LR if is_linear else None)
    assert (head_rate(0.5, head), head_rate(None, head)) == (0.5, None)


@pytest.mark.parametrize(("pooling", "rate"), [("mean", LINEAR_HEAD_LR), ("model", 1e-3)])
def test_the_optimizer_s_groups_have_the_head_s_rate(tiny_bert: str, pooling: str, rate: float) -> None:
    """The tiny BERT has no pooler of its own, so that the head of its class is two layers."""
    task = TextClassification(
        checkpoint=tiny_bert,
        labels=["a", "b"],
        adapter=LinearProbe(),
        pooling=pooling,  # type: ignore[arg-type]
        head_lr="auto",
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
    )
    task.configure_model()
    rates = {group["lr"] for group in task.make_optimizer().param_groups if group["name"] == "head"}
    assert rates == {rate}


def test_a_rate_of_another_kind_is_refused(tiny_bert: str) -> None:
    with pytest.raises(InputError, match="head_lr"):
        TextClassification(checkpoint=tiny_bert, labels=["a", "b"], adapter=LinearProbe(), head_lr=-1.0)
