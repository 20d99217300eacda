"""A comparison as a self-contained HTML page: no network, no script."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from loralight.reports.examples import Example
from loralight.reports.groups import Group
from loralight.reports.mistakes import Grid
from loralight.reports.pictures import Picture
from loralight.reports.promises import PROMISES_CAPTION
from loralight.reports.tables import headings, rows_of

CAPTION = "* the best mean. ± half of a 95 % interval over seeds. Costs are medians over seeds."


def page(
    groups: Sequence[Group],
    metrics: Sequence[str],
    best: Group | None,
    *,
    title: str,
    verdict: Sequence[str],
    pictures: Sequence[Picture],
    failures: Mapping[str, str],
    by_rows: Sequence[Sequence[str]] = (),
    beside: Sequence[Sequence[str]] = (),
    promises: Sequence[Sequence[Sequence[str]]] = (),
    mistakes: Sequence[Grid] = (),
    examples: Sequence[Example] = (),
    examples_are_texts: bool = False,
) -> str:
    """The page as HTML. All text from runs is escaped, since a run's folder may be a stranger's.

    Args:
        groups: groups of runs.
        metrics: the columns of scores.
        best: the group to mark.
        title: title of the page.
        verdict: sentences on the numbers.
        pictures: from `pictures.pictures`.
        failures: error messages by the names of jobs that failed.
        by_rows: from `tables.rows_table`.
        beside: from `beside_quality.rows_beside`.
        promises: from `promises.promises`.
        mistakes: from `mistakes.mistakes`.
        examples: from `examples.examples`.
        examples_are_texts: whether they are texts without right and wrong.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
    """
    return render(
        "page.html.jinja",
        title=title,
        verdict=verdict,
        headings=headings(metrics),
        rows=rows_of(groups, metrics, best),
        caption=CAPTION,
        pictures=pictures,
        failures=failures,
        groups=groups,
        by_rows=by_rows,
        beside=beside,
        promises=promises,
        promises_caption=PROMISES_CAPTION,
        mistakes=mistakes,
        examples=examples,
        examples_are_texts=examples_are_texts,
    )


def render(template: str, **values: Any) -> str:
    """A page from one of our templates, in which every value is escaped.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
    """
    from jinja2 import Environment, FunctionLoader  # the `report` extra

    folder = files("loralight.reports")
    loader = FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    return Environment(autoescape=True, loader=loader).get_template(template).render(**values)
