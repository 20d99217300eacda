"""A task's experiment beside PEFT in a plain loop, on the same batches with the same hyperparameters.

    python benchmarks/beside_peft.py --seeds 0 1 2 --metric test/f1 -- experiment=wnut17 data.path=FOLDER

What stands behind ``--`` are overrides of ``loralight train``. loralight's side is its command line; PEFT's is
`get_peft_model` on the same layers with the same head, AdamW, learning rates, schedule and clipping, in a loop of a few
lines around the task's own loss. Both keep the epoch that is best on validation. Runs go into --output, and what is
finished there is not run again. The settings must leave the optimizer adamw; of LoRA's they may set rank, alpha,
dropout, targets and learning rate.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torchmetrics import MeanMetric
from transformers import get_scheduler

from loralight.adapters import LoraLayer
from loralight.adapters.base import trainable
from loralight.artifacts.run_folder import read_config
from loralight.config.build import build_data, build_task
from loralight.training.task import AdapterTask


def with_loralight(overrides: list[str], seed: int, run: Path) -> dict[str, float]:
    """The metrics of a run of the command line."""
    if not (run / "summary.json").exists():
        command = [sys.executable, "-m", "loralight", "train", *overrides, f"seed={seed}", f"hydra.run.dir='{run}'"]
        subprocess.run(command, check=True)
    return dict(json.loads((run / "summary.json").read_text())["metrics"])


def with_peft(run: Path) -> dict[str, float]:
    """The metrics of PEFT's LoRA in a plain loop over the batches of ``run``, with its settings."""
    if (result := run / "peft.json").exists():
        return dict(json.loads(result.read_text()))
    config = read_config(run)
    data = build_data(config)
    task = build_task(config, data.model_arguments())  # for its loss, its metrics and the names of its layers
    names = [name for name, module in task.model.named_modules() if isinstance(module, LoraLayer)]
    rates = task.make_optimizer().param_groups
    torch.manual_seed(config["seed"])
    base = task.build_base()
    heads = [name for name, module in base.named_modules() if any(module is part for part in task.head(base))]
    rank, alpha = config["adapter"]["rank"], config["adapter"]["alpha"]
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=config["adapter"]["dropout"],
        target_modules=names,
        modules_to_save=heads or None,
    )
    task.model = get_peft_model(base, lora).get_base_model()
    task.choose_modes_()  # the run's policy, on PEFT's model too: get_peft_model leaves BatchNorm to train()
    task.train()
    trained = list(trainable(task.model).values())
    optimizer = torch.optim.AdamW(
        {
            "params": [task.model.get_parameter(in_peft(name)) for name in group["param_names"]],
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
        }
        for group in rates
    )
    loader = data.train_dataloader()
    num_epochs = config["trainer"]["max_epochs"]
    limit = config["trainer"].get("max_steps", -1)
    num_steps = limit if limit > 0 else len(loader) * num_epochs
    schedule = get_scheduler(
        config["scheduler"]["name"], optimizer, round(config["scheduler"]["warmup"] * num_steps), num_steps
    )
    sign = 1 if config["monitor"]["mode"] == "max" else -1
    done = 0
    best: tuple[float, dict[str, torch.Tensor]] = (-float("inf"), {})
    for epoch in range(num_epochs):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        task.train()
        for batch in loader:
            if done == num_steps:
                break
            done += 1
            optimizer.zero_grad()
            task.step(batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config["trainer"]["gradient_clip_val"])
            optimizer.step()
            schedule.step()
        score = sign * measure(task, data.val_dataloader(), "validation")[config["monitor"]["metric"]]
        print(f"PEFT, epoch {epoch}: {config['monitor']['metric']} {sign * score:.4f}", flush=True)
        if score > best[0]:
            best = (score, copy.deepcopy(task.model.state_dict()))
    task.model.load_state_dict(best[1])
    metrics = measure(task, data.val_dataloader(), "validation")
    if "test" in data.splits:
        metrics |= measure(task, data.test_dataloader(), "test")
    result.write_text(json.dumps(metrics) + "\n")
    return metrics


def in_peft(name: str) -> str:
    """PEFT's name of a trainable parameter of ours."""
    owner, _, own = name.rpartition(".")
    return f"{owner}.{own}.default.weight" if own in ("lora_A", "lora_B") else f"{owner}.modules_to_save.default.{own}"


@torch.inference_mode()
def measure(task: AdapterTask, batches: Any, split: str) -> dict[str, float]:
    """Loss and metrics over a split."""
    task.eval()
    loss, scores = MeanMetric(), task.metrics()
    for batch in batches:
        step = task.step(batch)
        loss.update(step.loss, len(step.targets) if step.weight is None else step.weight)
        scores.update(step.predictions, step.targets)
    return {f"{split}/loss": float(loss.compute())} | {f"{split}/{n}": float(v) for n, v in scores.compute().items()}


def main() -> None:
    """Run both sides for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--metric", required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/beside_peft"))
    parser.add_argument("overrides", nargs="+")
    arguments = parser.parse_args()
    table = Table("seed", "loralight", "PEFT + plain loop", "difference", title=arguments.metric, title_justify="left")
    results = []
    for seed in arguments.seeds:
        run = arguments.output.resolve() / f"seed{seed}"
        ours = with_loralight(arguments.overrides, seed, run)[arguments.metric]
        theirs = with_peft(run)[arguments.metric]
        results.append((ours, theirs))
        print(f"seed {seed}: loralight {ours:.4f}, PEFT {theirs:.4f}", flush=True)
        table.add_row(str(seed), f"{ours:.4f}", f"{theirs:.4f}", f"{ours - theirs:+.4f}")
    means, spreads = ([f(side) for side in zip(*results, strict=True)] for f in (statistics.mean, _spread))
    table.add_section()
    table.add_row("mean", f"{means[0]:.4f}", f"{means[1]:.4f}", f"{means[0] - means[1]:+.4f}")
    table.add_row("standard deviation", f"{spreads[0]:.4f}", f"{spreads[1]:.4f}", "")
    Console().print(table)
    summary = json.loads((run / "summary.json").read_text())
    trained, total = summary["parameters"]["trainable"], summary["parameters"]["total"]
    print(f"{trained:,} of {total:,} parameters learn ({trained / total:.2%}); {summary['versions']}")


def _spread(values: tuple[float, ...]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
