"""The adapter's folder: PEFT's format, so that PEFT can load it, and the files that loralight needs to predict."""

import json
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from loralight.adapters.base import Adapter
from loralight.errors import InputError
from loralight.models.budget import Size, adding_at_most
from loralight.models.untrusted_tensors import read_shapes, read_tensors
from loralight.training.checkpoint import verify, write_folder
from loralight.training.fingerprint import fingerprint
from loralight.training.learning import Learning
from loralight.untrusted import read_json
from loralight.version import __version__

WEIGHTS, CONFIG, RECIPE = "adapter_model.safetensors", "adapter_config.json", "loralight.json"
PREFIX = "base_model.model."  # of every name in PEFT's files
_NO_TASK: dict[str, Any] = {"name": "", "arguments": {}}
_MAX_RECIPE = 2**20
"""Most bytes of a recipe: a few kilobytes, and the names of possibly thousands of labels."""


class Exported(Protocol):
    """A task, or another owner of a model with its adapter."""

    model: nn.Module
    adapter: Adapter
    learning: Learning

    @property
    def peft_task_type(self) -> str | None: ...


def save_adapter(task: Exported, folder: Path, *, recipe: dict[str, Any], metrics: dict[str, float]) -> None:
    """Write the adapter's folder: weights and config in PEFT's format, recipe, model card.

    Args:
        task: with its model built.
        folder: written in one step; replaced if it exists.
        recipe: names and arguments of the task and the adapter, from which `loralight.load` builds them again. For a
            model without a task: those of the adapter, the parts of the head, and the model's name in ``base``.
        metrics: the metrics for the model card.
    """
    names = _peft_names(task)
    tensors = {names[name]: tensor.cpu().contiguous() for name, tensor in task.learning.tensors().items()}
    config = task.adapter.peft_config(task.model)
    base = recipe["task"]["arguments"].get("checkpoint") if "task" in recipe else recipe["base"]["name"]
    full = {
        **recipe,
        "base": {"name": base, "fingerprint": fingerprint(task)},
        "loralight_version": __version__,
    }

    def fill(building: Path) -> None:
        save_file(tensors, building / WEIGHTS, metadata={"format": "pt"})
        if config is not None:
            heads = task.learning.whole_modules
            card = {
                **config,
                "task_type": task.peft_task_type or config.get("task_type"),
                "base_model_name_or_path": base,
                "modules_to_save": heads or None,
            }
            _write_json(building / CONFIG, {**card, "inference_mode": True})
        _write_json(building / RECIPE, full)
        (building / "README.md").write_text(_card(task, full, metrics, folder.name), encoding="utf-8")

    write_folder(folder, fill)


def adapter_folder(folder: str | Path) -> Path:
    """The adapter's folder inside a run's folder, or the folder itself.

    Raises:
        InputError: there is no such folder (``E-RUN``).
    """
    path = Path(folder)
    if not (path / RECIPE).is_file() and (path / "adapter" / RECIPE).is_file():
        path = path / "adapter"
    if not path.is_dir():
        raise InputError("E-RUN", f"{folder}: there is no such folder")
    return path


def read_recipe(folder: Path) -> dict[str, Any]:
    """The recipe of an adapter's folder that names an installed task, as plain data.

    Raises:
        InputError: as `read_made`; or the adapter belongs to a script's task, or to a model without a task
            (``E-ADAPTER``).
    """
    made = read_made(folder)
    if "task" not in made:
        raise InputError(
            "E-ADAPTER", f"{folder} is of a model without a task: give the model, loralight.load_adapter(model, folder)"
        )
    if "name" not in made["task"]:
        kind = made["task"]["class"]
        raise InputError("E-ADAPTER", f"{folder} is of {kind}, a class that no plugin has: {kind}.load(folder)")
    return made


