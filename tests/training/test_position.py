"""Runs that are killed at any moment and resumed end as if nothing had happened: adapter, losses, metrics and best."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MetricCollection
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from loralight.adapters import Lora
from loralight.errors import InputError
from loralight.training import AdapterTask, Step
from loralight.training.checkpoint import newest
from loralight.training.position import Position

from ..warm import run_warm

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children that it forks"),
    pytest.mark.timeout(1200),  # up to eight runs, on machines that do much else
]

TASKS = ["text_classification", "ner", "text_generation", "image_classification"]
Moment = tuple[str, int]  # an event, and which of its kind

# Each run is a child of one process, and is killed when it has met an event so many times.
RUNS = """
import json, os, signal, sys
from loralight.cli import run
from loralight.training.background import BackgroundCheckpointIO
from loralight.training.task import AdapterTask
import loralight.commands.train
from lightning.pytorch.loggers import CSVLogger

os.fsync = lambda _: None  # what is written outlives a killed process

def meet(event):
    met[event] = met.get(event, 0) + 1
    met["any"] = met.get("any", 0) + 1
    if moment and met.get(moment[0]) == moment[1]:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(kind, name, before=None, after=None, note=None):
    made = getattr(kind, name)
    def watched(self, *arguments, **named):
        sanity = isinstance(self, AdapterTask) and self.trainer.sanity_checking
        if before and not sanity:
            meet(before)
        found = made(self, *arguments, **named)
        if note:
            note(self, *arguments, found)
        if after and not sanity:
            meet(after)
        return found
    setattr(kind, name, watched)

def note_loss(task, batch, batch_idx, loss):
    with open(f"{task.trainer.default_root_dir}/losses.jsonl", "a") as losses:
        losses.write(json.dumps([task.current_epoch, batch_idx, loss.item()]) + chr(10))

watch(AdapterTask, "training_step", before="step", note=note_loss)
watch(AdapterTask, "validation_step", before="validation")
watch(AdapterTask, "optimizer_step", after="optimizer")
watch(AdapterTask, "on_train_epoch_end", after="epoch")
watch(BackgroundCheckpointIO, "save_checkpoint", after="save")
watch(CSVLogger, "log_metrics", before="log")
for line, moment in json.load(sys.stdin):
    met = {}
    if os.fork() == 0:
        code = run(line)
        print("events", met.get("any", 0), flush=True)
        os._exit(code)
    print("ended with", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="session")
