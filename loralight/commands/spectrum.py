"""``loralight spectrum``: the updates of a trained low-rank adapter, and the ranks that would have sufficed."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from loralight import logs
from loralight.adapters.spectrum import LayerSpectrum, proposed_overrides, spectrum
from loralight.artifacts.loading import load
from loralight.artifacts.output import refuse_existing
from loralight.config.composition import plain
from loralight.errors import InputError
from loralight.models.trust import trust_of

_PACKAGE = 'a picture needs matplotlib: pip install "loralight[report]"; leave out output= for the table alone'


def main(config: DictConfig) -> list[LayerSpectrum]:
    """The job that Hydra runs. Returns the layers' spectra."""
    logs.configure()
    settings = plain(config)
    output, energy = settings["output"], settings["energy"]
    if not isinstance(energy, int | float) or not 0 < energy <= 1:
        raise InputError("E-ENERGY", f"energy is {energy!r}; give a share of the updates' squared norm, such as 0.9")
    refuse_existing(output)
    task = load(settings["run"], base=settings["checkpoint"], device="cpu", **trust_of(settings))
    layers = spectrum(task.model)
    if not layers:
        raise InputError(
            "E-SPECTRUM", f"run={settings['run']}: {type(task.adapter).__name__} makes no low-rank updates to look at"
        )
    logs.show(table(layers, energy), f"\nranks that keep {energy:.0%} of each update:")
    logs.show(*(f"  {override}" for override in proposed_overrides(layers, energy)))
    if output:
        try:
            draw(layers, energy, Path(output))
        except ModuleNotFoundError as error:
            raise InputError("E-PACKAGE", _PACKAGE) from error
        logs.show(f"\npicture: {output}")
    return layers


def table(layers: Sequence[LayerSpectrum], energy: float) -> Table:
    """A table with a row for each layer, and the mean over layers."""
    made = Table(title="learned spectrum", title_justify="left")
    made.add_column("layer", overflow="fold")
    for column in ("|update|", "of |weight|", "rank", "effective", "used", f"for {energy:.0%}"):
        made.add_column(column, justify="right")
    rows = [
        (layer.norm, layer.relative_norm, len(layer.values), layer.effective_rank, layer.rank_for(energy))
        for layer in layers
    ]
    for layer, row in zip(layers, rows, strict=True):
        made.add_row(layer.name, *_cells(*row))
    made.add_section()
    made.add_row("mean", *_cells(*(sum(column) / len(rows) for column in zip(*rows, strict=True))))
    return made


def _cells(norm: float, relative: float, rank: float, effective: float, enough: float) -> list[str]:
    return [
        f"{norm:.3g}",
        f"{relative:.2%}",
        f"{rank:.3g}",
        f"{effective:.1f}",
        f"{effective / rank:.0%}",
        f"{enough:.3g}",
    ]


def draw(layers: Sequence[LayerSpectrum], energy: float, file: Path) -> None:
    """Draw each layer's singular values, and the norm of its update relative to its weight's.

    Args:
        energy: share of the squared norm; the rank that keeps it is marked.
        file: the PNG file to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import numpy as np
    from matplotlib.figure import Figure  # the `report` extra

    most = max(len(layer.values) for layer in layers)
    shares = np.full((len(layers), most), np.nan)
    for row, layer in zip(shares, layers, strict=True):
        values = layer.values.numpy()
        row[: len(values)] = values / max(values[0], 1e-300)
    letters = 8 if len(layers) <= 80 else 5
    height = max(2.5, min(0.2 * letters / 8 * len(layers) + 1.2, 60.0))
    longest = max(len(layer.name) for layer in layers) * letters * 0.6 / 72
    figure = Figure(figsize=(longest + 7.5, height), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    colours = left.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    places = range(len(layers))
    left.set_facecolor("0.85")  # where a layer has no more ranks
    left.plot(
        [layer.rank_for(energy) - 0.5 for layer in layers], places, "|", color="crimson", markersize=letters, mew=2
    )
    left.set_yticks(places, [layer.name for layer in layers], fontsize=letters)
    ticks = range(0, most, max(1, most // 8))
    left.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    left.set_xlabel(f"singular value (red: rank for {energy:.0%} of the squared norm)")
    figure.colorbar(colours, ax=left, label="over the layer's largest", aspect=30, pad=0.02)
    right.barh(places, [100 * layer.relative_norm for layer in layers], color="steelblue")
    right.set_xlabel("size of the update, % of the weight's")
    figure.savefig(file, format="png")
