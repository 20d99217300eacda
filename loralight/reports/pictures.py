"""Pictures of a comparison by matplotlib (the ``report`` extra), as SVG in the colours of a page, light or dark."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from io import StringIO
from typing import Any, NamedTuple

from loralight.reports.groups import Group

_INK, _GRID = "#1f2328", "#d0d7de"
_OF_PAGE = {_INK: "var(--ink)", _GRID: "var(--line)"}
"""The page's own colours, which are others in the dark; matplotlib writes all colours into styles."""
_BLUE = "#2f81f7"
_MOST_CURVES = 12  # more could not be distinguished
_HALF, _LINE = 38, 0.17  # characters of a name that leaves room for another beside it; inches of a line of names


class Picture(NamedTuple):
    """A picture as SVG, with its title."""

    title: str
    svg: str


def pictures(groups: Sequence[Group], metric: str) -> list[Picture]:
    """The pictures for which the groups have numbers.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    scored = [group for group in groups if group.score(metric) is not None]
    made = []
    if number := numeric_setting(scored):
        made.append(_drawn(f"{metric} by {number[0]}", lambda axes: _by_setting(axes, scored, metric, *number)))
    if len(scored) > 1 and len({group.cost("parameters", "trainable") for group in scored}) > 1:
        made.append(_drawn(f"{metric} by trainable parameters", lambda axes: _by_share(axes, scored, metric)))
    for title, names, scale in (
        ("Peak memory, GB", ("bytes", "peak_memory"), 1e-9),
        ("Time of a step, ms", ("seconds_per_step",), 1e3),
        ("Adapter file, MB", ("bytes", "adapter"), 1e-6),
    ):
        costs = [(_short(group.name), scale * cost) for group in groups if (cost := group.cost(*names))]
        if costs:
            made.append(_drawn(title, partial(_bars, costs=costs), height=1.2 + 0.3 * len(costs)))
    followed = metric.replace("test/", "validation/")
    if any(_curve(group, followed) for group in groups):
        made.append(_drawn(f"{followed} while training", lambda axes: _curves(axes, groups, followed)))
    return made


def lines_by_step(title: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Picture:
    """A picture of numbers by optimizer step.

    Args:
        title: title of the picture.
        lines: names, with (step, number) pairs.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    return _drawn(title, lambda axes: _lines(axes, lines))


def reliability_diagram(lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Picture:
    """A picture of how often answers are right by their probability; a calibrated model's line is the diagonal.

    Args:
        lines: names, with (mean probability, share of right answers) pairs.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle="--", label="calibrated")
        _lines(axes, [(_short(name), points) for name, points in lines[:_MOST_CURVES]])
        axes.set_xlabel("probability of an answer")
        axes.set_ylabel("share that is right")

    return _drawn("How often answers of a probability are right", draw, height=4.2)


def numeric_setting(groups: Sequence[Group]) -> tuple[str, list[float]] | None:
    """The only setting in which groups of one adapter differ, such as ``adapter.rank``, and its values, if numbers."""
    labels = [re.fullmatch(r"([\w.]+)=([-+.\de]+)", group.label) for group in groups]
    if len(groups) < 2 or None in labels or len({label[1] for label in labels if label}) > 1:
        return None
    if len({group.adapter for group in groups}) > 1:
        return None
    try:
        return labels[0][1], [float(label[2]) for label in labels if label]  # type: ignore[index]
    except ValueError:
        return None


def _drawn(title: str, draw: Callable[[Any], None], *, height: float = 3.4) -> Picture:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: searchable, accessible and small
        "svg.hashsalt": title,  # the same numbers give the same bytes
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _GRID,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _GRID,
        "font.family": "sans-serif",
        "text.parse_math": False,  # a dollar in a label stays a dollar
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        draw(axes)
        written = StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    svg = written.getvalue()
    for colour, of_page in _OF_PAGE.items():
        svg = svg.replace(colour, of_page)
    return Picture(title, svg[svg.index("<svg") :])


def _by_setting(axes: Any, groups: Sequence[Group], metric: str, name: str, values: Sequence[float]) -> None:
    order = sorted(range(len(groups)), key=lambda place: values[place])
    scores = [score for place in order if (score := groups[place].score(metric)) is not None]
    ordered, margins = [values[place] for place in order], [score.margin or 0.0 for score in scores]
    axes.errorbar(ordered, [score.mean for score in scores], margins, fmt="o-", color=_BLUE, capsize=3)
    _scale(axes, ordered)
    axes.set_xticks(ordered, [f"{value:g}" for value in ordered])
    axes.set_xlabel(name)
    axes.set_ylabel(metric)


def _by_share(axes: Any, groups: Sequence[Group], metric: str) -> None:
    shares = []
    for number, group in enumerate(groups):
        score, learns = group.score(metric), group.cost("parameters", "trainable")
        total = group.cost("parameters", "total")
        if score is not None and learns is not None and total:
            shares.append(100 * learns / total)
            style = {"fmt": "o", "capsize": 3, "color": _colour(number), "label": _short(group.name)}
            axes.errorbar(shares[-1], score.mean, score.margin or 0.0, **style)
    _scale(axes, shares)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("parameters that learn, %")
    axes.set_ylabel(metric)
    _name_below(axes)


def _colour(number: int) -> str:
    """The colour of a group, by its place among all: the same in each picture."""
    return f"C{number % 10}"


def _name_below(axes: Any) -> None:
    """Write the names of colours below the picture, where they hide no point; it grows by their lines."""
    names = axes.get_legend_handles_labels()[1]
    columns = 2 if len(names) > 1 and max(map(len, names)) <= _HALF else 1
    figure = axes.figure
    figure.set_figheight(figure.get_figheight() + _LINE * -(-len(names) // columns))
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _scale(axes: Any, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic if the values are far apart."""
    if min(values) > 0 and max(values) / min(values) > 8:
        axes.set_xscale("log")
        axes.minorticks_off()


def _bars(axes: Any, costs: Sequence[tuple[str, float]]) -> None:
    places = range(len(costs))
    axes.barh(places, [cost for _, cost in costs], color=_BLUE)
    axes.set_yticks(places, [name for name, _ in costs], fontsize=8)
    axes.invert_yaxis()
    axes.bar_label(axes.containers[0], fmt=_number, padding=3, fontsize=8)
    axes.margins(x=0.12)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _curves(axes: Any, groups: Sequence[Group], metric: str) -> None:
    curves = [(_short(group.name), _curve(group, metric)) for group in groups[:_MOST_CURVES]]
    _lines(axes, curves)
    axes.set_ylabel(metric)


def _lines(axes: Any, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> None:
    for number, (name, points) in enumerate(lines):
        if points:
            style = {"marker": "." if len(points) < 50 else "", "color": _colour(number), "linewidth": 1.4}
            axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set_xlabel("optimizer step")
    _name_below(axes)


def _curve(group: Group, metric: str) -> list[tuple[float, float]]:
    """Steps and values of the group's first run, without the last value, which is that of the best checkpoint."""
    rows = [(row["step"], row[metric]) for row in group.runs[0].curve if "step" in row and metric in row]
    return rows[:-1] if len(rows) > 1 else rows


def _short(text: str, most: int = 44) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
