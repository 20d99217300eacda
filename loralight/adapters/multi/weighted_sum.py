"""Weighted sums of low-rank updates, which have low rank too: no full update is ever formed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from loralight.adapters.layers.lora import LoraLayer


def weighted_sum(terms: Sequence[tuple[float, LoraLayer]]) -> tuple[Tensor, Tensor]:
    """Factors of ``sum_i weight_i scaling_i B_i A_i``, exact but for rounding.

    The A_i are stacked, and the weighted B_i lie side by side.

    Shapes: those of the layers' own factors, with the sum of their ranks as the rank.
    """
    lora_A = torch.cat([layer.lora_A.detach() for _, layer in terms])
    lora_B = torch.cat([weight * layer.scaling * layer.lora_B.detach() for weight, layer in terms], dim=1)
    return lora_A, lora_B


def truncated(lora_A: Tensor, lora_B: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The factors of the nearest matrix of lower rank, and its distance (Eckart and Young, 1936).

    With ``B = Q_B R_B`` and ``A^T = Q_A R_A`` the singular values of B A are those of the small ``R_B R_A^T``.

    Returns:
        A and B cut to ``rank`` (or at their own rank, if that is lower), and the distance as a
        fraction of the Frobenius norm of B A.
    """
    if lora_A.shape[0] <= rank:
        return lora_A, lora_B, 0.0
    a, b = (factor.flatten(1).cpu().double() for factor in (lora_A, lora_B))  # (rank, in), (out, rank)
    q_a, r_a = torch.linalg.qr(a.T)
    q_b, r_b = torch.linalg.qr(b)
    u, values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    rank, root = min(rank, len(values)), values.sqrt()
    new_A = (root[:rank, None] * v[:rank]) @ q_a.T
    new_B = q_b @ (u[:, :rank] * root[:rank])
    error = values[rank:].norm() / values.norm() if values.norm() > 0 else torch.zeros(())
    return (
        new_A.view(rank, *lora_A.shape[1:]).to(lora_A),
        new_B.view(len(b), rank, *lora_B.shape[2:]).to(lora_B),
        float(error),
    )
