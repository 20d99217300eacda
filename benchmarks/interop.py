"""What goes to PEFT and comes back: every adapter method on every kind of layer, and convolutions of every geometry.

    python benchmarks/interop.py --specs 500

Methods are those of ``conf/adapter``, layers those that LoRA knows; a method that goes by whole models has a BERT. A
cell says whether both compute the same on one layer after the adapter went over as config and tensors, or what was
refused. The second table compares the outputs of LoRA on random convolutions with those of a convolution by W + BA in
float64, which is what LoRA means.
"""

import argparse
import copy
import dataclasses
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_config, get_peft_model, set_peft_model_state_dict
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.pytorch_utils import Conv1D

from loralight.adapters import Adapter, inject
from loralight.adapters.base import trainable
from loralight.adapters.layers.lora import LAYERS, LoraLayer
from loralight.artifacts.export import PREFIX, WEIGHTS
from loralight.artifacts.peft_format import peft_adapter
from loralight.config.build import adapter_classes
from loralight.config.composition import compose
from loralight.errors import InputError

_TOLERANCE = 1e-5  # relative


class One(nn.Module):
    """A model of one layer, or of a whole model as its layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return torch.as_tensor(getattr(y, "last_hidden_state", y))


def example(kind: type[nn.Module]) -> tuple[One, Tensor]:
    """A layer of a kind, and what it may be given."""
    if issubclass(kind, nn.modules.conv._ConvNd):
        model = One(kind(4, 6, 3, padding=1))  # type: ignore[call-arg,arg-type]
        return model, torch.randn(2, 4, *(5,) * (model.layer.weight.ndim - 2))  # type: ignore[union-attr,operator]
    if issubclass(kind, BertModel):
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
        return One(kind(config)), torch.randint(5, 50, (2, 5))
    if issubclass(kind, nn.MultiheadAttention):
        return One(kind(8, 2, batch_first=True)), torch.randn(2, 5, 8)
    if issubclass(kind, nn.Embedding):
        return One(kind(11, 6)), torch.randint(0, 11, (2, 5))
    if issubclass(kind, Conv1D):
        return One(kind(6, 8)), torch.randn(2, 5, 8)
    return One(kind(8, 6)), torch.randn(2, 5, 8)  # type: ignore[call-arg,arg-type]


def method(name: str, kind: type[Adapter]) -> Adapter:
    """A method with the settings of its file, on the one layer if it takes targets."""
    given: Any = OmegaConf.to_container(compose("train", [f"adapter={name}"]).adapter, resolve=False)
    known = {f.name for f in dataclasses.fields(kind)}
    settings = {key: value for key, value in given.items() if key in known and "${" not in str(value)}
    return kind(**settings, **({"targets": "layer"} if "targets" in known else {}))


def disturb(model: nn.Module) -> nn.Module:
    """A model as after training."""
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def saved(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: what learns, and the saved buffers beside it, such as the frozen A of LoRA-FA."""
    state, learns = model.state_dict(), trainable(model)
    owners = {name.rpartition(".")[0] for name in learns}
    buffers = {name for name, _ in model.named_buffers() if name.rpartition(".")[0] in owners}
    return {name: tensor for name, tensor in state.items() if name in learns or name in buffers}


@torch.no_grad()
def to_peft(adapter: Adapter, plain: One, x: Tensor) -> str:
    """Whether PEFT computes what we do."""
    ours = copy.deepcopy(plain)
    inject(ours, adapter)
    disturb(ours)
    config = adapter.peft_config(ours)
    if config is None:
        return "PEFT has no such method"
    names = adapter.peft_names(ours)
    theirs = get_peft_model(copy.deepcopy(plain), get_peft_config(config)).eval()  # type: ignore[arg-type]
    tensors = {PREFIX + names.get(name, name): tensor for name, tensor in saved(ours).items()}
    result = set_peft_model_state_dict(theirs, tensors)
    return f"unknown to PEFT: {result.unexpected_keys[0]}" if result.unexpected_keys else verdict(theirs(x), ours(x))


@torch.no_grad()
def from_peft(adapter: Adapter, plain: One, x: Tensor) -> str:
    """Whether we compute what PEFT does."""
    probe = copy.deepcopy(plain)
    inject(probe, adapter)
    config = adapter.peft_config(probe)
    if config is None:
        return "PEFT has no such method"
    theirs = disturb(get_peft_model(copy.deepcopy(plain), get_peft_config(config)))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)  # type: ignore[operator]
        found = peft_adapter(Path(folder))[1]
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(Path(folder) / WEIGHTS).items()}
    ours = copy.deepcopy(plain)
    inject(ours, found)
    names = found.peft_names(ours)
    learnt = {name: tensors[names.get(name, name)] for name in saved(ours)}
    ours.load_state_dict(learnt, strict=False)
    return verdict(ours.eval()(x), theirs(x))


def verdict(found: Tensor, wanted: Tensor) -> str:
    """``ok``, or how far apart two outputs are."""
    apart = float((found - wanted).norm() / wanted.norm())
    return "ok" if apart <= _TOLERANCE else f"differs by {apart:.0e}"


def attempt(compare: Callable[..., str], *arguments: Any) -> str:
    """A comparison's result, or why there is none."""
    try:
        return compare(*arguments)
    except InputError as error:
        return f"refused: {str(error)[:60]}"
    except Exception as error:  # PEFT raises what it likes
        return f"PEFT: {type(error).__name__}: {str(error)[:60]}"


