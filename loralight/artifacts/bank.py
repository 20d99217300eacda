"""Several trained adapters on one base model, with a single copy of it in memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from loralight.adapters.multi.parts import Parts, parts_of
from loralight.adapters.multi.rows import by_rows
from loralight.adapters.multi.sharing import share_
from loralight.artifacts.combination import save_combination
from loralight.artifacts.loading import build, find_device, find_recipe
from loralight.errors import InputError, did_you_mean
from loralight.models.trust import trusting
from loralight.training.task import AdapterTask


def load_many(
    folders: Mapping[str, str | Path],
    *,
    base: str | None = None,
    device: str = "auto",
    trust_remote_code: bool | None = None,
    allow_pickle: bool = False,
) -> "AdapterBank":
    """Load several adapters that loralight trained on one base model.

    Args:
        folders: folders of runs or adapters, by names that the adapters get.
        base: the base model's name or folder, if it differs from training.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``mps``.
        trust_remote_code: see `loralight.load`.
        allow_pickle: likewise.

    Raises:
        InputError: as `loralight.load`; or the adapters have different base models (``E-BASE``), or no adapter is named
            (``E-ADAPTER``).
    """
    if not folders:
        raise InputError("E-ADAPTER", "no adapter is named; give at least one folder")
    bank = AdapterBank(base=base, device=device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    for name, folder in folders.items():
        bank.add(name, folder)
    return bank


class AdapterBank(Mapping[str, AdapterTask]):
    """Tasks by name, each with its own adapter, head and labels, that share the frozen tensors of one base model.

    Adapters are not switched on and off: ``bank["a"]`` and ``bank["b"]`` are separate models that share every frozen
    tensor. So both can be used at once, and ``bank.base`` computes without any adapter.

    Args:
        base: the base model's name or folder, if it differs from training.
        device: device of the models.
        trust_remote_code: see `loralight.load`.
        allow_pickle: likewise.
    """

    base: nn.Module
    """The plain base model, of the class of the first adapter's task; its head, if it has one, is untrained."""

    def __init__(
        self,
        *,
        base: str | None = None,
        device: str = "auto",
        trust_remote_code: bool | None = None,
        allow_pickle: bool = False,
    ) -> None:
        self._checkpoint, self._device = base, find_device(device)
        self._allowed: Any = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        self._tasks: dict[str, AdapterTask] = {}
        self._recipes: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> AdapterTask:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, name: str, folder: str | Path) -> AdapterTask:
        """Load one more adapter.

        The base model is read from its files again, compared and dropped, so for a moment it is in memory twice.

        Raises:
            InputError: the name is taken (``E-ADAPTER``); else as `load_many`.
        """
        if name in self:
            raise InputError("E-ADAPTER", f"there is an adapter called {name!r} already; choose another name")
        path, made = find_recipe(folder, base=self._checkpoint)
        with trusting(**self._allowed):
            task = build(path, made, "cpu")
            if not self:
                self.base = task.build_base().to(self._device)
        share_(task.model, self.base, learns=task.trainable_tensors(), origin=str(folder))
        self._tasks[name], self._recipes[name] = task.to(self._device), made
        return task

    def rows(self, names: Sequence[str | None]) -> AbstractContextManager[nn.Module]:
        """A context in which the base model computes each row of a batch with an adapter of its own.

            with bank.rows(["a", "b", None, "a"]) as model:
                logits = model(**batch).logits  # (4, ...)

        See `loralight.adapters.multi.rows.by_rows`. Call a tokenizer that other threads use by
        `loralight.models.tokenise`: a direct call with other settings would change theirs.

        Args:
            names: each row's adapter; None for the base alone.

        Raises:
            InputError: there is no such adapter (``E-NAME``), its model is of another class than the base
                (``E-ROWS``), or it changes more than low-rank layers, its head and BatchNorm (``E-KIND``).
        """
        parts = {name: self._parts(name) for name in dict.fromkeys(names) if name is not None}
        for name in parts:
            if (kind := type(self[name].model)) is not type(self.base):
                raise InputError(
                    "E-ROWS",
                    f"{name!r} is a {kind.__name__} and the base a {type(self.base).__name__}, but rows of one batch "
                    "need models of one class; run each adapter by itself",
                )
        return by_rows(self.base, parts, names)  # a plain model without accelerations

    def combine(self, weights: Mapping[str, float], *, output: str | Path, rank: int | None = None) -> dict[str, float]:
        """Write the weighted sum of adapters' updates as a new adapter's folder.

        The sum is exact if ``rank`` is None; a layer's rank is then the sum of the adapters' ranks. The head, BatchNorm
        tensors and labels are those of the first adapter in ``weights``.

        Args:
            weights: by the adapter's name; a negative weight subtracts.
            output: a new folder, which `loralight.load` and PEFT can read.
            rank: the highest rank of a layer; a higher one is cut to the nearest update of this rank (truncated SVD).

        Returns:
            The truncation error of each layer, as a share of its update's Frobenius norm.

        Raises:
            InputError: there is no such adapter (``E-NAME``), it changes more than low-rank layers, its head and
                BatchNorm (``E-KIND``), or weights, rank or output make no sense (``E-WEIGHTS``, ``E-RANK``,
                ``E-OUTPUT``).
        """
        terms = {name: (weight, self._parts(name)) for name, weight in weights.items()}
        return save_combination(self._tasks, self._recipes, terms, output=Path(output), rank=rank)

    def _parts(self, name: str) -> Parts:
        if name not in self:
            known = ", ".join(map(repr, self))
            raise InputError("E-NAME", f"no adapter is called {name!r}.{did_you_mean(name, self)} There are: {known}")
        return parts_of(self[name].model, self[name].learning.whole_modules)
