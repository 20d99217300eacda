"""With dropout a step computes what transformers computes with the same masks."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForTokenClassification

from loralight.acceleration import Accelerations, DropoutMasks, Facts, FrozenProducts, SelectiveRecompute, Unpadding
from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.kernels import dropout

CHANCE = 0.3
LAYERS = 2
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "hidden_dropout_prob": CHANCE,
    "attention_probs_dropout_prob": CHANCE,
    "num_labels": 3,
}


def kept_masks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, float]]:
    """The masks that loralight draws from now on, with the factors of kept elements, in the order of drawing."""
    kept: list[tuple[Tensor, float]] = []
    draw = dropout.keep_mask

    def keep(like: Tensor, probability: float) -> tuple[Tensor, float]:
        kept.append(draw(like, probability))
        return kept[-1]

    monkeypatch.setattr(dropout, "keep_mask", keep)
    return kept


def drop_by_(masks: Iterator[tuple[Tensor, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have PyTorch's dropout, and attention with it, take these masks in turn."""

    def drop(x: Tensor, p: float, training: bool = True, *_: Any) -> Tensor:
        mask, scale = next(masks)
        assert training and p == CHANCE and mask.numel() == x.numel()
        return x * mask.view(x.shape) * scale

    def attend(query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, scale: float, **_: Any) -> Tensor:
        return drop((query @ key.mT * scale).softmax(-1), dropout_p) @ value

    monkeypatch.setattr(F, "dropout", drop)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)


def step(model: BertForTokenClassification) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients on four rows without padding, so that a mask has the same elements in both layouts."""
    ids = torch.arange(36).view(4, 9) + 5
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten() % 3)
    learnt = trainable(model)
    return loss, dict(zip(learnt, torch.autograd.grad(loss, list(learnt.values())), strict=True))


def test_loss_and_gradients_are_those_of_transformers_with_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = BertForTokenClassification(BertConfig(**SIZES, initializer_range=0.2))
    inject(plain, Lora(targets="all-linear", rank=4), head=[plain.classifier])
    for name, parameter in trainable(plain).items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    fast = copy.deepcopy(plain).train()
    ways = {"unpadding": Unpadding(), "dropout": DropoutMasks(), "recompute": SelectiveRecompute()}
    accelerations = Accelerations({**ways, "products": FrozenProducts()})
    accelerations.attach_(Facts(model=fast))
    accelerations.start_(Facts(model=fast))
    accelerations.switch_(True)
    assert {*ways} <= {*accelerations.on}
    masks = kept_masks(monkeypatch)
    with accelerations.step(fast):
        found, gradients = step(fast)
    assert len(masks) == 2 + 3 * LAYERS  # embeddings and head; attention and two outputs of each block
    drop_by_(iter(masks), monkeypatch)
    expected, wanted = step(plain.train())
    torch.testing.assert_close(found, expected)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)
    monkeypatch.undo()
    calm, _ = step(plain.eval())
    assert abs(calm.item() - expected.item()) > 0.01, "dropout did something"
