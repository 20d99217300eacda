"""SST-2, one epoch: loralight beside PEFT in a plain loop, on the same batches with the same hyperparameters.

    python benchmarks/sst2.py --data FOLDER --seeds 0 1 2 [--rows 8000]

FOLDER holds train and validation files with the columns text and label. Prints a table of validation accuracy; the
runs of loralight go through its command line into --output, and what is finished there is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

from loralight.build import build_data
from loralight.resources import resolve
from loralight.run_folder import read_config


def overrides(data: str, seed: int, rows: int | None) -> list[str]:
    """The settings of both sides, as loralight's command line takes them."""
    chosen = ["experiment=sst2", f"data.path='{data}'", "data.columns.text=text", f"seed={seed}", "trainer=cpu"]
    return [*chosen, f"data.limit_rows={rows}"] if rows else chosen


def with_loralight(data: str, seed: int, rows: int | None, run: Path) -> float:
    """Validation accuracy of a run of the command line."""
    if not (run / "summary.json").exists():
        command = [sys.executable, "-m", "loralight", "train", *overrides(data, seed, rows), f"hydra.run.dir='{run}'"]
        subprocess.run(command, check=True)
    return float(json.loads((run / "summary.json").read_text())["metrics"]["validation/accuracy"])


def with_peft(seed: int, run: Path) -> float:
    """Validation accuracy of PEFT's LoRA in a plain loop over the batches of ``run``, with its settings."""
    if (result := run / "peft.json").exists():
        return float(json.loads(result.read_text())["validation/accuracy"])
    config = read_config(run)
    module = build_data(config)
    torch.manual_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(resolve(config["model"]["checkpoint"]), num_labels=2)
    adapter = config["adapter"]
    rank = adapter["rank"]
    # PEFT's own all-linear chooses the same 37 layers: every linear one but the classifier, which is trained in full
    model = get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config["optimizer"]["weight_decay"]},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=adapter["lr"])
    loader = module.train_dataloader()
    schedule = get_linear_schedule_with_warmup(
        optimizer, round(config["scheduler"]["warmup"] * len(loader)), len(loader)
    )
    model.train()
    for batch in loader:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config["trainer"]["gradient_clip_val"])
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        hits = [(model(**batch).logits.argmax(-1) == batch["labels"]).float() for batch in module.val_dataloader()]
    accuracy = float(torch.cat(hits).mean())
    result.write_text(json.dumps({"validation/accuracy": accuracy}) + "\n")
    return accuracy


def main() -> None:
    """Run both sides for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_sst2"))
    arguments = parser.parse_args()
    table = Table("seed", "loralight", "PEFT + plain loop", "difference in points")
    results = []
    for seed in arguments.seeds:
        run = arguments.output.resolve() / f"loralight-seed{seed}-rows{arguments.rows or 'all'}"
        ours = with_loralight(arguments.data, seed, arguments.rows, run)
        theirs = with_peft(seed, run)
        results.append((ours, theirs))
        print(f"seed {seed}: loralight {ours:.4f}, PEFT {theirs:.4f}", flush=True)
        table.add_row(str(seed), f"{ours:.4f}", f"{theirs:.4f}", f"{100 * (ours - theirs):+.2f}")
    means = [statistics.mean(side) for side in zip(*results, strict=True)]
    table.add_section()
    table.add_row("mean", f"{means[0]:.4f}", f"{means[1]:.4f}", f"{100 * (means[0] - means[1]):+.2f}")
    Console().print(table)
    size = sum(t.numel() * t.element_size() for t in load_file(run / "adapter" / "adapter_model.safetensors").values())
    model = json.loads((run / "summary.json").read_text())["bytes"]["model"]
    print(f"adapter tensors {size:,} bytes, {size / model:.2%} of the model's {model:,}")


if __name__ == "__main__":
    main()
