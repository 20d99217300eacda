"""Arithmetic: the results of the plain formulas in fewer passes over memory; torch alone."""

from loralight.kernels.onednn import Matrices, matrices_of, multiply

__all__ = [
    "Matrices",
    "matrices_of",
    "multiply",
]
