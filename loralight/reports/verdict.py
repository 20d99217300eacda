"""The numbers of a comparison in sentences."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from loralight.reports.groups import Group
from loralight.reports.intervals import margin_of_all_pairs
from loralight.reports.row_by_row import Pair

_LEVEL = 0.05  # of the sign tests of all pairs together (Bonferroni)


def verdict(
    groups: Sequence[Group], best: Group, metric: str, *, mode: str, pairs: Mapping[int, Pair] = MappingProxyType({})
) -> list[str]:
    """A sentence for each group, compared with the best group in score and cost.

    A difference is significant if its 95 % interval over seeds excludes zero: the pair's own, and that of all pairs
    together, as the best of many equal methods is ahead of some by chance. A single seed gives no interval.

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
    together, level = margin_together(groups, metric), _LEVEL / max(1, math.comb(len(groups), 2))
    for other in others:
        told = _beside(best, other, metric, mode=mode, together=together)
        lines.append(f"{told}{_of_rows(pairs[id(other)], level) if id(other) in pairs else ''}.")
    if any(len(group.runs) < 2 for group in groups):
        lines.append("Of a single seed no difference can be told from chance: several (seeds=5) say how sure it is.")
    return lines


def margin_together(groups: Sequence[Group], metric: str) -> float:
    """The margin of all differences between three or more groups, by the seeds that all have; 0 if it needs none."""
    scores = [group.by_seed(metric) for group in groups]
    common = sorted(set(scores[0]).intersection(*scores), key=str)
    if len(groups) < 3 or len(common) < 2:
        return 0.0
    return margin_of_all_pairs([[of_seed[seed] for seed in common] for of_seed in scores])


def _beside(best: Group, other: Group, metric: str, *, mode: str, together: float) -> str:
    ahead = best.ahead_of(other, metric)
    if ahead is None:
        return f"{other.name} has no run of a seed that {best.name} has: not compared"
    gain = ahead.mean if mode == "max" else -ahead.mean
    if ahead.margin is None:
        how = f"{gain:.4f} behind it" if gain else "as good"
        return f"{other.name} is {how}, in one seed{_price(best, other)}"
    margin = max(ahead.margin, together)
    if gain > margin:
        said = f"{other.name} is behind it by {gain:.4f} ± {margin:.4f}"
    else:
        said = f"{other.name} is not distinguishable from it (difference {gain:.4f} ± {margin:.4f})"
    return f"{said}{_price(best, other)}"


def _of_rows(pair: Pair, level: float) -> str:
    """Words on the rows that both answered: a difference needs the sign test and the interval to agree."""
    told = f"better on {pair.better} and worse on {pair.worse} of {pair.num_rows} rows"
    differ = pair.p < level and not pair.low <= 0 <= pair.high
    return f"; row by row the best is {told}, {'more than' if differ else 'as'} chance would give (p = {pair.p:.2g})"


def _price(best: Group, other: Group) -> str:
    """The costs of ``other`` as multiples of those of ``best``, where they differ by more than 5 %."""
    parts = []
    for what, names in (("trainable parameters", ("parameters", "trainable")), ("memory", ("bytes", "peak_memory"))):
        mine, others = best.cost(*names), other.cost(*names)
        if mine and others and not 0.95 < others / mine < 1.05:
            parts.append(f"{others / mine:.3g} times the {what}")
    return f", with {' and '.join(parts)}" if parts else ""
