"""The inputs of the lowest trainable block are computed once for each row, and read from a file from then on.

The blocks below are frozen, so without dropout a row leaves them the same in every epoch. A row is known by what enters
the first block: nothing need be known of the data, and a row that comes in another way is another row.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any
from weakref import WeakSet

import lightning
import safetensors.torch
import torch
from torch import Tensor, nn

from loralight.acceleration.ragged import Ragged
from loralight.adapters.base import trainable
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.logs import logger
from loralight.models.blocks import blocks, depths

_cached: WeakSet[nn.Module] = WeakSet()


def is_cached(block: nn.Module) -> bool:
    """Whether the outputs of a block are kept, all of them."""
    return block in _cached


class PrefixCache(lightning.Callback):
    """Skips the frozen blocks below the lowest one that learns wherever all rows of a batch have passed them before.

    The file lies in the run's folder, one for each process, and a resumed run goes on with it; it takes the tokens of
    all rows times the model's width, and is deleted at the end.

    Raises:
        InputError: no block below the trainable ones is frozen, or its output would differ by epoch (``E-PREFIX``).
    """

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        frozen = _frozen_blocks(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        self._file = Path(trainer.default_root_dir) / f"prefix.rank{trainer.global_rank}.sqlite"
        self._prefix = Prefix(frozen, self._file)
        logger.info("%d frozen blocks are computed once for each row, and kept in %s", len(frozen), self._file)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._prefix.remove_()
        self._file.unlink()

    def on_exception(self, *_: Any) -> None:
        if hasattr(self, "_prefix"):
            self._prefix.remove_()


def _frozen_blocks(task: Any, data: Any) -> list[nn.Module]:
    """The blocks that come before all that learns."""
    depth_of, _ = depths(task.model)
    lowest = min(depth_of[parameter] for parameter in trainable(task.model).values())
    reasons = {
        "the first trainable block is the model's first; choose adapter.targets in upper blocks, such as "
        "'[*.layer.4.*,*.layer.5.*]'": lowest < 2,
        "dropout changes what the frozen blocks give; set task.base_dropout=false": task.base_dropout,
        f"task.batch_norm={task.batch_norm} changes the frozen blocks": bool(task.adapted_norms),
        "the data gives other rows in each epoch": isinstance(data, TaskData) and data.rows_differ_by_epoch,
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError("E-PREFIX", f"callbacks=prefix_cache: {reason}")
    return list(blocks(dict(task.model.named_modules())).values())[: lowest - 1]


class Prefix:
    """Blocks that are skipped for rows whose outputs are in a file.

    Args:
        frozen: in the order in which they are computed; each takes the states, with rows first, as its first argument,
            and returns states or a tuple that begins with them.
        file: an SQLite file, or none yet.
    """

    def __init__(self, frozen: Sequence[nn.Module], file: Path) -> None:
        self._blocks = frozen
        self._rows = sqlite3.connect(file, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode=WAL")
        self._rows.execute("PRAGMA synchronous=OFF")  # a killed process loses nothing by that, a lost machine all
        self._rows.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, states BLOB) WITHOUT ROWID")
        self._keys: list[bytes] = []
        self._found: list[Tensor] | None = None
        self._returns_tuple: bool | None = None  # not known before the first batch
        self.num_skipped = 0
        for number, block in enumerate(frozen):
            block.forward = partial(self._pass, number, block.forward)
            _cached.add(block)

    def remove_(self) -> None:
        """Give the blocks their own computation back."""
        for block in self._blocks:
            vars(block).pop("forward", None)
            _cached.discard(block)
        self._rows.close()

    def _pass(self, number: int, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        states, is_last = args[0] if args else kwargs["hidden_states"], number == len(self._blocks) - 1
        ragged = next((given for given in (*args, *kwargs.values()) if isinstance(given, Ragged)), None)
        if number == 0:
            # transformers 5.3 also passes a token's position in the line, which does not belong to its document
            known = {name: value for name, value in kwargs.items() if name != "cache_position"}
            self._keys = list(_keys(states, ragged, (args, known)))
            self._found = self._read() if self._returns_tuple is not None else None
        if self._found is None:
            output = compute(*args, **kwargs)
            self._returns_tuple = isinstance(output, tuple)
            if is_last:
                self._write(_split(output[0] if self._returns_tuple else output, ragged))
            return output
        if is_last:
            self.num_skipped += 1
            found = [one.to(states.device) for one in self._found]
            states = torch.stack(found) if ragged is None else torch.cat(found).unsqueeze(0)
        return (states,) if self._returns_tuple else states

    def _read(self) -> list[Tensor] | None:
        """The states of all rows, if all are known."""
        found = []
        for key in self._keys:
            row = self._rows.execute("SELECT states FROM rows WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            found.append(safetensors.torch.load(row[0])["states"])
        return found

    def _write(self, rows: Sequence[Tensor]) -> None:
        values = (safetensors.torch.save({"states": row.detach().cpu().contiguous()}) for row in rows)
        self._rows.execute("BEGIN")
        self._rows.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", zip(self._keys, values, strict=True))
        self._rows.execute("COMMIT")


def _split(states: Tensor, ragged: Ragged | None) -> Sequence[Tensor]:
    """Each row's states."""
    return states.unbind() if ragged is None else torch.split(states[0], ragged.lengths)


def _keys(states: Tensor, ragged: Ragged | None, arguments: Any) -> Iterator[bytes]:
    """The key of a row: its states, and its share of the block's other inputs."""
    others = [tensor for tensor in _tensors(arguments) if tensor is not states]
    by_row = 1 if ragged is None else 2  # dimensions that say rows, or that there is one line of so many tokens
    shares = [_split(other, ragged) if other.shape[:by_row] == states.shape[:by_row] else None for other in others]
    for number, row in enumerate(_split(states, ragged)):
        key = blake2b(_bytes(row), digest_size=16)
        for other, share in zip(others, shares, strict=True):
            key.update(_bytes(other if share is None else share[number]))
        yield key.digest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)
