"""A comparison as a self-contained HTML page: no network, no script."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

from loralight.reports.groups import Group
from loralight.reports.pictures import Picture
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

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
    """
    from jinja2 import Environment  # the `report` extra

    source = files("loralight.reports").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            title=title,
            verdict=verdict,
            headings=headings(metrics),
            rows=rows_of(groups, metrics, best),
            caption=CAPTION,
            pictures=pictures,
            failures=failures,
            groups=groups,
        )
    )
