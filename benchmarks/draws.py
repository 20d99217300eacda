"""Loss and gradient over many draws of dropout, at fixed weights, beside PEFT: equal in distribution?

    python benchmarks/draws.py --draws 200 -- experiment=wnut17 data.path=FOLDER data.batch_size=8

What stands behind ``--`` are overrides of ``loralight train``. Both sides have the same batch and the same weights,
with B drawn at random. Without dropout their gradients are equal; with it, mean and variance over the draws should be.
"""

import argparse
import copy
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from beside_peft import in_peft
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor

from loralight import logs
from loralight.adapters import LoraLayer
from loralight.adapters.base import trainable
from loralight.config.build import build_data, build_task
from loralight.config.composition import settings_of
from loralight.training.task import AdapterTask


def with_peft(task: AdapterTask, config: dict[str, Any]) -> AdapterTask:
    """A task like ``task`` on PEFT's layers, with its weights."""
    theirs = copy.copy(task)
    names = [name for name, module in task.model.named_modules() if isinstance(module, LoraLayer)]
    base = task.build_model()
    heads = [name for name, module in base.named_modules() if any(module is part for part in task.head(base))]
    rank = config["adapter"]["rank"]
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, modules_to_save=heads)
    theirs._modules = {**task._modules, "model": get_peft_model(base, lora).get_base_model()}
    for name, parameter in trainable(task.model).items():
        theirs.model.get_parameter(in_peft(name)).data.copy_(parameter)
    return theirs


def draw(task: AdapterTask, batch: Any, parameters: list[Tensor], *, ours: bool) -> tuple[float, Tensor]:
    """The loss, and the gradient of all parameters as a vector."""
    with task.accelerations.step(task.model) if ours else nullcontext():
        loss = task.step(batch).loss
    return loss.item(), torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]).double()


def main() -> None:
    """Print the moments of both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("overrides", nargs="+")
    arguments = parser.parse_args()
    logs.configure()
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of("train", arguments.overrides, Path(folder))
        data = build_data(config)
    task = build_task(config, data.model_arguments())
    for name, parameter in trainable(task.model).items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.02)
    names, batch = list(trainable(task.model)), next(iter(data.train_dataloader()))
    sides = {"PEFT": with_peft(task, config), "loralight": task}
    table = Table(
        "", "loss", "its deviation", "norm of the mean gradient", "sum of its variances", title_justify="left"
    )
    means, expected = {}, 0.0
    for side, of in sides.items():
        ours = of is task
        parameters = [of.model.get_parameter(name if ours else in_peft(name)) for name in names]
        of.model.train()
        if ours:
            task.start_accelerations_(data)
            task.train()
        torch.manual_seed(0)
        losses, gradients, squares = [], torch.zeros(()), torch.zeros(())
        for _ in range(arguments.draws):
            loss, gradient = draw(of, batch, parameters, ours=ours)
            losses.append(loss)
            gradients, squares = gradients + gradient, squares + gradient.square()
        means[side] = mean = gradients / arguments.draws
        variance = float((squares / arguments.draws - mean.square()).sum())
        expected += variance / arguments.draws
        found = torch.tensor(losses)
        table.add_row(side, *(f"{float(number):.4f}" for number in (found.mean(), found.std(), mean.norm(), variance)))
    Console().print(table)
    apart = float((means["PEFT"] - means["loralight"]).square().sum())
    print(f"squared distance of the mean gradients: {apart:.5f}; of equal distributions: {expected:.5f} on average")


if __name__ == "__main__":
    main()
