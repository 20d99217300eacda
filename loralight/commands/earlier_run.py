"""``forgetting=run``: the score of another run's task, by that run's head on the layers of the run that trains."""

import os
from pathlib import Path

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from loralight.artifacts.run_folder import CONFIG
from loralight.artifacts.run_settings import with_those_of_a_run
from loralight.commands.evaluate import read_trained
from loralight.commands.measuring import check_split
from loralight.config.composition import settings_of
from loralight.config.overrides import quoted
from loralight.errors import InputError
from loralight.resources import resolve
from loralight.training.forgetting.own_head import lend_
from loralight.training.forgetting.probe import ForgettingProbe, Measured, check_count
from loralight.training.step import measure_
from loralight.training.task import AdapterTask


class EarlierRun(ForgettingProbe):
    """Measures whether a run still does another run's task; of use where it starts from that run (``init=``).

    The other run's adapter is not used. With the adapter of this run off, that head reads the base's features.

    Args:
        run: the other run's folder.
        split: of its data, validation or test.
        rows: most rows that are read.

    Raises:
        InputError: there is no such run (``E-RUN``), or no such split (``E-SPLIT``).
    """

    def __init__(self, *, run: str, split: str = "validation", rows: int = 200) -> None:
        check_split(split)
        check_count("rows", rows)
        if not os.path.lexists(Path(run) / CONFIG):
            raise InputError("E-RUN", f"forgetting.run={run}: not a run's folder (it has no {CONFIG})")
        self.run, self.split, self.rows = run, split, rows

    def prepare(self, task: AdapterTask) -> None:
        given = [quoted(f"run={self.run}"), f"split={self.split}", f"data.limit_eval_rows={self.rows}"]
        words = with_those_of_a_run("evaluate", given)
        _, self._other, self._data = read_trained(settings_of("evaluate", words, Path(self.run)))
        self._check_base(task)
        model = self._other.to(task.device).eval().model
        self._other.accelerations.detach_(model)
        lend_(model, self._other.head(model), task)
        self._data.suit_(model)

    def measure(self, task: AdapterTask, base: Tensor | None) -> Measured:
        metrics = self._other.metrics().to(task.device)
        loader = self._data.test_dataloader() if self.split == "test" else self._data.val_dataloader()
        outputs = []
        for batch in loader:
            step = self._other.step(move_data_to_device(batch, task.device))
            measure_(metrics, step)
            outputs.append(step.predictions.flatten().float())
        return Measured(
            scores={name: float(value) for name, value in metrics.compute().items()}, outputs=torch.cat(outputs)
        )

    def _check_base(self, task: AdapterTask) -> None:
        theirs, ours = (str(one.arguments.get("checkpoint")) for one in (self._other, task))
        if Path(resolve(theirs)).resolve() != Path(resolve(ours)).resolve():
            raise InputError(
                "E-FORGETTING",
                f"forgetting.run={self.run} is of {theirs}, and this run of {ours}: its head reads no other features",
            )
