"""``loralight compare``: finished runs side by side."""

from pathlib import Path

from omegaconf import DictConfig

from loralight import logs
from loralight.artifacts.output import refuse_existing
from loralight.config.composition import plain
from loralight.errors import InputError
from loralight.reports.comparison import Comparison
from loralight.reports.runs import find_runs, read_run

_PACKAGE = 'a page needs matplotlib and jinja2: pip install "loralight[report]"; leave out output= for the table alone'


def main(config: DictConfig) -> Comparison:
    """The job that Hydra runs. Returns the comparison."""
    logs.configure()
    settings = plain(config)
    given, output = settings["runs"], settings["output"]
    refuse_existing(output)
    folders = [given] if isinstance(given, str) else given
    comparison = Comparison.of(
        [read_run(run) for run in find_runs([Path(str(one)) for one in folders])], settings["metric"]
    )
    logs.show(*comparison.shown())
    if output:
        try:
            files = comparison.write(
                Path(output), f"{len(comparison.runs)} runs of {comparison.runs[0].summary['task']}"
            )
        except ModuleNotFoundError as error:
            raise InputError("E-PACKAGE", _PACKAGE) from error
        logs.show("", *(f"report: {file}" for file in files))
    return comparison
