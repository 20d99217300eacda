"""How the factors of a LoRA layer start; the layer computes at first what the plain one does, whatever they are."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from loralight.adapters.lora_layers import LoraLayer
from loralight.errors import InputError


def kaiming_(layer: LoraLayer) -> None:
    """As the layer starts by itself: A Kaiming-uniform and B zero, as in the authors' code, for most kinds of layer."""


def gaussian_(layer: LoraLayer) -> None:
    """A normal with standard deviation ``1 / rank``, B zero: the paper's words, with PEFT's deviation."""
    nn.init.normal_(layer.lora_A, std=1 / layer.rank)
    nn.init.zeros_(layer.lora_B)


def orthogonal_(layer: LoraLayer) -> None:
    """A's rows orthonormal (Saxe et al., 2013, https://arxiv.org/abs/1312.6120), B zero.

    PEFT's initialisation of that name has no factor at zero.
    """
    nn.init.orthogonal_(layer.lora_A)
    nn.init.zeros_(layer.lora_B)


def pissa_(layer: LoraLayer) -> None:
    """The weight's largest singular directions (PiSSA, Meng et al., 2024, https://arxiv.org/abs/2404.02948).

    The paper takes ``scaling B A`` off the frozen weight; here it is taken off the update, so that the weight stays as
    it is.
    """
    matrix = _matrix(layer)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[: layer.rank] / layer.scaling).sqrt()
    _start_at(layer, root[:, None] * v[: layer.rank], u[:, : layer.rank] * root)


def olora_(layer: LoraLayer) -> None:
    """The first columns of Q and rows of R of the weight's QR (OLoRA, Büyükakyüz, 2024, https://arxiv.org/abs/2406.01775).

    As with `pissa_`, the weight stays as it is.
    """
    q, r = torch.linalg.qr(_matrix(layer))
    _start_at(layer, r[: layer.rank], q[:, : layer.rank])


INITIALISATIONS: dict[str, Callable[[LoraLayer], None]] = {
    "kaiming": kaiming_,
    "gaussian": gaussian_,
    "orthogonal": orthogonal_,
    "pissa": pissa_,
    "olora": olora_,
    "eva": kaiming_,  # until it has seen data
}


def _matrix(layer: LoraLayer) -> Tensor:
    """The weight as a matrix (out, fan in) in which decompositions are exact enough.

    Raises:
        InputError: it has fewer rows or columns than the rank (``E-RANK``).
    """
    matrix = layer.as_matrix(layer.weight.detach()).to(layer.lora_A.dtype)
    if layer.rank > min(matrix.shape):
        raise InputError(
            "E-RANK",
            f"adapter.init: a weight of {' x '.join(map(str, matrix.shape))} has no {layer.rank} directions to start "
            f"at; lower the rank to {min(matrix.shape)}, with adapter.rank_pattern say, or take init=kaiming",
        )
    return matrix


@torch.no_grad()
def _start_at(layer: LoraLayer, lora_A: Tensor, lora_B: Tensor) -> None:
    layer.lora_A.copy_(lora_A.reshape(layer.lora_A.shape))
    layer.lora_B.copy_(lora_B.reshape(layer.lora_B.shape))
    layer.keep_start_()
