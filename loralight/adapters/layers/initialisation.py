"""Initialisation of a LoRA layer's factors; at step 0 the layer's output is the plain layer's.

Only LoftQ starts elsewhere, on purpose.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from loralight.adapters.layers.lora import LoraLayer
from loralight.errors import InputError
from loralight.models.quantisation import QuantisedLinear


def kaiming_(layer: LoraLayer) -> None:
    """The layer's own start: for most kinds of layer A Kaiming-uniform and B zero, as in the authors' code."""


def gaussian_(layer: LoraLayer) -> None:
    """A normal with standard deviation ``1 / rank``, B zero: as in the paper, with PEFT's standard deviation."""
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

    The paper subtracts ``scaling B A`` from the frozen weight; here it is subtracted from the update, so that the
    weight stays as it is.
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


def loftq_(layer: LoraLayer) -> None:
    """The largest singular directions of the quantisation error (LoftQ, Li et al., 2023, https://arxiv.org/abs/2310.08659).

    The layer starts nearer to the original weight than to the quantised weight. This is the first of the paper's
    alternating steps; further steps would change the quantised weight, which here belongs to the base and is the same
    for every adapter.

    Raises:
        InputError: the layer is not quantised (``E-INIT``).
    """
    original = layer.original if isinstance(layer, QuantisedLinear) else None
    if original is None:
        raise InputError(
            "E-INIT",
            f"adapter.init=loftq makes good what quantising takes off a weight, but a chosen {layer.plain.__name__} is "
            "not quantised: set task.quantize=bitsandbytes/nf4 say, choose other targets, or take init=kaiming",
        )
    taken = original.to(layer.lora_A.dtype) - _matrix(layer)
    u, s, v = torch.linalg.svd(taken, full_matrices=False)
    root = (s[: layer.rank] / layer.scaling).sqrt()
    _set(layer, root[:, None] * v[: layer.rank], u[:, : layer.rank] * root)


INITIALISATIONS: dict[str, Callable[[LoraLayer], None]] = {
    "kaiming": kaiming_,
    "gaussian": gaussian_,
    "orthogonal": orthogonal_,
    "pissa": pissa_,
    "olora": olora_,
    "loftq": loftq_,
    "eva": kaiming_,  # until it has seen data
}


def _matrix(layer: LoraLayer) -> Tensor:
    """The weight as a matrix (out, fan in) in a dtype in which decompositions are exact enough.

    Raises:
        InputError: the matrix has fewer rows or columns than the rank (``E-RANK``).
    """
    matrix = layer.as_matrix(layer.weight.detach()).to(layer.lora_A.dtype)
    if layer.rank > min(matrix.shape):
        raise InputError(
            "E-RANK",
            f"adapter.init: a weight of {' x '.join(map(str, matrix.shape))} has no {layer.rank} directions to start "
            f"at; lower the rank to {min(matrix.shape)}, with adapter.rank_pattern say, or take init=kaiming",
        )
    return matrix


def _start_at(layer: LoraLayer, lora_A: Tensor, lora_B: Tensor) -> None:
    _set(layer, lora_A, lora_B)
    layer.keep_start_()


@torch.no_grad()
def _set(layer: LoraLayer, lora_A: Tensor, lora_B: Tensor) -> None:
    layer.lora_A.copy_(lora_A.reshape(layer.lora_A.shape))
    layer.lora_B.copy_(lora_B.reshape(layer.lora_B.shape))