def methods_table() -> Table:
    """Every method on every kind of layer, both ways."""
    table = Table("method", "layer", "ours to PEFT", "PEFT to ours", title="adapters that change sides")
    for name, kind in adapter_classes().items():
        rows = [_row(name, kind, layer) for layer in (*LAYERS, nn.Embedding, nn.MultiheadAttention)]
        if all(cell.startswith("refused") for row in rows for cell in row[2:]):  # it goes by whole models
            rows = [_row(name, kind, BertModel)]
        for row in rows:
            table.add_row(*row)
    return table


def _row(name: str, kind: type[Adapter], layer: type[nn.Module]) -> list[str]:
    torch.manual_seed(0)
    plain, x = example(layer)
    plain.eval().requires_grad_(False)
    return [name, layer.__name__, *(attempt(compare, method(name, kind), plain, x) for compare in (to_peft, from_peft))]


def draw_spec(draw: random.Random) -> tuple[type[nn.Module], dict[str, Any], list[str]]:
    """A random convolution, and what is unusual about it."""
    kinds = [kind for kind in LAYERS if issubclass(kind, nn.modules.conv._ConvNd)]
    groups = draw.choice([1, 1, 2, 4])
    same, dilation = draw.random() < 0.3, draw.choice([1, 1, 2])
    mode = draw.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
    spec = {
        "in_channels": 4 * draw.randint(1, 3),
        "out_channels": 4 * draw.randint(1, 3),
        "kernel_size": draw.randint(1, 4),
        "stride": 1 if same else draw.randint(1, 3),
        "padding": "same" if same else draw.randint(0, 2),
        "dilation": dilation,
        "groups": groups,
        "padding_mode": mode,
        "bias": draw.random() < 0.5,
    }
    marks = {'padding "same"': same, "dilation": dilation > 1, "groups": groups > 1, "padding mode": mode != "zeros"}
    return draw.choice(kinds), spec, [mark for mark, found in marks.items() if found] or ["none of these"]


@torch.no_grad()
def deviation(layer: nn.Module, plain: nn.Module, delta: Tensor, x: Tensor) -> float:
    """How far a layer's output is from that of the plain convolution by W + delta in float64, relative to it."""
    dense = copy.deepcopy(plain).double()
    dense.weight.add_(delta.double())  # type: ignore[operator,union-attr]
    wanted = dense(x.double())
    found = layer(x).double()
    return float((found - wanted).norm() / wanted.norm()) if found.shape == wanted.shape else float("inf")


def ours_and_theirs(kind: type[nn.Module], spec: dict[str, Any], rank: int) -> tuple[float, float]:
    """The deviations of our layer and of PEFT's, each from its own W + BA; inf where it cannot compute at all."""
    plain = kind(**spec).eval()
    x = torch.randn(2, spec["in_channels"], *(9,) * (plain.weight.ndim - 2))  # type: ignore[union-attr,operator]
    ours = LAYERS[kind].upgrade_(copy.deepcopy(plain).requires_grad_(False), rank=rank, alpha=2.0 * rank)
    assert isinstance(ours, LoraLayer)
    nn.init.normal_(ours.lora_B, std=0.3)
    first = deviation(ours, plain, ours.scaling * ours.product(torch.float64), x)
    try:
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["layer"])
        model = disturb(get_peft_model(One(copy.deepcopy(plain)), config))  # type: ignore[arg-type]
        theirs = model.base_model.model.layer  # type: ignore[union-attr]
        down, up = (getattr(theirs, f"lora_{side}")["default"].weight.double().flatten(1) for side in "AB")
        delta = theirs.scaling["default"] * (up @ down)  # with groups, theirs has no weight's shape
        second = deviation(theirs, plain, delta.view(plain.weight.shape), x)  # type: ignore[arg-type,union-attr]
    except Exception:  # PEFT raises what it likes
        second = float("inf")
    return first, second


def convolutions_table(count: int) -> Table:
    """How many random convolutions are computed as W + BA says."""
    draw, seen = random.Random(0), Counter[tuple[str, str]]()
    for number in range(count):
        torch.manual_seed(number)
        kind, spec, marks = draw_spec(draw)
        ours, theirs = ours_and_theirs(kind, spec, rank=4)
        for mark in (*marks, "all"):
            seen[mark, "specs"] += 1
            seen[mark, "ours"] += ours > _TOLERANCE
            seen[mark, "raises"] += theirs == float("inf")
            seen[mark, "theirs"] += _TOLERANCE < theirs < float("inf")
    table = Table("convolutions with", "specs", "ours differs", "PEFT differs", "PEFT raises, or has no W + BA")
    for mark in ("none of these", 'padding "same"', "padding mode", "dilation", "groups", "all"):
        total = max(seen[mark, "specs"], 1)
        shares = (f"{seen[mark, side]} ({seen[mark, side] / total:.0%})" for side in ("ours", "theirs", "raises"))
        table.add_row(mark, str(seen[mark, "specs"]), *shares)
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specs", type=int, default=500)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # PEFT tells what it sets right by itself
    console = Console(width=160)
    console.print(methods_table())
    console.print(convolutions_table(arguments.specs))


if __name__ == "__main__":
    main()
