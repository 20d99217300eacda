"""The inputs of the lowest trainable block are computed once for each row, then read from a file.

The blocks below it are frozen, so without dropout they give the same output for a row in every epoch. A row's key is
the input of the first block: nothing need be known of the data, and a row that comes in another way is another row.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from loralight.acceleration.base import Acceleration, Facts
from loralight.acceleration.ragged import Ragged
from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.logs import logger
from loralight.models.blocks import blocks, depths


class PrefixCache(Acceleration):
    """Skips the frozen blocks below the lowest trainable block where all rows of a batch have passed them before.

    Each process has one file in the run's folder, which a resumed run goes on using. Its size is the tokens of all rows
    times the model's width, and it is deleted at the end.
    """

    def __init__(self) -> None:
        self._prefix: Prefix | None = None

    def start_(self, facts: Facts) -> str | None:
        """Have the blocks read the outputs that the run's folder keeps.

        Raises:
            InputError: no block below the trainable ones is frozen, or its output would differ by epoch (``E-PREFIX``).
        """
        if facts.folder is None:
            return "there is no run whose folder could keep the rows"
        self._leave_()
        frozen = _frozen_blocks(facts)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        self._prefix = Prefix(frozen, facts.folder / f"prefix.rank{rank}.sqlite")
        logger.info("%d frozen blocks are computed once for each row, and kept in %s", len(frozen), self._prefix.file)
        return None

    def end_(self) -> None:
        file = self._leave_()
        if file is not None:
            file.unlink()

    def detach_(self, model: nn.Module) -> None:
        self._leave_()

    def _leave_(self) -> Path | None:
        """Let the blocks compute again; returns the file that is left, if there is one."""
        prefix, self._prefix = self._prefix, None
        if prefix is not None:
            prefix.remove_()
        return None if prefix is None else prefix.file


def _frozen_blocks(facts: Facts) -> list[nn.Module]:
    """The blocks before all trainable parameters."""
    depth_of, _ = depths(facts.model)
    lowest = min(depth_of[parameter] for parameter in trainable(facts.model).values())
    if lowest < 2:
        raise _refused(
            "the first trainable block is the model's first; choose adapter.targets in upper blocks, such as "
            "'[*.layer.4.*,*.layer.5.*]'"
        )
    frozen = list(blocks(dict(facts.model.named_modules())).values())[: lowest - 1]
    still = {id(module) for module in facts.still}
    moving = [module for block in frozen for module in block.modules() if id(module) not in still]
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in moving):
        raise _refused("BatchNorm that follows the data changes the frozen blocks; set task.batch_norm=frozen")
    if moving:
        raise _refused("dropout changes what the frozen blocks give; set task.base_dropout=false")
    if facts.data is not None and facts.data.rows_differ_by_epoch:
        raise _refused("the data gives other rows in each epoch")
    return frozen


def _refused(why: str) -> InputError:
    return InputError("E-PREFIX", f"acceleration=prefix_cache: {why}. Or leave it out")


@dataclass(eq=False)
class _Forward:
    """Replaces a block's own forward pass."""

    prefix: "Prefix"
    number: int
    compute: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.prefix.give(self.number, self.compute, *args, **kwargs)


def is_cached(block: nn.Module) -> bool:
    """Whether a block's outputs are kept, for all tokens."""
    return isinstance(vars(block).get("forward"), _Forward)


class Prefix:
    """Blocks that are skipped for rows whose outputs are in a file.

    Args:
        frozen: blocks in the order in which they are computed; each takes the states, with rows first, as its first
            argument, and returns states or a tuple that begins with them.
        file: the path of an SQLite file, which need not exist yet.
    """

    def __init__(self, frozen: Sequence[nn.Module], file: Path) -> None:
        self.file = file
        self._blocks = frozen
        self._rows: sqlite3.Connection | None = sqlite3.connect(file, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode=WAL")
        self._rows.execute("PRAGMA synchronous=OFF")  # safe if the process is killed, not if the machine is
        self._rows.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, states BLOB) WITHOUT ROWID")
        self._keys: list[bytes] = []
        self._found: list[Tensor] | None = None
        self._returns_tuple: bool | None = None  # not known before the first batch
        self.num_skipped = 0
        for number, block in enumerate(frozen):
            block.forward = _Forward(self, number, block.forward)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model computes its blocks: the rows stay with the original."""
        return {**vars(self), "_rows": None}

    def remove_(self) -> None:
        """Restore the blocks' own forward pass."""
        for block in self._blocks:
            vars(block).pop("forward", None)
        if self._rows is not None:
            self._rows.close()

    def give(self, number: int, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The output of a block, computed, or read if the batch's rows are all in the file.

        Args:
            number: the block's place in the order of computation.
            compute: its own forward pass, which takes the other arguments.
        """
        if self._rows is None:
            return compute(*args, **kwargs)
        states, is_last = args[0] if args else kwargs["hidden_states"], number == len(self._blocks) - 1
        ragged = next((given for given in (*args, *kwargs.values()) if isinstance(given, Ragged)), None)
        if number == 0:
            # transformers 5.3 also passes a token's position in the line, which does not belong to its document
            known = {name: value for name, value in kwargs.items() if name != "cache_position"}
            self._keys = list(_keys(states, ragged, (args, known)))
            self._found = self._read(self._rows) if self._returns_tuple is not None else None
        if self._found is None:
            output = compute(*args, **kwargs)
            self._returns_tuple = isinstance(output, tuple)
            if is_last:
                self._write(self._rows, _split(output[0] if self._returns_tuple else output, ragged))
            return output
        if is_last:
            self.num_skipped += 1
            found = [one.to(states.device) for one in self._found]
            states = torch.stack(found) if ragged is None else torch.cat(found).unsqueeze(0)
        return (states,) if self._returns_tuple else states

    def _read(self, kept: sqlite3.Connection) -> list[Tensor] | None:
        """The states of all rows, if all are known."""
        found = []
        for key in self._keys:
            row = kept.execute("SELECT states FROM rows WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            found.append(safetensors.torch.load(row[0])["states"])
        return found

    def _write(self, kept: sqlite3.Connection, rows: Sequence[Tensor]) -> None:
        values = (safetensors.torch.save({"states": row.detach().cpu().contiguous()}) for row in rows)
        kept.execute("BEGIN")
        kept.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", zip(self._keys, values, strict=True))
        kept.execute("COMMIT")


def _split(states: Tensor, ragged: Ragged | None) -> Sequence[Tensor]:
    """Each row's states."""
    return states.unbind() if ragged is None else torch.split(states[0], ragged.lengths)


def _keys(states: Tensor, ragged: Ragged | None, arguments: Any) -> Iterator[bytes]:
    """The key of a row: its states, and its share of the block's other inputs."""
    others = [tensor for tensor in _tensors(arguments) if tensor is not states]
    by_row = 1 if ragged is None else 2  # leading dimensions to compare: (rows,), or (1, tokens) of a line
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
