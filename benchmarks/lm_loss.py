"""The loss of a language model's last layer beside transformers' own: 1024 tokens, 576 wide, of 49152 words.

    python benchmarks/lm_loss.py [--quick]

float32, one thread; hidden states and weights of a size that gives logits as a trained model's.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import Ratio, Row, in_turns, peak_memory, ratio, show
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from loralight.kernels import token_scores

TOKENS, WIDTH, WORDS = 1024, 576, 49152
Gradient = Callable[[], tuple[Tensor, Tensor]]


def _given(learnt: float) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(0, WORDS, (TOKENS,))
    targets[round(learnt * TOKENS) :] = -100
    return torch.randn(TOKENS, WIDTH), 0.06 * torch.randn(WORDS, WIDTH), targets


def by_transformers(learnt: float) -> Gradient:
    """The loss and the gradient of the hidden states, from all logits; a share of the tokens is learnt."""
    states, weight, targets = _given(learnt)

    def run() -> tuple[Tensor, Tensor]:
        hidden = states.detach().requires_grad_()
        logits = F.linear(hidden, weight)[None]
        loss = ForCausalLMLoss(logits, None, WORDS, shift_labels=targets[None])
        return loss.detach(), torch.autograd.grad(loss, hidden)[0]

    return run


def by_loralight(learnt: float) -> Gradient:
    """The same by parts, of the learnt tokens alone."""
    states, weight, targets = _given(learnt)
    taken = targets != -100

    def run() -> tuple[Tensor, Tensor]:
        hidden = states.detach().requires_grad_()
        loss = token_scores(hidden[taken], targets[taken], weight, None).losses.mean()
        return loss.detach(), torch.autograd.grad(loss, hidden)[0]

    return run


def rows(quick: bool) -> list[Row]:
    """Every measurement."""
    found = []
    for learnt, goal, most in ((1.0, 0.85, 0.12), (0.5, 0.45, 0.12)):
        ways = {"transformers": by_transformers(learnt), "loralight": by_loralight(learnt)}
        (loss, gradient), (other, its) = (way() for way in ways.values())
        torch.testing.assert_close(other, loss, rtol=1e-6, atol=0)
        assert (its - gradient).norm() <= 1e-5 * gradient.norm()
        seconds = in_turns(ways, rounds=3 if quick else 9)
        work = "LM loss" if learnt == 1 else f"LM loss, {learnt:.0%} of the tokens learnt"
        found.append(Row(work, "transformers", "time", ratio(seconds, "loralight", "transformers"), goal))
        share = peak_memory(by_loralight, learnt) / peak_memory(by_transformers, learnt)
        found.append(Row(work, "transformers", "peak memory", Ratio(share, share, share), most))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    torch.set_num_threads(1)
    show(rows(parser.parse_args().quick), "The loss of a language model")


if __name__ == "__main__":
    main()
