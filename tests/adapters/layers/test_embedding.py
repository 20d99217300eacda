"""LoRA on embeddings: who gets an update, and what PEFT makes of it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from loralight.adapters import Lora, inject, merge
from loralight.adapters.base import trainable
from loralight.adapters.layers.embedding import LoraEmbedding
from loralight.errors import InputError


class Words(nn.Module):
    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 6, padding_idx=padding_idx)
        self.out = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.words(ids))


def train(model: nn.Module, ids: Tensor) -> None:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(ids).square().sum().backward()
        optimizer.step()


def test_training_moves_only_tokens_that_were_seen_and_never_padding() -> None:
    base = Words(padding_idx=0)
    model = copy.deepcopy(base)
    inject(model, Lora(targets="words", rank=2))
    train(model, torch.tensor([[3, 5, 0], [7, 0, 0]]))
    before, after = base.words.weight, model.words(torch.arange(12))
    moved = {token for token in range(12) if not torch.equal(before[token], after[token])}
    assert moved == {3, 5, 7}
    merge(model)
    assert type(model.words) is nn.Embedding and torch.equal(model.words.weight[0], before[0])
    assert {t for t in range(12) if not torch.equal(before[t], model.words.weight[t])} == moved


def test_dropout_drops_the_update_of_whole_tokens() -> None:
    plain = nn.Embedding(5, 8)
    layer = LoraEmbedding.upgrade_(copy.deepcopy(plain), rank=4, alpha=4, dropout=0.25)
    nn.init.normal_(layer.lora_A)
    ids = torch.randint(5, (1000,))
    update, full = layer(ids) - plain(ids), (layer.lora_B @ layer.lora_A).T[ids]
    dropped = (update.abs() < 1e-6).all(-1)
    torch.testing.assert_close(update[~dropped], full[~dropped] / 0.75, rtol=1e-4, atol=1e-5)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.06)
    torch.testing.assert_close(layer.eval()(ids) - plain(ids), full, rtol=1e-4, atol=1e-5)


def test_frequent_tokens_have_their_gradients_scaled_where_the_embedding_asks_for_it() -> None:
    ids = torch.tensor([1, 1, 1, 2])
    layer = LoraEmbedding.upgrade_(nn.Embedding(4, 3, scale_grad_by_freq=True), rank=2, alpha=2)
    layer(ids).sum().backward()
    column = layer.lora_B.sum(0)
    torch.testing.assert_close(layer.lora_A.grad[:, 1], column)  # 3 times, over 3
    torch.testing.assert_close(layer.lora_A.grad[:, 2], column)


def test_any_optimizer_can_train_the_update_of_an_embedding_with_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(6, 3, sparse=True))
    inject(model, Lora(targets="0", rank=2))
    train(model, torch.tensor([0, 4]))
    assert model[0].lora_A.any()


def test_an_embedding_that_rescales_its_rows_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(6, 3, max_norm=1.0), nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"E-MAX-NORM: 0 has max_norm=1.0.*adapter.exclude=\[0\]"):
        inject(model, Lora(targets=["1", "0"]))
    assert type(model[1]) is nn.Linear, "a refused model is not half adapted"


@pytest.mark.parametrize("settings", [{}, {"rank": 3, "alpha": 2.0}, {"rank_pattern": {"words": 5}}], ids=str)
def test_peft_reads_the_adapter_and_computes_the_same(
    settings: dict[str, float], load_in_peft: Callable[..., nn.Module]
) -> None:
    base, adapter = Words(padding_idx=1), Lora(targets=["words", "out"], **settings)
    model = copy.deepcopy(base)
    inject(model, adapter)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter)
    theirs = load_in_peft(adapter, model, base)
    ids = torch.randint(12, (4, 5))
    torch.testing.assert_close(model(ids), theirs(ids), rtol=1e-4, atol=1e-4)
