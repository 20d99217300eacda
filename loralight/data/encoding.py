"""Rows encoded once for a model, and read from the cache of `datasets` in later runs."""

import hashlib
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import transformers
from datasets import Dataset, Features
from datasets.fingerprint import Hasher

from loralight.data.bars import hiding_bars

Columns = dict[str, list[Any]]


def encode_rows(
    rows: Dataset, function: Callable[..., Columns], *, features: Features | None = None, **arguments: Any
) -> Dataset:
    """The columns that a function computes from those of ``rows``, in place of these.

    Args:
        rows: a split.
        function: a function of a module, which takes columns of some rows, the rows' numbers, and ``arguments``.
        features: the new columns; inferred from the encoded rows if None.
        arguments: a tokenizer and everything else on which the result depends.
    """
    with hiding_bars(len(rows)):
        return rows.map(
            _Encoding(function=function, arguments=arguments),
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            features=features,
            desc="encoding",
        )


@dataclass(frozen=True, kw_only=True)
class _Encoding:
    """A function as the cache identifies it; `datasets` would go by its name even if its code has changed."""

    function: Callable[..., Columns]
    arguments: Mapping[str, Any]
    code: str = field(init=False)

    def __post_init__(self) -> None:
        packages = [sys.modules[name] for name in (__package__, self.function.__module__)]
        object.__setattr__(self, "code", _digest(*(str(module.__file__) for module in packages)))

    def __call__(self, columns: Mapping[str, list[Any]], numbers: Sequence[int]) -> Columns:
        return self.function(columns, numbers, **self.arguments)

    def __getstate__(self) -> dict[str, Any]:
        told = {name: _told(value) for name, value in self.arguments.items()}
        return {"function": self.function, "arguments": told, "code": self.code}


_TOLD: dict[bytes, str] = {}


def _told(argument: Any) -> Any:
    """The identity of an argument for the cache; for a tokenizer a digest, which takes 90 ms and all splits share."""
    if not type(argument).__module__.startswith("transformers."):
        return argument
    pickled = hashlib.sha256(pickle.dumps(argument)).digest()
    if pickled not in _TOLD:
        _TOLD[pickled] = Hasher.hash(argument)
    return _TOLD[pickled]


@cache
def _digest(*modules: str) -> str:
    """A digest of all sources in the folders of some modules, and of the libraries' versions; takes 10 ms."""
    digest = hashlib.sha256()
    for library in (datasets, tokenizers, transformers):
        digest.update(f"{library.__name__} {library.__version__}\n".encode())
    for folder in (Path(module).parent for module in modules):
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)} {len(code := file.read_bytes())}\n".encode())
            digest.update(code)
    return digest.hexdigest()
