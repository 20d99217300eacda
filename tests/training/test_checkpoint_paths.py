"""Paths in a run's checkpoints: relative to the run, so that it can be moved, and never outside of it."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from loralight.errors import InputError
from loralight.training.checkpoint_paths import CheckpointPaths

InProcess = Callable[..., int]


def hooks(run: Path, dirpath: Path) -> tuple[CheckpointPaths, Any, ModelCheckpoint]:
    """Ours, a trainer with one callback, and that callback."""
    callback = ModelCheckpoint(dirpath=dirpath, monitor="x")
    return CheckpointPaths(run), SimpleNamespace(checkpoint_callbacks=[callback]), callback


def saved(run: Path, dirpath: Path, *names: str) -> dict[str, Any]:
    """A checkpoint whose callback has chosen the folders of these names, as it is written."""
    paths, trainer, callback = hooks(run, dirpath)
    for number, name in enumerate(names):
        (dirpath / name).mkdir(parents=True)
        callback.best_k_models[str(dirpath / name)] = number  # type: ignore[assignment]
    callback.best_model_path = callback.last_model_path = str(dirpath / names[0])
    checkpoint = {"callbacks": {callback.state_key: callback.state_dict()}}
    paths.on_save_checkpoint(trainer, None, checkpoint)  # type: ignore[arg-type]
    return deepcopy(checkpoint)


def loaded(run: Path, dirpath: Path, checkpoint: dict[str, Any]) -> ModelCheckpoint:
    paths, trainer, callback = hooks(run, dirpath)
    paths.on_load_checkpoint(trainer, None, checkpoint)  # type: ignore[arg-type]
    if callback.state_key in checkpoint["callbacks"]:
        callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    return callback


@pytest.mark.filterwarnings("error:The dirpath has changed")
def test_a_moved_run_knows_its_checkpoints(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "run", tmp_path / "run" / "checkpoints" / "best", "a", "b")
    (state,) = checkpoint["callbacks"].values()
    assert state["dirpath"] == "checkpoints/best" and state["best_model_path"] == "checkpoints/best/a"
    assert str(tmp_path) not in repr(checkpoint)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    found = loaded(moved, moved / "checkpoints" / "best", checkpoint)
    best = moved / "checkpoints" / "best"
    assert found.best_k_models == {str(best / "a"): 0, str(best / "b"): 1}
    assert found.best_model_path == found.last_model_path == str(best / "a")
    assert found.kth_best_model_path == ""


@pytest.mark.filterwarnings("error:The dirpath has changed")
def test_a_checkpoint_with_absolute_paths_is_read_where_its_run_lies_now(tmp_path: Path) -> None:
    """Absolute: as they were written once."""
    best = tmp_path / "run" / "checkpoints" / "best"
    saved(tmp_path / "run", best, "a")
    callback = ModelCheckpoint(dirpath=best, monitor="x")
    callback.best_model_path, callback.best_k_models = str(best / "a"), {str(best / "a"): 1}  # type: ignore[dict-item]
    checkpoint = {"callbacks": {callback.state_key: callback.state_dict()}}
    moved = (tmp_path / "run").rename(tmp_path / "moved") / "checkpoints" / "best"
    assert loaded(tmp_path / "moved", moved, checkpoint).best_k_models == {str(moved / "a"): 1}


def test_a_folder_of_the_users_for_checkpoints_is_taken_from_the_command_alone(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "run", tmp_path / "large disk", "a")
    found = loaded(tmp_path / "run", tmp_path / "large disk", deepcopy(checkpoint))
    assert found.best_model_path == str(tmp_path / "large disk" / "a")
    (state,) = checkpoint["callbacks"].values()
    state["last_model_path"] = str(tmp_path / "another disk" / "a")  # below no folder that the state names
    with pytest.raises(InputError, match="E-CKPT-PATH"):
        loaded(tmp_path / "run", tmp_path / "large disk", checkpoint)


def test_what_was_best_and_is_gone_is_chosen_anew(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "run", tmp_path / "run" / "checkpoints" / "best", "a", "b")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "best" / "a")
    found = loaded(tmp_path / "run", tmp_path / "run" / "checkpoints" / "best", checkpoint)
    assert (found.best_model_path, found.best_k_models) == ("", {})


KEYS = ["best_k_models", "best_model_path", "kth_best_model_path", "last_model_path", "dirpath"]
OUT = ["../victim", "checkpoints/../../victim", "/etc", ".", "checkpoints/best/link", "adapter"]


@pytest.mark.parametrize(("key", "path"), sorted({*product(KEYS, OUT)} - {("dirpath", "/etc")}))
def test_a_path_out_of_the_checkpoints_is_refused(key: str, path: str, tmp_path: Path) -> None:
    best = tmp_path / "run" / "checkpoints" / "best"
    checkpoint = saved(tmp_path / "run", best, "a")
    (tmp_path / "victim").mkdir()
    (best / "link").symlink_to(tmp_path / "victim")
    (state,) = checkpoint["callbacks"].values()
    state[key] = {path: 1} if key == "best_k_models" else path
    with pytest.raises(InputError, match="E-CKPT-PATH"):
        loaded(tmp_path / "run", best, checkpoint)


def test_where_the_checkpoints_lay_before_is_where_they_lie_now(tmp_path: Path) -> None:
    best = tmp_path / "run" / "checkpoints" / "best"
    checkpoint = saved(tmp_path / "run", best, "a")
    (state,) = checkpoint["callbacks"].values()
    state["dirpath"] = "/etc"  # absolute, as all were once
    assert loaded(tmp_path / "run", best, checkpoint).dirpath == str(best)


@pytest.mark.parametrize("change", [{"best_k_models": 3}, {"best_model_path": 3}, {"dirpath": None}, {"dirpath": "\0"}])
def test_a_state_that_no_callback_writes_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "run", tmp_path / "run" / "checkpoints" / "best", "a")
    (state,) = checkpoint["callbacks"].values()
    state.update(change)
    with pytest.raises(InputError, match="E-CKPT-STATE"):
        loaded(tmp_path / "run", tmp_path / "run" / "checkpoints" / "best", checkpoint)


def test_a_run_that_was_moved_keeps_its_best_checkpoint(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    first_is_best = ["monitor.metric=step", "monitor.mode=min"]
    assert in_process("train", *tiny_run, *first_is_best, "hydra.run.dir=run") == 0
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    (best,) = (moved / "checkpoints" / "best").iterdir()
    tensors = {name.rpartition(".state_dict.")[2]: t for name, t in load_file(best / "tensors.safetensors").items()}
    assert in_process("train", "resume=moved", "trainer.max_epochs=2") == 0
    assert list((moved / "checkpoints" / "best").iterdir()) == [best]
    last = load_file(moved / "adapter" / "adapter_model.safetensors")
    (name,) = [name for name in last if name.endswith("layer.0.attention.self.query.lora_B.weight")]
    (same,) = [t for key, t in tensors.items() if key.endswith("layer.0.attention.self.query.lora_B")]
    assert last[name].equal(same)
