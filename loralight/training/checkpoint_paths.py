"""The paths in checkpoints of a run's best and last checkpoints: relative to the run, and never outside of it."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

from loralight.errors import InputError

_PATHS = ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path")


class CheckpointPaths(lightning.Callback):
    """Rewrites the paths in the saved states of ``ModelCheckpoint``, which deletes the folders at these paths.

    So a run that was moved keeps its best checkpoint, and a stranger's run cannot name a folder of the user's. A
    folder that the user has chosen for the checkpoints is allowed too.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run.absolute()

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for callback, states in _states(trainer, checkpoint):
            states[callback.state_key] = _with_paths(states[callback.state_key], self._relative)

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for callback, states in _states(trainer, checkpoint):
            state = _with_paths(states[callback.state_key], partial(self._inside, callback, states[callback.state_key]))
            if state["best_model_path"] and not Path(state["best_model_path"]).is_dir():
                del states[callback.state_key]  # the best checkpoint is gone, so it is chosen anew
            else:
                states[callback.state_key] = state

    def _relative(self, path: str) -> str:
        place = Path(os.path.realpath(path))
        root = self._run.resolve()
        return place.relative_to(root).as_posix() if place.is_relative_to(root) else str(place)

    def _inside(self, callback: ModelCheckpoint, state: dict[str, Any], path: str) -> str:
        own, before = Path(str(callback.dirpath)), Path(state["dirpath"])
        if before.is_absolute() and Path(path).is_relative_to(before):  # an older checkpoint; the run was moved
            path = str(own / Path(path).relative_to(before))
        place = (self._run / path).resolve()
        if not any(place.is_relative_to(folder.resolve()) for folder in (self._run / "checkpoints", own)):
            raise InputError(
                "E-CKPT-PATH", f"{self._run}: a checkpoint names {path[:200]!r}, which is none of the run's checkpoints"
            )
        return str(place)


def _states(trainer: lightning.Trainer, checkpoint: dict[str, Any]) -> Iterator[tuple[ModelCheckpoint, dict[str, Any]]]:
    states = checkpoint.get("callbacks", {})
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
            yield callback, states


def _with_paths(state: dict[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """A copy of ``state`` with ``place`` applied to each path; an empty path means that there is none yet.

    Raises:
        InputError: ``state`` is not the state of a ``ModelCheckpoint`` (``E-CKPT-STATE``).
    """
    try:
        paths = {key: state[key] and place(state[key]) for key in _PATHS}
        chosen = {place(path): score for path, score in state["best_k_models"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError("E-CKPT-STATE", f"the state of a ModelCheckpoint is not what one writes: {error!r}") from error
    return {**state, **paths, "best_k_models": chosen}
