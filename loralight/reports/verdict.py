"""The numbers of a comparison in sentences."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from loralight.reports.groups import Group
from loralight.reports.row_by_row import Pair


def verdict(
    groups: Sequence[Group], best: Group, metric: str, *, mode: str, pairs: Mapping[int, Pair] = MappingProxyType({})
) -> list[str]:
    """A sentence for each group, compared with the best group in score and cost.

    A difference is significant if the 95 % interval of the paired differences over seeds excludes zero. A single seed
    gives no interval.

    Args:
        groups: all groups, including ``best``.
        best: the group with the best mean.
        metric: the metric that chose it.
        mode: ``max`` or ``min``.
        pairs: the best group and each other one row by row, by the other's `id`.
    """
    score = best.score(metric)
    assert score is not None
    lines = [f"{best.name} has the best {metric}: {score}."]
    others = [other for other in groups if other is not best]
    lines += [_beside(best, other, metric, mode=mode, pair=pairs.get(id(other))) for other in others]
    if any(len(group.runs) < 2 for group in groups):
        lines.append("Of a single seed no difference can be told from chance: several (seeds=5) say how sure it is.")
    return lines


def _beside(best: Group, other: Group, metric: str, *, mode: str, pair: Pair | None) -> str:
    ahead = best.ahead_of(other, metric)
    if ahead is None:
        return f"{other.name} has no run of a seed that {best.name} has: not compared."
    gain = ahead.mean if mode == "max" else -ahead.mean
    margin = "" if ahead.margin is None else f" ± {ahead.margin:.4f}"
    if ahead.margin is None and not gain:
        said = f"{other.name} is as good, in one seed"
    elif ahead.margin is None:
        said = f"{other.name} is {gain:.4f} behind it, in one seed"
    elif ahead.excludes_zero and gain > 0:
        said = f"{other.name} is behind it by {gain:.4f}{margin}"
    else:
        said = f"{other.name} is not distinguishable from it (difference {gain:.4f}{margin})"
    return f"{said}{_price(best, other)}{_of_rows(pair) if pair else ''}."


def _of_rows(pair: Pair) -> str:
    """Words on the rows that both answered: a difference needs the sign test and the interval to agree."""
    told = f"better on {pair.better} and worse on {pair.worse} of {pair.num_rows} rows"
    differ = pair.p < 0.05 and not pair.low <= 0 <= pair.high
    return f"; row by row the best is {told}, {'more than' if differ else 'as'} chance would give (p = {pair.p:.2g})"


def _price(best: Group, other: Group) -> str:
    """The costs of ``other`` as multiples of those of ``best``, where they differ by more than 5 %."""
    parts = []
    for what, names in (("trainable parameters", ("parameters", "trainable")), ("memory", ("bytes", "peak_memory"))):
        mine, others = best.cost(*names), other.cost(*names)
        if mine and others and not 0.95 < others / mine < 1.05:
            parts.append(f"{others / mine:.3g} times the {what}")
    return f", with {' and '.join(parts)}" if parts else ""
