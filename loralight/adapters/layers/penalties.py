"""Penalties on a low-rank update, from matrices (rank, rank); the update itself is never formed."""

from torch import Tensor

from loralight.adapters.layers.lora import LoraLayer


def squared_norm(layer: LoraLayer) -> Tensor:
    """``||scaling B A||_F^2 = scaling^2 tr((B^T B) (A A^T))``.

    For a convolution this is the norm of the kernel's update, with groups or without.
    """
    a, b = layer.update_factors()
    return layer.scaling**2 * ((b.T @ b) * (a @ a.T)).sum()  # both symmetric, so the trace of their product


def crosstalk(layer: LoraLayer) -> Tensor:
    """The squared inner products of A's rows with each other, and of B's columns; zero if all are orthogonal.

    This is the penalty of AdaLoRA (Zhang et al., 2023, https://arxiv.org/abs/2303.10512, eq. 4) without its diagonal,
    which would pull rows and columns to length one; in LoRA their length holds the size of the update.
    """
    a, b = layer.lora_A.flatten(1), layer.lora_B.flatten(1)
    grams = (a @ a.T, b.T @ b)
    overlaps = [gram - gram.diagonal().diag() for gram in grams]
    return overlaps[0].square().sum() + overlaps[1].square().sum()
