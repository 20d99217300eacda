"""``loralight combine``: a weighted sum of trained adapters, in a folder like any adapter's."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from loralight import logs
from loralight.artifacts.bank import load_many
from loralight.config.composition import plain
from loralight.errors import InputError
from loralight.logs import show
from loralight.models.trust import trust_of


def main(config: DictConfig) -> None:
    """The job that Hydra runs: loads the adapters on one base model, writes their sum."""
    logs.configure()
    settings = plain(config)
    runs, weights, rank = settings["runs"], settings["weights"], settings["rank"]
    if not _are(runs, str) or len(set(runs)) < len(runs) or not _are(weights, int | float) or len(runs) != len(weights):
        raise InputError(
            "E-WEIGHTS",
            f"runs={runs} and weights={weights}: give a list of different folders, and a list with a number for each",
        )
    if rank is not None and not isinstance(rank, int):
        raise InputError("E-RANK", f"rank is {rank!r}; give a whole number of at least 1, or null for an exact sum")
    bank = load_many({run: run for run in runs}, base=settings["checkpoint"], device="cpu", **trust_of(settings))
    errors = list(bank.combine(dict(zip(runs, weights, strict=True)), output=settings["output"], rank=rank).values())
    show(
        f"{settings['output']}: {len(errors)} layers. Lost to the rank, as a share of the update's norm: "
        f"{max(errors):.2g} in the worst layer, {sum(errors) / len(errors):.2g} on average"
    )


def _are(values: Any, kind: Any) -> bool:
    """Whether ``values`` is a list of values of that kind; a bool does not count as a number."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