def tiny(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Overrides for a tiny model of each task on a few rows: ten or so batches an epoch."""
    folder = tmp_path_factory.mktemp("tiny")

    def text_classification() -> list[str]:
        for split, count in {"train": 77, "validation": 24}.items():
            rows = [(f"{['dull', 'fine'][n % 2]}{' film' * (n % 11)}", ["bad", "good"][n % 2]) for n in range(count)]
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as opened:
                csv.writer(opened).writerows([("text", "label"), *rows])
        return [
            *("data=text_classification", f"data.train='{folder}/train.csv'"),
            *(f"data.validation='{folder}/validation.csv'", "model.max_length=16", f"model.checkpoint='{tiny_bert}'"),
        ]

    def ner() -> list[str]:
        return [f"model.checkpoint='{tiny_bert}'", "model.max_length=32", "model.stride=8", "data.limit_rows=70"]

    def text_generation() -> list[str]:
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert, eos_token="[SEP]")
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder / "llama")
        tokenizer.save_pretrained(folder / "llama")
        words = ["the", "quick", "brown", "fox", "over", "a", "lazy", "dog"]
        for split, count in {"train": 150, "validation": 30}.items():
            texts = [
                json.dumps({"text": " ".join(words[n % (3 + k) % 8] for k in range(4 + n % 5))}) for n in range(count)
            ]
            (folder / f"{split}.jsonl").write_text("\n".join(texts), encoding="utf-8")
        return [
            *("data=text_generation", f"data.train='{folder}/train.jsonl'", "task.samples=0", "model.max_length=16"),
            *(f"data.validation='{folder}/validation.jsonl'", f"model.checkpoint='{folder}/llama'"),
        ]

    def image_classification() -> list[str]:
        (folder / "resnet").mkdir()
        # timm multiplies what blocks compute by 0 at first, so nothing in them would learn
        resnet = timm.create_model("test_resnet", num_classes=5, zero_init_last=False)
        save_file(resnet.state_dict(), folder / "resnet" / "model.safetensors")
        config = {"architecture": "test_resnet", "num_classes": 5, "input_size": [3, 32, 32]}
        (folder / "resnet" / "config.json").write_text(json.dumps(config))
        shades = np.random.default_rng(0)
        for label, shade in {"dark": 60, "light": 160}.items():
            (folder / "images" / label).mkdir(parents=True)
            for number in range(44):
                pixels = shades.normal(shade, 50, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "images" / label / f"{number}.png")
        return [
            *("data=image_classification", f"data.path='{folder}/images'", f"model.checkpoint='{folder}/resnet'"),
            "task.mixup=0.2",
        ]

    made: dict[str, list[str]] = {}

    def overrides(task: str) -> list[str]:
        if task not in made:
            made[task] = locals_of[task]()
        return [f"task={task}", *made[task]]

    locals_of = {
        "text_classification": text_classification,
        "ner": ner,
        "text_generation": text_generation,
        "image_classification": image_classification,
    }
    return overrides


@pytest.fixture
def runs(tiny: Callable[[str], list[str]], tmp_path: Path) -> "Runs":
    return Runs(tiny, tmp_path)


class Runs:
    """Trains the same run, whole and killed at some moments, each in a folder of its name."""

    def __init__(self, tiny: Callable[[str], list[str]], folder: Path) -> None:
        self._tiny, self._folder = tiny, folder
        self._queue: list[tuple[list[str], Moment | None]] = []

    def begin(self, name: str, task: str, settings: Iterable[str], *moments: Moment) -> None:
        """Have a run begin and be resumed after each kill, until it ends."""
        line = [
            "train",
            *self._tiny(task),
            "trainer=cpu",
            "trainer.max_epochs=2",
            "data.batch_size=8",
            "adapter.rank=4",
        ]
        line += ["callbacks.recent.every_n_train_steps=1", "optimizer.lr=0.02"]
        line += [
            "adapter.dropout=0.1",
            "monitor.metric=validation/loss",
            "monitor.mode=min",
            "trainer.log_every_n_steps=1",
        ]
        line += ["data.eval_batch_size=4", "trainer.num_sanity_val_steps=1"]
        line += ["trainer.log_every_n_steps=1", *settings, f"hydra.run.dir='{name}'"]
        resumed = ["train", f"resume='{name}'"]
        for number, moment in enumerate([*moments, None]):
            self._queue.append((resumed if number else line, moment))

    def do(self, *, all_die: bool = True) -> list[int]:
        """Do what was begun; returns how many events each run that ended by itself has met.

        Args:
            all_die: whether each run is to meet its moment: it may end before.
        """
        done = run_warm(["-c", RUNS], input=json.dumps(self._queue), cwd=self._folder, timeout=1200)
        wanted = [-signal.SIGKILL if moment else 0 for _, moment in self._queue]
        ended = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("ended with")]
        if not all_die:
            wanted = [end if want else 0 for end, want in zip(ended, wanted, strict=True)]
        assert ended == wanted, done.stderr[-9000:]
        self._queue = []
        return [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("events")]

    def assert_same(self, killed: str, whole: str) -> None:
        one, other = self._folder / killed, self._folder / whole
        assert losses(one) == losses(other)
        assert rows(one) == rows(other)
        assert best(one) == best(other)
        assert metrics(one) == metrics(other)
        assert sha256(one / "adapter/adapter_model.safetensors") == sha256(other / "adapter/adapter_model.safetensors")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def losses(run: Path) -> dict[tuple[int, int], float]:
    """By epoch and batch; one that was computed again is the same again."""
    found: dict[tuple[int, int], float] = {}
    for line in (run / "losses.jsonl").read_text().splitlines():
        epoch, batch, loss = json.loads(line)
        assert found.setdefault((epoch, batch), loss) == loss, (epoch, batch)
    return found


def rows(run: Path) -> set[tuple[str, str, str, str]]:
    """All of a run's tables by epoch, step, name and value; what was logged again counts once if it is the same."""
    return {
        (row["epoch"], row["step"], name, value)
        for file in run.glob("metrics*.csv")
        for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())
        for name, value in row.items()
        if value
    }


def best(run: Path) -> tuple[str, dict[str, bytes]]:
    """The name of the best checkpoint, and what it holds of the model and the optimizer."""
    state = json.loads((newest(run) / "state.json").read_text())
    paths = [saved["best_model_path"] for saved in state["callbacks"].values() if "best_model_path" in saved]
    (folder,) = (run / path for path in paths if Path(path).parent.name == "best")
    tensors = load_file(folder / "tensors.safetensors")
    kept = ("checkpoint.state_dict.", "checkpoint.optimizer_states.")
    return folder.name, {name: t.numpy().tobytes() for name, t in tensors.items() if name.startswith(kept)}


def metrics(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text())["metrics"]


ACCUMULATED = ["trainer.accumulate_grad_batches=4", "trainer.val_check_interval=0.5"]

