"""Checks of a pretrained model's files, which a stranger may have written, before a library acts on them.

A file that would run code, fetch a kernel or never end is refused by name; the user can allow the first two (`trust`).
"""

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from loralight.errors import InputError
from loralight.models.budget import Size
from loralight.models.trust import trust

_FILES = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
_MAX_JSON = 16 * 2**20  # the names of 20,000 labels take 1 MB
_MAX_COUNT = 100_000
_COUNT = re.compile(r"(layers?|labels|blocks|depths?|stages|experts|heads?)$")
"""Endings of names of config values over which transformers loops before it makes a tensor."""
_PLAIN = {"eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm"}  # in torch, or in transformers itself
_QUANTISERS = {"bitsandbytes", "torchao"}


def check_files(name: str) -> dict[str, Any]:
    """Look through a model's JSON files.

    Args:
        name: a folder, or a name on the hub.

    Returns:
        Its ``config.json``; empty if it has none.

    Raises:
        InputError: a file would run code (``E-REMOTE-CODE``) or never end, or it cannot be read (``E-MODEL``).
    """
    if Path(name).is_dir():
        _refuse_endless_files(Path(name))
    if find(name, "adapter_config.json") is not None:  # transformers would load the base it names instead
        raise InputError("E-MODEL", f"{name} is or has an adapter (adapter_config.json); give a base model alone")
    contents = {file: read_object(path) for file in _FILES if (path := find(name, file)) is not None}
    for file, content in contents.items():
        for key, value in _entries(content):
            _check_entry(f"{name}: {file}: {key!r:.80} is {value!r:.80}", key, value)
    return contents.get("config.json", {})


def size_of_weights(name: str, config: dict[str, Any]) -> Size | None:
    """The number of tensors and values in a model's weights, from their headers; None if no weights are found.

    Raises:
        InputError: the weights are a pickle, which the user has not allowed (``E-PICKLE``).
    """
    said = config.get("transformers_weights")  # in place of the usual names
    files = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME] if said is None else [str(said)]
    if found := _safetensors(name, [file for file in files if ".safetensors" in file]):
        counts = [_size(file) for file in found]
        return Size(*(sum(count) for count in zip(*counts, strict=True)))
    files = [WEIGHTS_NAME, WEIGHTS_INDEX_NAME] if said is None else files
    pickles = [path for file in files if (path := find(name, file)) is not None]
    if pickles and not trust().allow_pickle:
        raise InputError(
            "E-PICKLE",
            f"{name} has its weights in {pickles[0].name}, a pickle, which can do harm when read. Have it saved as "
            "model.safetensors, or if you trust it, say model.allow_pickle=true (in Python allow_pickle=True): of the "
            "pickle only tensors are read then",
        )
    return None


def _refuse_endless_files(folder: Path) -> None:
    """Raise ``E-MODEL`` for a pipe or a device, also behind a link: reading it may never end."""
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError("E-MODEL", f"{path} is not a regular file")


