"""A training step of LoRA on the convolutions of ResNets beside PEFT's, on the same batch in float32.

    python benchmarks/convolutions.py [--quick]

BatchNorm is frozen on both sides, rank 8 on all convolutions but the stem's, AdamW; PEFT's model as it comes and put in
channels-last. Weights are random: they cost what trained ones do.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from side_by_side import Ratio, Row, in_turns, peak_memory, ratio, show
from timm.models import save_for_hf
from torch import Tensor, nn

from loralight.adapters import Lora
from loralight.adapters.base import trainable
from loralight.config.build import make
from loralight.config.composition import settings_of
from loralight.tasks.image_classification import ImageClassification

RANK, LABELS = 8, 10
WORKS = (
    ("resnet18", {"batch": 16, "size": 224}, {"time": 0.75, "memory": 0.54, "channels-last": 0.88}),
    ("resnet50", {"batch": 8, "size": 224}, {"time": 0.80, "memory": 0.48, "channels-last": 0.85}),
    ("resnet18", {"batch": 4, "size": 96}, {"time": 1.0, "memory": 1.0, "channels-last": 1.0}),
    ("resnet18", {"batch": 16, "size": 32}, {"time": 1.0, "memory": 1.0, "channels-last": 1.0}),
)
Batch = dict[str, Tensor]


def write(architecture: str, folder: Path) -> None:
    """A model whose BatchNorm layers have seen data and whose blocks all do something."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=LABELS)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            module.momentum = None  # a plain mean
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(16, 3, 64, 64))
    save_for_hf(model, str(folder), safe_serialization=True)


def batch_of(rows: int, size: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Images and labels drawn at random."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(rows, 3, size, size, generator=generator).to(dtype)
    return {"images": images, "labels": torch.randint(LABELS, (rows,), generator=generator)}


def with_loralight(folder: Path) -> ImageClassification:
    """The product's task."""
    task = ImageClassification(
        checkpoint=str(folder),
        labels=[str(number) for number in range(LABELS)],
        adapter=Lora(lr=1e-3, targets=["layer*.conv?", "layer*.downsample.0"], rank=RANK, alpha=RANK),
        accelerations={name: make(node) for name, node in settings_of("train", [], folder)["acceleration"].items()},
    )
    task.configure_model()
    task.start_accelerations_()
    task.train()
    assert {"channels_last", "batch_norm"} <= set(task.accelerations.on)
    return task


def with_peft(folder: Path, *, channels_last: bool) -> nn.Module:
    """PEFT's LoRA on the same layers, with the head that learns, and BatchNorm frozen."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    targets = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n != "conv1"]
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))  # type: ignore[arg-type]
    model.get_classifier().requires_grad_(True)  # type: ignore[operator]
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return adapted.to(memory_format=torch.channels_last) if channels_last else adapted  # type: ignore[call-overload]


def loss_of(way: str, folder: Path) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """A model in training mode, and its loss of a batch."""
    if way == "loralight":
        task = with_loralight(folder)

        def of_task(batch: Batch) -> Tensor:
            with task.accelerations.step(task.model):
                return task.step(batch).loss

        return task.model, of_task
    channels_last = way == "PEFT, channels-last"
    model = with_peft(folder, channels_last=channels_last)

    def loss(batch: Batch) -> Tensor:
        images = batch["images"]
        images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
        return F.cross_entropy(model(images), batch["labels"])

    return model, loss


def make_step(way: str, folder: Path, rows: int, size: int) -> Callable[[], Any]:
    """A whole step on one batch."""
    model, loss = loss_of(way, folder)
    assert model.training
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-3)
    batch = batch_of(rows, size)

    def step() -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return step


def check(folder: Path, ways: list[str]) -> None:
    """Raise unless all ways have the same loss and gradients, in float64 from the same factors."""
    found = []
    for way in ways:
        model, loss = loss_of(way, folder)
        model.double()
        torch.manual_seed(2)
        learning = {name.replace("base_model.model.", ""): one for name, one in trainable(model).items()}
        learning = {name.replace(".default.weight", ""): one for name, one in learning.items()}
        with torch.no_grad():
            for name in sorted(learning):
                learning[name].copy_(torch.randn(learning[name].shape) * 0.03)
        value = loss(batch_of(2, 64, torch.float64))
        value.backward()
        found.append({"loss": value.detach(), **{name: one.grad for name, one in learning.items()}})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-9, atol=1e-10)


def rows(quick: bool) -> list[Row]:
    """The rows of `docs/performance.md`."""
    found = []
    ways = ["loralight", "PEFT", "PEFT, channels-last"]
    for architecture, images, goals in WORKS:
        size, batch = images["size"], images["batch"]
        rounds = (5 if quick else 9) if size == 224 else (15 if quick else 45)  # short steps scatter more
        work = f"{architecture}, {batch} images of {size} px, LoRA on convolutions"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(architecture, folder)
            check(folder, ways)
            seconds = in_turns({way: make_step(way, folder, batch, size) for way in ways}, rounds=rounds)
            peaks = {way: peak_memory(make_step, way, folder, batch, size) for way in ways[:2]}
        found.append(Row(work, "PEFT", "time", ratio(seconds, ways[0], ways[1]), goals["time"]))
        found.append(Row(work, ways[2], "time", ratio(seconds, ways[0], ways[2]), goals["channels-last"]))
        memory = peaks["loralight"] / peaks["PEFT"]
        found.append(Row(work, "PEFT", "peak memory", Ratio(memory, memory, memory), goals["memory"]))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    torch.set_num_threads(1)
    show(rows(parser.parse_args().quick), "LoRA on convolutions, one thread")


if __name__ == "__main__":
    main()
