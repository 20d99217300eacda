"""Measures, before and after training, what the base model could do, with the adapter on and off."""

from collections.abc import Mapping
from contextlib import nullcontext
from time import perf_counter

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from loralight.adapters.disabled import disabled
from loralight.errors import InputError
from loralight.logs import logger
from loralight.training.forgetting.probe import ForgettingProbe, Measured
from loralight.training.memory import uncounted
from loralight.training.task import AdapterTask


class Forgetting:
    """What a run's probe finds before and after training.

    Training is not affected: random numbers are drawn apart, and peak memory is not counted where it can be reset.

    Args:
        probe: what is measured.
        trainer: gives device and precision.
    """

    def __init__(self, probe: ForgettingProbe, trainer: lightning.Trainer) -> None:
        self._probe, self._trainer = probe, trainer
        self._base: Measured
        self._before: Mapping[str, float]
        self.stays_on: str | None = None
        """Why the adapter cannot be switched off; None if it can be."""

    def begin(self, task: AdapterTask) -> None:
        """Measure the base model, before anything has been learned or loaded.

        Raises:
            InputError: this model has not what is to be measured (``E-FORGETTING``).
        """
        self._trainer.precision_plugin.convert_module(task)  # as training will, so that numbers can be compared
        self.stays_on = _why_on(task)
        started = perf_counter()
        task.to(self._trainer.strategy.root_device)
        with isolate_rng(), uncounted(), task.unaccelerated():
            self._probe.prepare(task)
        loaded, started = perf_counter() - started, perf_counter()
        self._base = self._measure(task, None, off=self.stays_on is None)
        self._before = self._base.scores
        took = perf_counter() - started
        logger.info(
            "forgetting: %s before training; %.1f s to prepare, %.1f s each time", _told(self._before), loaded, took
        )

    def start(self, task: AdapterTask) -> None:
        """Measure where training starts, if that is not at the base model."""
        self._before = self._measure(task, self._base.outputs).scores

    def end(self, task: AdapterTask) -> dict[str, float]:
        """Measure the trained model, and the base model in it.

        Returns:
            By metrics' names, each score after training, ``_before`` it, and afterwards with the adapter ``_off``.
        """
        after = self._measure(task, self._base.outputs).scores
        logger.info("forgetting: %s before training, %s after it", _told(self._before), _told(after))
        off = {} if self.stays_on is not None else self._compared(task)
        parts = {"": after, "_before": self._before, "_off": off}
        return {f"forgetting/{name}{part}": score for part, scores in parts.items() for name, score in scores.items()}

    def _compared(self, task: AdapterTask) -> Mapping[str, float]:
        """The scores with the adapter off, once its outputs are compared with the base model's."""
        off = self._measure(task, self._base.outputs, off=True)
        same = torch.equal(off.outputs, self._base.outputs)
        how = "exactly what the base model computed" if same else f"{_told(off.scores)}, which is NOT the base model's"
        logger.info("forgetting: with the adapter off the model computes %s", how)
        return off.scores

    def _measure(self, task: AdapterTask, base: Tensor | None, *, off: bool = False) -> Measured:
        task.to(self._trainer.strategy.root_device)
        precision = self._trainer.precision_plugin.forward_context
        switched = disabled(task.model) if off else nullcontext()
        with isolate_rng(), uncounted(), torch.no_grad(), precision(), task.unaccelerated(), switched:
            return self._probe.measure(task, base)


def _why_on(task: AdapterTask) -> str | None:
    try:
        with disabled(task.model):
            return None
    except InputError as error:
        logger.info("forgetting: no measure with the adapter off: %s", str(error).partition(": ")[2])
        return str(error)


def _told(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
