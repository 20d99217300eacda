"""Checkpoints as folders of safetensors and JSON: whole or absent, checked when read, without pickle."""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralight.disk import refuse_taken_away, telling_of_disk
from loralight.errors import InputError
from loralight.logs import logger
from loralight.regular_file import read_regular
from loralight.untrusted import read_json

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
MAX_STATE = 16 * 2**20
"""Most bytes that a checkpoint's state may have. A large model's has 1 MB, for the most part names of tensors."""
_UNFINISHED = ".loralight-"  # in the names of folders that are not whole


class FolderCheckpointIO(CheckpointIO):
    """Writes and reads Lightning's checkpoint dictionary as a folder.

    ``tensors.safetensors`` holds its tensors, ``state.json`` all else, ``manifest.json`` the sha256 of both. The
    folder is written under a hidden name in the same parent folder and renamed once every byte is on disk. So it is
    whole or absent, even if the process is killed or the disk fills up.

    Args:
        run: the run's folder, if there is one; if it has been removed, nothing is written.
    """

    def __init__(self, run: Path | None = None) -> None:
        self._run = run

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            TypeError: the checkpoint holds something that is neither a tensor nor plain data.
            InputError: the checkpoint cannot be written to the disk (``E-DISK``).
        """
        self.copied(checkpoint, path)()

    def copied(self, checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> Callable[[], None]:
        """A function that writes the checkpoint as it is now, whatever changes afterwards; see `save_checkpoint`."""
        if self._run is not None:
            refuse_taken_away(self._run)
        tensors: dict[str, Tensor] = {}
        state = _encode(checkpoint, "checkpoint", tensors)

        def fill(folder: Path) -> None:
            save_file(tensors, folder / TENSORS)
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

        def write() -> None:
            for left in Path(path).parent.glob(f".*{_UNFINISHED}*"):  # by a killed process; a run has only one
                shutil.rmtree(left, ignore_errors=True)
            write_folder(Path(path), fill)

        return write

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint that `save_checkpoint` wrote; its tensors are on CPU.

        Raises:
            InputError: the folder is not whole (``E-CKPT-HASH``), or does not hold a checkpoint (``E-CKPT-STATE``).
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's dictionary, with its tensors on the CPU, from a folder of ours or a file that Lightning wrote.

    A folder with one checkpoint in it, such as a run's ``checkpoints/best``, stands for that.

    Raises:
        InputError: the folder is not whole (``E-CKPT-HASH``), or the file holds anything besides tensors and plain data
            (``E-CKPT-STATE``).
    """
    if not path.is_file():
        inside = [] if (path / MANIFEST).exists() else [found.parent for found in path.glob(f"*/{MANIFEST}")]
        return FolderCheckpointIO().load_checkpoint(inside[0] if len(inside) == 1 else path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError("E-CKPT-STATE", f"{path} cannot be read as a checkpoint: {reason}") from error
    return checkpoint


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make ``target`` a folder with the files that ``fill`` writes and a manifest: in one step, or not at all.

    Raises:
        InputError: the folder cannot be written to the disk (``E-DISK``).
    """
    with telling_of_disk(target.parent), _os_errors():
        _write_folder(target, fill)


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turn a system error from safetensors, which is only a text, into Python's `OSError`."""
    try:
        yield
    except SafetensorError as error:
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def _write_folder(target: Path, fill: Callable[[Path], None]) -> None:
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
        mode = stat.S_IMODE((building / MANIFEST).stat().st_mode)  # follows the umask, unlike safetensors' files
        for file in files:
            file.chmod(mode)
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


def verify(folder: Path, names: Collection[str] | None = None) -> None:
    """Check files of ``folder`` against its manifest.

    This finds accidental damage. It does not stop an attacker, who can write a new manifest.

    Args:
        folder: written by `write_folder`.
        names: files that the manifest must list; None checks all that it lists.

    Raises:
        InputError: a file is missing or has changed since it was written (``E-CKPT-HASH``).
    """
    try:
        digests = read_json(folder / MANIFEST)["sha256"]
        names = digests.keys() if names is None else names
        if strange := [name for name in names if _leads_elsewhere(folder, name)]:
            raise ValueError(f"{strange[0]!r} is no file in it")
        broken = [name for name in names if _sha256(folder / name) != digests[name]]
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("E-CKPT-HASH", f"{folder} is not a whole checkpoint: {error}") from error
    if broken:
        raise InputError("E-CKPT-HASH", f"{folder}: {', '.join(broken)} is not what was written (the sha256 differs)")


def newest(run: Path) -> Path:
    """The newest whole checkpoint of a run; a broken checkpoint is skipped with a log line.

    Raises:
        InputError: there is none (``E-CKPT-NONE``).
    """
    places: dict[Path, tuple[int, ...]] = {}
    broken: list[str] = []
    for folder in sorted(found for found in run.glob("checkpoints/*/[!.]*") if found.is_dir()):
        try:
            verify(folder)
            places[folder] = _place(folder)
        except InputError as error:
            broken.append(str(error))
    if not places:
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError("E-CKPT-NONE", "; ".join([f"{run} has no checkpoint to go on from", *broken[:3]]) + more)
    for told in broken:
        logger.warning("passed over: %s", told)
    return max(places, key=lambda folder: (places[folder], folder))


def _place(folder: Path) -> tuple[int, ...]:
    """The position of the run, as a tuple that is greater the later it is.

    Raises:
        InputError: the checkpoint does not say where the run stood (``E-CKPT-HASH``).
    """
    try:
        place = _read_state(folder)["position"]
        return tuple(int(place[name]) for name in ("steps", "epoch", "validated"))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError("E-CKPT-HASH", f"{folder} does not say where the run stood: {error!r}") from error


def _read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint, as it is in its JSON file.

    Raises:
        InputError: it is not a JSON object in a regular file of at most 16 MB (``E-CKPT-STATE``).
    """
    try:
        state = json.loads(read_regular(folder / STATE, MAX_STATE))
        if not isinstance(state, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("E-CKPT-STATE", f"{folder / STATE} cannot be read: {error}") from error
    return state


def _leads_elsewhere(folder: Path, name: str) -> bool:
    """Whether a name in a manifest is a link, leads out of the folder, or is not that of a regular file."""
    path = folder / name
    return path.resolve() != folder.resolve() / name or (path.exists() and not path.is_file())


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON for ``value``; its tensors go into ``tensors``, named after their place in it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        while where in tensors:  # {"a.b": x, "a": {"b": y}}
            where += "'"
        tensors[where] = value.detach().cpu().contiguous().clone()  # tensors in safetensors may not share memory
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
    if not stat.S_ISREG(os.lstat(file).st_mode):  # reading a pipe or a device may never end
        raise ValueError(f"{file.name} is not a regular file")
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
