"""Checkpoints as folders of safetensors and JSON: whole or absent, checked when read, without pickle."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralight.errors import InputError
from loralight.plain_yaml import read_regular

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
MAX_STATE = 16 * 2**20
"""Bytes of a checkpoint's state: a large model's has one, names of its tensors for the most part."""
_UNFINISHED = ".loralight-"  # in the names of folders that are not whole


class FolderCheckpointIO(CheckpointIO):
    """Writes and reads Lightning's checkpoint dictionary as a folder.

    ``tensors.safetensors`` holds its tensors, ``state.json`` all else, ``manifest.json`` the sha256 of both. The
    folder is built under a hidden name beside its own and renamed when every byte is on disk, so that a kill or a
    full disk at any moment leaves the folder whole or absent.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            TypeError: the checkpoint holds something that is neither a tensor nor plain data.
        """
        tensors: dict[str, Tensor] = {}
        state = _encode(checkpoint, "checkpoint", tensors)

        def fill(folder: Path) -> None:
            save_file(tensors, folder / TENSORS)
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

        for left in Path(path).parent.glob(f".*{_UNFINISHED}*"):  # by a process that was killed: a run has one
            shutil.rmtree(left, ignore_errors=True)
        write_folder(Path(path), fill)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint that `save_checkpoint` wrote; its tensors are on CPU.

        Raises:
            InputError: the folder is not whole (``E-CKPT-HASH``), or holds something else (``E-CKPT-STATE``).
        """
        folder = Path(path)
        verify(folder)
        state = _read_state(folder)
        try:
            decoded = _decode(state, load_file(folder / TENSORS))
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError("E-CKPT-STATE", f"{folder} does not hold what a checkpoint does: {error!r}") from error
        assert isinstance(decoded, dict)
        return decoded

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        shutil.rmtree(path, ignore_errors=True)


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make ``target`` a folder with what ``fill`` writes into it and a manifest: in one step, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    building, old = (target.parent / f".{target.name}{_UNFINISHED}{state}" for state in ("new", "old"))
    for left in (building, old):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    building.mkdir()
    try:
        fill(building)
        files = sorted(file for file in building.rglob("*") if file.is_file())
        digests = {file.relative_to(building).as_posix(): _sha256(file) for file in files}
        (building / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=2), encoding="utf-8")
        for path in (*building.rglob("*"), building):
            _sync(path)
        if target.exists():  # a folder cannot be renamed onto one that is not empty
            os.replace(target, old)
            try:
                os.replace(building, target)
            except OSError:
                os.replace(old, target)
                raise
            shutil.rmtree(old)
        else:
            os.replace(building, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def verify(folder: Path) -> None:
    """Check every file of ``folder`` against its manifest.

    Raises:
        InputError: a file is missing or is not what was written (``E-CKPT-HASH``).
    """
    try:
        digests = json.loads(read_regular(folder / MANIFEST, MAX_STATE))["sha256"]
        if strange := [name for name in digests if not _is_file_inside(folder, name)]:
            raise ValueError(f"{strange[0]!r} is no file in it")
        broken = [name for name, digest in digests.items() if _sha256(folder / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError("E-CKPT-HASH", f"{folder} is not a whole checkpoint: {error}") from error
    if broken:
        raise InputError("E-CKPT-HASH", f"{folder}: {', '.join(broken)} is not what was written (the sha256 differs)")


def newest(run: Path) -> Path:
    """The newest whole checkpoint of a run; broken ones are passed over.

    Raises:
        InputError: there is none (``E-CKPT-NONE``).
    """
    folders = [manifest.parent for manifest in run.glob(f"checkpoints/*/[!.]*/{MANIFEST}")]
    broken = []
    for folder in sorted(folders, key=lambda folder: _progress(folder), reverse=True):
        try:
            verify(folder)
        except InputError as error:
            broken.append(str(error))
            continue
        return folder
    raise InputError("E-CKPT-NONE", f"{run} has no checkpoint to go on from{'; ' if broken else ''}{'; '.join(broken)}")


def _progress(folder: Path) -> tuple[int, float]:
    """(optimizer steps done, time of writing): checkpoints of one step are told apart by their time."""
    try:
        return int(_read_state(folder)["global_step"]), folder.stat().st_mtime
    except (OSError, InputError, ValueError, KeyError, TypeError, OverflowError):
        return -1, 0.0


def _read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint as JSON has it.

    Raises:
        InputError: it is no object of JSON's in a regular file of at most 16 MB (``E-CKPT-STATE``).
    """
    try:
        state = json.loads(read_regular(folder / STATE, MAX_STATE))
        if not isinstance(state, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("E-CKPT-STATE", f"{folder / STATE} cannot be read: {error}") from error
    return state


def _is_file_inside(folder: Path, name: str) -> bool:
    """Whether a manifest's name is that of a regular file, which no link leads to."""
    path = folder / name
    return path.resolve() == folder.resolve() / name and path.is_file()


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON for ``value``, whose tensors go to ``tensors`` under their place."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        while where in tensors:  # {"a.b": x, "a": {"b": y}}
            where += "'"
        tensors[where] = value.detach().cpu().contiguous().clone()  # no two may share memory in safetensors
        return {"__tensor__": where}
    if isinstance(value, list):
        return [_encode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"__tuple__": [_encode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, timedelta):
        return {"__seconds__": value.total_seconds()}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _encode(item, f"{where}.{key}", tensors) for key, item in value.items()}
        return {
            "__items__": [[_encode(k, where, tensors), _encode(v, f"{where}.{k}", tensors)] for k, v in value.items()]
        }
    raise TypeError(
        f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain data, so that no pickle is needed"
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__tuple__" in value:
        return tuple(_decode(item, tensors) for item in value["__tuple__"])
    if "__seconds__" in value:
        return timedelta(seconds=value["__seconds__"])
    if "__items__" in value:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["__items__"]}
    return {key: _decode(item, tensors) for key, item in value.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