# task, settings, and when the run and each of those that resume it are killed. Ten batches make an epoch; a checkpoint
# is saved after every optimizer step, the best once that is known, and the last at the end of an epoch.
CHAINS: dict[str, tuple[str, list[str], list[Moment]]] = {
    "at ends": (
        "text_classification",
        ["data.num_workers=2", "scheduler=cosine", "callbacks=early_stopping"],
        [
            ("save", 10),  # of the epoch's last step, before its validation
            ("validation", 2),
            ("save", 1),  # of the best, before the last
            ("step", 3),
            ("step", 3),  # once more in the same epoch
        ],
    ),
    "inside of windows": (
        "text_classification",
        ACCUMULATED,
        [
            ("save", 2),  # of the best after five batches, when the second window has one
            ("validation", 2),
            ("epoch", 1),
            ("step", 7),
        ],
    ),
    "of entities": ("ner", ["data.num_workers=2", *ACCUMULATED], [("step", 16)]),
    "of generated text": ("text_generation", ["data.num_workers=2"], [("validation", 2)]),
    "of images": ("image_classification", [*ACCUMULATED, "callbacks=early_stopping"], [("save", 4)]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(name: str, runs: Runs) -> None:
    task, settings, moments = CHAINS[name]
    runs.begin("whole", task, settings)
    runs.begin("killed", task, settings, *moments)
    runs.do()
    runs.assert_same("killed", "whole")


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (
            {"ranks": 2, "epoch": 1},
            r"^E-RESUME-ORDER: the checkpoint is of 2 processes, these are 1; .* loralight\.TaskData",
        ),
        ({"ranks": 1, "epoch": 3}, r"^E-RESUME: 3 epochs are done, trainer\.max_epochs is 2; give as many"),
    ],
)
def test_a_checkpoint_that_this_run_cannot_go_on_from_is_refused(at: dict[str, int], says: str) -> None:
    trainer: Any = SimpleNamespace(world_size=1, max_epochs=2, datamodule=None)  # rows that are not ours
    counts = dict.fromkeys(("batches", "steps", "total_batches", "validated"), 0)
    whole = {**counts, "is_last": False, "base": "", "row": {}, "metrics": {}, **at}
    with pytest.raises(InputError, match=says):
        Position().on_load_checkpoint(trainer, lightning.LightningModule(), {"position": whole})


@pytest.mark.slow
@pytest.mark.parametrize("interval", [1.0, 0.5])
@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("task", TASKS)
def test_runs_killed_at_random_moments_end_as_if_they_had_not_been(
    task: str, accumulated: int, interval: float, runs: Runs
) -> None:
    settings = [f"trainer.accumulate_grad_batches={accumulated}", f"trainer.val_check_interval={interval}"]
    runs.begin("whole", task, settings)
    (events,) = runs.do()
    at = random.Random(f"{task} {accumulated} {interval}")
    for number in range(4):
        # the first is late enough for a checkpoint to be there; those that follow may well fall into the same epoch
        moments = [("any", at.randint(events // 4, events // 2)), *[("any", at.randint(1, events // 3))] * 3]
        runs.begin(f"killed {number}", task, [*settings, f"data.num_workers={2 * (number % 2)}"], *moments)
    runs.do(all_die=False)
    for number in range(4):
        runs.assert_same(f"killed {number}", "whole")


class Plain(AdapterTask):
    """A script's task, with dropout."""

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    def head(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, nn.Sequential)
        return [model[2]]

    def metrics(self) -> MetricCollection:
        return MetricCollection({})

    def step(self, batch: list[Tensor]) -> Step:
        found = self.model(batch[0])
        return Step(F.mse_loss(found, batch[1]), found, batch[1])

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        return [{} for _ in inputs]


class Endless(IterableDataset[list[Tensor]]):
    """Rows in a new order each time, of which nobody can say how many there are."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(10).tolist()
        return iter([[x, y] for x, y in zip(*few_rows(), strict=True)][row] for row in order)


def few_rows() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(10, 6, generator=random), torch.randn(10, 1, generator=random)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")  # ours are exact
@pytest.mark.parametrize("kind", ["a loader", "with a worker", "without a length", "accumulated"])
def test_a_plain_trainer_goes_on_from_a_plain_checkpoint_as_if_nothing_had_been(kind: str, tmp_path: Path) -> None:
    folder, kept = tmp_path / "checkpoints", tmp_path / "kept"

    def train(go_on_from: Path | None = None) -> dict[str, Tensor]:
        optimizer: Any = partial(torch.optim.AdamW, lr=0.01)
        task = Plain(adapter=Lora(targets="0", rank=2, dropout=0.2), optimizer=optimizer)
        checkpoints = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=3,
            accumulate_grad_batches=2 if kind == "accumulated" else 1,
            callbacks=[checkpoints],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        torch.manual_seed(int.from_bytes(os.urandom(4)))  # a script that seeds nothing
        given: Any = Endless() if kind == "without a length" else TensorDataset(*few_rows())
        workers = {"num_workers": 1} if kind == "with a worker" else {}
        shuffled = {} if kind == "without a length" else {"shuffle": True}
        loader = DataLoader(given, 4, **shuffled, **workers)
        trainer.fit(task, loader, DataLoader(TensorDataset(*few_rows()), 5), ckpt_path=go_on_from)
        return task.trainable_tensors()

    expected = train()
    folder.rename(kept)
    steps = {"accumulated": 6}.get(kind, 9)
    moments = [1, 3, 4] if kind == "with a worker" else range(1, steps)
    for step in moments:
        found = train(kept / f"step={step}.ckpt")
        shutil.rmtree(folder)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), f"{name} after going on from step {step}"
