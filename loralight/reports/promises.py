"""LoRA's promises, each held or not beside full fine-tuning on the same rows: from the runs' numbers alone."""

import math
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from loralight.logs import human
from loralight.reports.groups import Group, direction
from loralight.reports.intervals import estimate
from loralight.reports.runs import FORGETTING, FinishedRun
from loralight.reports.tables import best_of

HELD, NOT_HELD, NOT_TOLD, NOT_MEASURED = "held", "not held", "not told apart", "not measured"
PROMISES_CAPTION = (
    "LoRA beside full fine-tuning, in pairs of runs with equal seeds, with intervals of 95 %. Held: the whole interval "
    "is on LoRA's side; not held: it is on the other side; of quality, held is also an interval around zero that ends "
    "above a loss of 1 % of full fine-tuning's score. Generalisation gap: the last validation loss less the mean "
    "training loss of that epoch."
)
_LORA, _FULL = "loralight.adapters.Lora", "loralight.adapters.FullFineTuning"
_LEVEL = 0.01  # as MLPerf asks for 99 % of a reference's quality (Reddi et al., 2020, https://arxiv.org/abs/1911.02549)

Pairs = Sequence[tuple[FinishedRun, FinishedRun]]
Numbers = Sequence[tuple[float, float]]


def promises(groups: Sequence[Group], metric: str, *, mode: str, together: float = 0.0) -> list[list[list[str]]]:
    """For each group of LoRA's runs a table, if full fine-tuning has runs of the same base on the same training rows.

    Of several groups of full fine-tuning, the one with the best mean is taken.

    Args:
        groups: groups of runs.
        metric: the metric of quality.
        mode: ``max`` or ``min``.
        together: the least margin of a difference in quality, if more than two groups are compared.

    Returns:
        Tables of text: headings, then a row for each promise: its name, whether it is held, and the numbers.
    """
    tables = []
    for lora in (group for group in groups if _is(group, _LORA)):
        beside = [group for group in groups if _is(group, _FULL) and _pairs(lora, group)]
        if (full := best_of(beside, metric, mode=mode)) is not None:
            rows = _rows(_pairs(lora, full), metric, sign=1 if mode == "max" else -1, together=together)
            ordered = [[name, mark, *numbers] for name, *numbers, mark in rows]
            tables.append([["promise", "", lora.name, full.name, "LoRA beside it"], *ordered])
    return tables


def _is(group: Group, target: str) -> bool:
    return group.runs[0].settings.get("adapter._target_") == target


def _pairs(lora: Group, full: Group) -> Pairs:
    """Runs with the same seed, base and training rows."""
    others = {_alike(run): run for run in full.runs}
    return [(run, others[_alike(run)]) for run in lora.runs if _alike(run) in others]


def _alike(run: FinishedRun) -> tuple[Any, ...]:
    data = run.summary.get("data", {})
    return run.summary.get("seed"), run.settings.get("model.checkpoint"), str(data.get("digests", {}).get("train"))


def _rows(pairs: Pairs, metric: str, *, sign: int, together: float) -> list[list[str]]:
    forgotten = sorted({name for both in pairs for run in both for name in run.forgotten})
    return [
        _ratio("few parameters", pairs, ("parameters", "trainable"), "{:,.0f}".format),
        _ratio("little memory", pairs, ("bytes", "peak_memory"), human, is_exact=False),
        _ratio("speed: seconds a step", pairs, ("seconds_per_step",), "{:.3g}".format, is_exact=False),
        _ratio("a small file", pairs, ("bytes", "adapter"), human),
        _difference(f"quality: {metric}", _scores(pairs, metric), sign, together, level=_LEVEL),
        *(
            _difference(f"little forgotten: {name.removeprefix(FORGETTING)}", _scores(pairs, name), direction(name))
            for name in forgotten
        ),
        *([] if forgotten else [["little forgotten", "", "", "", NOT_MEASURED]]),
        _difference("a small generalisation gap", _known(pairs, lambda run: run.generalisation_gap), -1),
    ]


def _scores(pairs: Pairs, metric: str) -> Numbers:
    return _known(pairs, lambda run: run.score(metric))


def _known(pairs: Pairs, read: Callable[[FinishedRun], float | None]) -> Numbers:
    """Both numbers of each pair that has both."""
    both = ((read(one), read(other)) for one, other in pairs)
    return [(one, other) for one, other in both if one is not None and other is not None]


def _ratio(
    name: str, pairs: Pairs, of: Sequence[str], shown: Callable[[float], str], *, is_exact: bool = True
) -> list[str]:
    """The row of a cost: LoRA's as a multiple of full fine-tuning's, by the mean of logarithms.

    Args:
        of: names of a number in a summary.
        is_exact: whether it is counted, and not measured: a single seed tells it then.
    """
    values = _known(pairs, lambda run: run.number(*of) or None)  # what was solved for has no seconds of a step
    if not values:
        return [name, "", "", "", NOT_MEASURED]
    ratio = estimate([math.log(one / other) for one, other in values])
    margin = 0.0 if is_exact and ratio.margin is None else ratio.margin
    said = [name, *(shown(mean(side)) for side in zip(*values, strict=True))]
    times = f"{math.exp(ratio.mean):.3g} times"
    if margin is None:
        return [*said, f"{times}, one seed", NOT_TOLD]
    low, high = (f"{math.exp(ratio.mean + way * margin):.3g}" for way in (-1, 1))
    interval = f" ({low} to {high})" if low != high else ""
    return [*said, f"{times}{interval}", _held(-ratio.mean, margin)]


def _difference(name: str, values: Numbers, sign: int, together: float = 0.0, *, level: float = 0.0) -> list[str]:
    """The row of a score.

    Args:
        sign: 1 if higher is better, else -1.
        together: the least margin.
        level: the share of full fine-tuning's score by which an interval around zero may fall short.
    """
    if not values:
        return [name, "", "", "", NOT_MEASURED]
    difference = estimate([one - other for one, other in values])
    lora, full = (mean(side) for side in zip(*values, strict=True))
    said = [name, f"{lora:.4f}", f"{full:.4f}"]
    if difference.margin is None:
        return [*said, f"{difference.mean:+.4f}, one seed", NOT_TOLD]
    margin = max(difference.margin, together)
    held = _held(sign * difference.mean, margin, level=level * abs(full))
    return [*said, f"{difference.mean:+.4f} ± {margin:.4f}", held]


def _held(gain: float, margin: float, *, level: float = 0.0) -> str:
    """Held if the interval of a gain begins above ``-level``, unless all of it lies below zero."""
    if gain + margin < 0:
        return NOT_HELD
    return HELD if gain - margin > -level else NOT_TOLD