def read_made(folder: Path) -> dict[str, Any]:
    """The recipe of any adapter's folder: for an installed task, a task in a script, or a model without a task.

    Raises:
        InputError: the folder does not hold an adapter of loralight (``E-ADAPTER``), or a file in the folder has
            changed since it was written (``E-CKPT-HASH``).
    """
    file = folder / RECIPE
    if not file.exists():
        raise InputError("E-ADAPTER", f"{folder} is no adapter folder of loralight: it has no {RECIPE}")
    recipe = read_json(file, _MAX_RECIPE)
    config = [CONFIG] if (folder / CONFIG).exists() else []  # not every method has one
    verify(folder, [RECIPE, WEIGHTS, *config])
    try:
        task, adapter = recipe["task"] if "head" not in recipe else recipe.get("task", _NO_TASK), recipe["adapter"]
        named = [adapter["name"], task["name"] if "name" in task else task["class"]]
        if not all(isinstance(name, str) for name in named) or not all(
            isinstance(part["arguments"], dict) for part in (task, adapter)
        ):
            raise ValueError("its task and adapter are not names with arguments")
        if not isinstance(recipe["base"], dict):
            raise ValueError("its base is not a mapping")
        if not all(_are_numbers(value) for value in task.get("settled", {}).values()):
            raise ValueError("what its validation rows have settled is more than numbers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("E-ADAPTER", f"{file} is not a recipe that loralight wrote: {error!r}") from error
    return recipe


def _are_numbers(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in each)


def no_larger_than_saved(folder: Path) -> AbstractContextManager[None]:
    """A context in which an injected adapter may not be much larger than the folder's file of weights.

    Raises:
        InputError: the adapter's settings ask for far more than the file of weights holds (``E-ADAPTER``).
    """
    saved = sum(math.prod(shape) for _, shape in read_shapes(folder / WEIGHTS).values())
    return adding_at_most(
        Size(tensors=200_000, values=4 * saved + 2**26),
        InputError("E-ADAPTER", f"{folder}: its settings, such as a rank, ask for far more than its {WEIGHTS} holds"),
    )


def load_adapter(task: Exported, folder: Path, recipe: dict[str, Any]) -> None:
    """Load an adapter's weights into the model they were trained for; raises like `adapter_tensors`."""
    task.learning.load_(adapter_tensors(task, folder, recipe), str(folder))


def adapter_tensors(task: Exported, folder: Path, recipe: dict[str, Any]) -> dict[str, torch.Tensor]:
    """An adapter's weights, by their names in the model that they were trained for.

    Raises:
        InputError: the weights cannot be read, hold values that are not finite, or do not fit (``E-ADAPTER``,
            ``E-ADAPTER-KEYS``), or belong to another base model (``E-BASE``).
    """
    found = fingerprint(task)
    if (trained_on := recipe["base"].get("fingerprint")) and found != trained_on:
        still = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in task.model.modules())
        hint = "; BatchNorm trained in train() has statistics unlike the base's: keep it in eval()" if still else ""
        raise InputError(
            "E-BASE",
            f"{folder} was trained on other weights than this base model has (fingerprints {trained_on} and {found})"
            f"{hint}",
        )
    ours = {theirs: name for name, theirs in _peft_names(task).items()}
    shapes = {ours.get(name, name): shape for name, shape in read_shapes(folder / WEIGHTS).items()}
    # before any value is read, since only the file says how many there are
    task.learning.check({n: torch.empty(s.shape, dtype=s.dtype, device="meta") for n, s in shapes.items()}, str(folder))
    for name, tensor in task.learning.tensors().items():
        if tensor.is_floating_point() != shapes[name].dtype.is_floating_point:
            raise InputError("E-ADAPTER-KEYS", f"{folder}: {name} is {shapes[name].dtype} instead of {tensor.dtype}")
    return {ours.get(name, name): tensor for name, tensor in read_tensors(folder / WEIGHTS).items()}


def _peft_names(task: Exported) -> dict[str, str]:
    """PEFT's name of each trainable tensor."""
    renamed = task.adapter.peft_names(task.model)
    prefixed = {name: PREFIX + theirs if "." in theirs else theirs for name, theirs in renamed.items()}
    return {name: prefixed.get(name, PREFIX + name) for name in task.learning.tensors()}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(task: Exported, recipe: dict[str, Any], metrics: dict[str, float], name: str) -> str:
    """The model card; the Hugging Face Hub reads its front matter."""
    base, task_name = recipe["base"]["name"] or "unknown", _name_of_task(recipe)
    learns = sum(parameter.numel() for parameter in task.learning.parameters.values())
    rows = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in sorted(metrics.items()))
    table = f"\n| metric | value |\n|---|---|\n{rows}\n" if metrics else ""
    head = f"base_model: {base}\n" if "://" not in base and not Path(base).exists() else ""
    tags = ["loralight", recipe["adapter"]["name"], *([task_name] if task_name else [])]
    return f"""---
{head}library_name: peft
tags: [{", ".join(tags)}]
---

# {f"{task_name}: " if task_name else ""}{recipe["adapter"]["name"]} on {base}

An adapter of {learns:,} parameters, trained with loralight {recipe["loralight_version"]}. It holds only what was
trained; the base model comes from where it always did.
{table}
With loralight:

```python
{_how_with_us(recipe, name)}
```
{_beside_logits(recipe.get("task", _NO_TASK).get("settled"))}
{"" if task.adapter.peft_config(task.model) is None else _how_with_peft(task, name)}"""


def _beside_logits(settled: dict[str, Any] | None) -> str:
    if not settled:
        return ""
    return f"""
Its validation rows have settled how logits become answers, as `{RECIPE}` has it under `settled`: {", ".join(settled)}.
Whatever else loads the adapter gives plain logits.
"""


def _name_of_task(recipe: dict[str, Any]) -> str:
    task = recipe.get("task", _NO_TASK)
    return str(task.get("name", task.get("class")))


def _how_with_us(recipe: dict[str, Any], name: str) -> str:
    if "task" not in recipe:
        return f'import loralight\n\nloralight.load_adapter(base_model, "{name}")'
    if "name" not in recipe["task"]:
        return f'model = {recipe["task"]["class"]}.load("{name}")\nmodel.predict([...])'
    return f'import loralight\n\nmodel = loralight.load("{name}")\nmodel.predict([...])'


def _how_with_peft(task: Exported, name: str) -> str:
    return f"""
With PEFT, given the base model with a new head of {", ".join(task.learning.whole_modules) or "none"}:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "{name}")
```
"""
