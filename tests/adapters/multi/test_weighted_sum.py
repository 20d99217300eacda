"""Sums of low-rank updates: exact as concatenated factors, or the nearest of a given rank."""

import random

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralight.adapters.layers.lora import LAYERS, LoraLayer
from loralight.adapters.multi.weighted_sum import truncated, weighted_sum

# a quantised layer has the update of a linear one
KINDS = [kind for kind in LAYERS.values() if kind.is_additive]
BUILD = {
    nn.Linear: lambda: nn.Linear(12, 9),
    Conv1D: lambda: Conv1D(9, 12),
    nn.Conv1d: lambda: nn.Conv1d(4, 6, 3, groups=2),
    nn.Conv2d: lambda: nn.Conv2d(4, 6, (3, 2), padding_mode="reflect", padding=1),
    nn.Conv3d: lambda: nn.Conv3d(2, 6, 2, dilation=2),
}


def trained(kind: type[LoraLayer], rank: int, alpha: float) -> LoraLayer:
    layer = kind.upgrade_(BUILD[kind.plain]().double(), rank=rank, alpha=alpha)
    nn.init.normal_(layer.lora_B)
    return layer


def dense(layer: LoraLayer) -> Tensor:
    """``(alpha / rank) B A``, by the definition."""
    return layer.alpha / layer.rank * torch.einsum("or,ri->oi", layer.lora_B.flatten(1), layer.lora_A.flatten(1))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_a_weighted_sum_is_that_of_the_dense_updates(kind: type[LoraLayer]) -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    for number in range(1, 5):
        terms = [(draw.uniform(-2, 2), trained(kind, draw.randint(1, 4), draw.uniform(1, 9))) for _ in range(number)]
        lora_A, lora_B = weighted_sum(terms)
        assert len(lora_A) == lora_B.shape[1] == sum(layer.rank for _, layer in terms)
        wanted = sum(weight * dense(layer) for weight, layer in terms)
        torch.testing.assert_close(lora_B.flatten(1) @ lora_A.flatten(1), wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_an_adapter_minus_itself_is_nothing() -> None:
    layer = trained(KINDS[0], 3, 6)
    lora_A, lora_B = weighted_sum([(1.0, layer), (-1.0, layer)])
    assert (lora_B @ lora_A).abs().max() < 1e-14
    for rank in (1, 6):
        assert (truncated(lora_A, lora_B, rank)[1] @ truncated(lora_A, lora_B, rank)[0]).abs().max() < 1e-14


@pytest.mark.parametrize("rank", [1, 3, 5, 6, 7, 20])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_a_truncation_is_the_dense_one_and_tells_its_error(kind: type[LoraLayer], rank: int) -> None:
    torch.manual_seed(0)
    lora_A, lora_B = weighted_sum([(0.5, trained(kind, 4, 8)), (-1.5, trained(kind, 3, 1))])  # rank 7, or 6 of 6 rows
    update = lora_B.flatten(1) @ lora_A.flatten(1)
    u, values, v = torch.linalg.svd(update, full_matrices=False)
    wanted = u[:, :rank] * values[:rank] @ v[:rank]
    new_A, new_B, error = truncated(lora_A, lora_B, rank)
    assert len(new_A) == new_B.shape[1] <= rank
    assert new_A.shape[1:] == lora_A.shape[1:] and new_B.shape[2:] == lora_B.shape[2:]
    found = new_B.flatten(1) @ new_A.flatten(1)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert error == pytest.approx(float((update - found).norm() / update.norm()), abs=1e-12)


@torch.no_grad()
def test_factors_keep_their_precision_and_only_a_lossless_truncation_has_no_error() -> None:
    torch.manual_seed(0)
    one, other = (trained(KINDS[0], 2, 4).float() for _ in range(2))
    new_A, new_B, error = truncated(*weighted_sum([(1.0, one), (1.0, other)]), 3)
    assert new_A.dtype == new_B.dtype == torch.float32 and error > 0.01
    lora_A, lora_B = weighted_sum([(1.0, one), (2.0, one)])
    new_A, new_B, error = truncated(lora_A, lora_B, 2)
    assert error < 1e-6
    torch.testing.assert_close(new_B @ new_A, lora_B @ lora_A, rtol=1e-5, atol=1e-6)