def find(name: str, file: str) -> Path | None:
    """A file of a model, downloaded if need be; None if the model has no file of that name."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if os.path.lexists(path) else None
    return None if Path(name).exists() else _on_hub(name, file)


@cache  # files in the hub's cache do not change, and each look may be a request
def _on_hub(name: str, file: str) -> Path | None:
    quiet = ("gated_repo", "missing_entries", "connection_errors")
    found = cached_file(name, file, **{f"_raise_exceptions_for_{what}": False for what in quiet})
    return Path(found) if found else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a regular file, also behind a link, as in the hub's cache.

    Raises:
        InputError: the file is something else (``E-MODEL``).
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        with path.open("rb") as opened:
            text = opened.read(_MAX_JSON + 1)
        if len(text) > _MAX_JSON:
            raise ValueError(f"it has more than {_MAX_JSON // 2**20} MB")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("E-MODEL", f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return content


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Each key with its value, also those of nested objects."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _check_entry(said: str, key: str, value: Any) -> None:
    if value in (None, {}, []):
        return
    told = trust().trust_remote_code
    if key == "auto_map" and told is None:
        raise InputError(
            "E-REMOTE-CODE",
            f"{said}: code of its own, which would run. If you trust it, say model.trust_remote_code=true (in Python "
            "trust_remote_code=True); =false takes transformers' own classes, where it has them",
        )
    if not told and (kind := _of_others(key, value)):
        raise InputError(
            "E-REMOTE-CODE",
            f"{said}: {kind}. Leave it out of that file, or if you trust it, say model.trust_remote_code=true (in "
            "Python trust_remote_code=True)",
        )
    if key == "configuration_files":
        raise InputError("E-MODEL", f"{said}: loralight reads config.json alone; leave it out of that file")
    if key == "tokenizer_class" and not _is_tokenizer(value):
        raise InputError("E-MODEL", f"{said}: no tokenizer of transformers'")
    numbers = value if isinstance(value, list) else [value]
    if _COUNT.search(key) and any(isinstance(n, int | float) and n > _MAX_COUNT for n in numbers):
        raise InputError("E-MODEL", f"{said}: no model has more than {_MAX_COUNT:,}")


def _of_others(key: str, value: Any) -> str | None:
    """The code that an entry would have fetched or imported, if any."""
    if key.removesuffix("_internal").endswith("_implementation"):
        names = value.values() if isinstance(value, dict) else [value]
        return "a kernel, which would be fetched and run" if any(map(_is_kernel, names)) else None
    if key == "quantization_config" and isinstance(value, dict):
        packed_by_bits = value.get("load_in_8bit") or value.get("load_in_4bit")
        method = value.get("quant_method", "bitsandbytes" if packed_by_bits else None)
        return None if method in _QUANTISERS else f"kernels of other packages; known are {', '.join(_QUANTISERS)}"
    return None


def _is_kernel(name: Any) -> bool:
    """Whether transformers may ask the package ``kernels`` for a function of this name."""
    if name is None or name in _PLAIN:
        return False
    of_flash_attention = isinstance(name, str) and re.fullmatch(r"flash_attention_\d", name)
    return not of_flash_attention or find_spec("kernels") is not None


def _is_tokenizer(name: Any) -> bool:
    """Whether transformers would load a tokenizer by this name; for an unknown name it takes its general class."""
    if not isinstance(name, str) or name not in _names_of_transformers():
        return isinstance(name, str)
    if not re.search("(Tokenizer|TokenizerFast|Backend)$", name):
        return False  # without importing it
    kind = getattr(transformers, name)
    # the stand-in for a class whose package is missing names the package
    return isinstance(kind, type) and (issubclass(kind, PreTrainedTokenizerBase) or hasattr(kind, "_backends"))


def _names_of_transformers() -> set[str]:
    """The names of ``dir(transformers)``, which takes 150 ms: it searches a list for each of 7,000 names."""
    return {*ModuleType.__dir__(transformers), *vars(transformers)["__all__"]}


def _safetensors(name: str, files: list[str]) -> list[Path]:
    """The first of these files that a model has, or the shards that it lists."""
    for file in files:
        if (path := find(name, file)) is None:
            continue
        if not file.endswith(".json"):
            return [path]
        shards = sorted(set(map(str, read_object(path).get("weight_map", {}).values())))
        if outside := [shard for shard in shards if Path(shard).name != shard]:
            raise InputError("E-MODEL", f"{path} names {outside[0]!r:.80}, which is not beside it")
        return [found for shard in shards if (found := find(name, shard)) is not None]
    return []


def _size(file: Path) -> Size:
    """The number of tensors and values in a file, from its header; an integer counts as eight packed values."""
    with safe_open(file, framework="pt") as opened:
        tensors = [opened.get_slice(key) for key in opened.keys()]  # noqa: SIM118  # no mapping
        values = [
            torch.Size(tensor.get_shape()).numel() * (1 if "F" in tensor.get_dtype() else 8) for tensor in tensors
        ]
    return Size(len(values), sum(values))
