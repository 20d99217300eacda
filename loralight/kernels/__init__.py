"""Arithmetic: the results of the plain formulas in fewer passes over memory; torch alone."""

from loralight.kernels.cross_entropy import TokenScores, plain_token_scores, token_scores

__all__ = [
    "TokenScores",
    "plain_token_scores",
    "token_scores",
]
