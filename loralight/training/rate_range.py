"""``optimizer.lr=auto``: a learning-rate range test (Smith, 2015, https://arxiv.org/abs/1506.01186).

The rate rises from a hundredth of the method's own rate to a hundred times it, by the same factor at each step. The
loss falls until the rate is too high. A whole run at the last harmless rate would be at that edge all the time, so a
twelfth of it is taken (docs/recipes.md). The rate of the lowest loss is a poor guide: the loss is low over a decade of
rates or more, and a single batch decides where it is lowest.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

_LEAST_STEPS = 16  # with fewer, neighbouring rates are too far apart
_MOST_STEPS = 100
_SHARE = 0.08  # of the run's steps
_DECADES = 2.0  # to each side of the method's own rate
_BELOW = 12.0  # the edge, docs/recipes.md
_WINDOW = 5  # steps over which the loss is averaged
_LOST = 0.15  # share of the fall in loss that is lost again at the edge
_DIVERGED = 2.0  # times the first loss


def num_steps(of_run: int) -> int:
    """The steps of a range test for a run of ``of_run`` steps; 0 if the run is too short for a test."""
    steps = min(_MOST_STEPS, int(_SHARE * of_run))
    return steps if steps >= _LEAST_STEPS else 0


def find_rate(
    optimizer: Optimizer, step: Callable[[Any], float], batches: Sequence[Any], *, own: float
) -> float | None:
    """The learning rate that a range test finds; None if the loss does not fall, or there is no batch.

    A head with a rate of its own keeps it.

    Args:
        optimizer: over the groups of `parameter_groups`, at the method's own rate. Its parameters are changed.
        step: makes a training step with a batch, and returns the loss before the step.
        batches: a batch for each step.
        own: the method's own rate.
    """
    groups = [group for group in optimizer.param_groups if group["name"] != "head" or group["lr"] == own]
    rates, losses = [group["lr"] for group in groups], list[float]()
    factors = [10 ** (_DECADES * (2 * number / (len(batches) - 1) - 1)) for number in range(len(batches))]
    for factor, batch in zip(factors, batches, strict=True):
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        losses.append(step(batch))
        smooth = averaged(losses)
        if not smooth[-1] < _DIVERGED * losses[0]:  # nan too
            break
    edge = _edge(losses)
    return None if edge is None else own * factors[edge] / _BELOW


def averaged(losses: Sequence[float]) -> list[float]:
    """The mean of each loss and its neighbours, (losses,), over up to `_WINDOW` of them."""
    half = _WINDOW // 2
    windows = (losses[max(0, number - half) : number + half + 1] for number in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def _edge(losses: Sequence[float]) -> int | None:
    """The last step at which the loss is still near its lowest; None if it never fell."""
    smooth = [loss if math.isfinite(loss) else math.inf for loss in averaged(losses)]
    lowest = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    if lowest < _WINDOW:
        return None
    most = smooth[lowest] + _LOST * (smooth[0] - smooth[lowest])
    return max(step for step, loss in enumerate(smooth) if loss <= most)
