"""``loralight ranks``: scores at lower ranks, from a single run at a high rank, and the least rank that is as good."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from rich.table import Table

from loralight import logs
from loralight.adapters.layers.lora import LoraLayer
from loralight.adapters.rank_cut import alike, by_energy, cut_to, energy_kept
from loralight.adapters.spectrum import LayerSpectrum, spectrum
from loralight.artifacts.bank import load_many
from loralight.artifacts.output import refuse_existing
from loralight.commands.evaluate import read_trained
from loralight.config.build import build_trainer, monitored
from loralight.config.composition import plain
from loralight.errors import InputError
from loralight.models.trust import trust_of
from loralight.reports.intervals import Estimate, estimate
from loralight.training.jackknife import pseudo_values, scores_of
from loralight.training.launch import world_size

_WAYS: Mapping[str, Callable[[Sequence[LayerSpectrum], int], dict[str, int]]] = {"alike": alike, "by energy": by_energy}
_TIE = 1.05  # the standard error of a difference of one item is that difference, but for rounding and uneven groups
_PACKAGE = 'a picture needs matplotlib: pip install "loralight[report]"; leave out picture= for the table alone'


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trained update at a lower rank.

    Args:
        rank: number of directions that a layer keeps, on average over layers.
        way: the choice of directions, a name in `_WAYS`.
        energy: the share of the updates' squared norm that is kept.
        score: the metric.
        behind: the difference by which the score is worse than the whole update's, with its interval.
        error: standard error of this difference; None if there are too few rows for it.
    """

    rank: int
    way: str
    energy: float
    score: float
    behind: Estimate
    error: float | None

    @property
    def is_as_good(self) -> bool:
        """Whether its score is within one standard error of the whole update's."""
        return self.behind.mean <= _TIE * (self.error or 0.0)


def main(config: DictConfig) -> list[Point]:
    """The job that Hydra runs. Returns the curve.

    Raises:
        InputError: the run has no low-rank layers (``E-SPECTRUM``), or as `loralight evaluate`.
    """
    logs.configure()
    settings = plain(config)
    if (several := world_size(settings["trainer"])) > 1:
        raise InputError(
            "E-DEVICES",
            f"loralight ranks runs in one process, and here are {several}: it cuts one model's update again and again. "
            "Give trainer.devices=1",
        )
    run, output, picture = settings["run"], settings["output"], settings["picture"]
    refuse_existing(output)
    refuse_existing(picture)
    points, metric = _curve(settings)
    logs.show(_table(points, f"{settings['split']}/{metric}"))
    best = least_as_good(points)
    if best is None:
        logs.show("each lower rank is worse than the run's own")
    else:
        logs.show(f"the least rank within one standard error of the run's own: adapter.rank={best}")
    if output and best is not None:
        load_many({"run": run}, device="cpu", **trust_of(settings)).combine({"run": 1.0}, output=output, rank=best)
        logs.show(f"adapter of rank {best}: {output}")
    if picture:
        try:
            _draw(points, f"{settings['split']}/{metric}", Path(picture))
        except ModuleNotFoundError as error:
            raise InputError("E-PACKAGE", _PACKAGE) from error
        logs.show(f"picture: {picture}")
    return points


def least_as_good(points: Sequence[Point]) -> int | None:
    """The least rank such that it and all higher ranks are as good as the whole update; None if each rank is worse.

    All layers have the same rank here. The criterion is the one-standard-error rule (Breiman et al., 1984): on other
    rows a score would vary by as much.
    """
    least = None
    for point in sorted((point for point in points if point.way == "alike"), key=lambda point: -point.rank):
        if not point.is_as_good:
            break
        least = point.rank
    return least


def _curve(settings: dict[str, Any]) -> tuple[list[Point], str]:
    """The points from the highest rank to the lowest, and the metric's name."""
    config, task, data = read_trained(settings)
    metric, sign = monitored(settings, data).partition("/")[2], 1 if settings["monitor"]["mode"] == "max" else -1
    layers = {name: layer for name, layer in task.model.named_modules() if isinstance(layer, LoraLayer)}
    if not layers:
        raise InputError(
            "E-SPECTRUM", f"run={settings['run']}: {type(task.adapter).__name__} makes no low-rank updates to cut"
        )
    data.suit_(task.model)
    trainer = build_trainer({**config, "callbacks": {}, "logger": {}}, Path(), [])
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    precision.convert_module(task)
    task.to(device).eval()
    loader = data.test_dataloader() if settings["split"] == "test" else data.val_dataloader()

    def measured() -> list[float]:
        batches = (move_data_to_device(precision.convert_input(batch), device) for batch in loader)
        return scores_of(task, batches, metric, num_batches=len(loader), precision=precision.forward_context)

    spectra, whole, points = spectrum(task.model), measured(), list[Point]()
    own = {layer.name: len(layer.values) for layer in spectra}
    for rank in _lower(max(len(layer.values) for layer in spectra)):
        for way, ranks_of in _WAYS.items():
            ranks = ranks_of(spectra, rank)
            scores = whole
            if ranks != own:  # else nothing is cut
                with cut_to(layers, ranks):
                    scores = measured()
            behind, error = difference_of([sign * score for score in whole], [sign * score for score in scores])
            energy = energy_kept(spectra, ranks)
            points.append(Point(rank=rank, way=way, energy=energy, score=scores[0], behind=behind, error=error))
    return points, metric


def difference_of(whole: Sequence[float], scores: Sequence[float]) -> tuple[Estimate, float | None]:
    """The difference of two scores on the same rows with its interval, and its standard error."""
    difference = whole[0] - scores[0]
    if len(whole) == 1:
        return Estimate(difference), None
    values = pseudo_values(whole, scores)
    return Estimate(difference, estimate(values).margin), stdev(values) / math.sqrt(len(values))


def _lower(rank: int) -> list[int]:
    """The rank and all powers of two below it, from the highest."""
    return sorted({rank, *(2**power for power in range(rank.bit_length()) if 2**power < rank)}, reverse=True)


def _table(points: Sequence[Point], metric: str) -> Table:
    table = Table(title="trained update at lower ranks", title_justify="left")
    for column in ("rank", "directions kept", "of the update", metric.replace("/", "\n", 1), "behind the run's"):
        table.add_column(column, justify="left" if column == "directions kept" else "right")
    for point in points:
        table.add_row(str(point.rank), point.way, f"{point.energy:.1%}", f"{point.score:.4f}", str(point.behind))
    return table


def _draw(points: Sequence[Point], metric: str, file: Path) -> None:
    from matplotlib.figure import Figure  # the `report` extra

    figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for way, marker in zip(_WAYS, ("o-", "s--"), strict=True):
        found = sorted((point for point in points if point.way == way), key=lambda point: point.rank)
        margins = [point.behind.margin or 0.0 for point in found]
        ranks, scores = [point.rank for point in found], [point.score for point in found]
        axes.errorbar(ranks, scores, margins, fmt=marker, capsize=3, label=f"directions kept: {way}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_xlabel("rank (bars: 95 % interval of the difference to the whole update)")
    axes.set_ylabel(metric)
    axes.grid(True, linewidth=0.5)
    axes.legend(frameon=False)
    figure.savefig(file, format="png")
