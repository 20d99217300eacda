"""On a GPU in bf16: a step of training beside PEFT with Hugging Face's Trainer, memory and share of the card's rate.

    python benchmarks/gpu.py [--only bert llama resnet50] [--compile] [--rounds 3] [--steps 20]

LoRA of rank 8 on every linear layer (or convolution of ResNet-50), AdamW, clipping and a linear schedule on both
sides, which get the same rows by as many workers, in batches of one size and either trainer's own order: loralight's
has rows of like length together. Weights are random, in the shapes of BERT-base, Llama 3.2 1B and ResNet-50: they cost
what trained ones do. A step is timed inside a run of each trainer, warmed up, and the runs take turns. The share is
that of the rate of a product of 8192 x 8192 x 8192 on the same card; its operations are those of the plain step that
PEFT makes, on both sides. What is estimated is the peak, as `loralight estimate` does it.

Llama has a third side, PEFT with Liger's kernels (Hsu et al., 2024, https://arxiv.org/abs/2410.10989) as Hugging Face's
Trainer puts them in, where they are installed: `pip install liger-kernel`.
"""

import argparse
import gc
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import timm
import torch
import transformers
from convolutions import write
from peft import LoraConfig, get_peft_model
from PIL import Image
from rich.console import Console
from rich.table import Table
from side_by_side import ratio
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.models.llama import modeling_llama
from transformers.utils import is_liger_kernel_available

from loralight import logs
from loralight.adapters import LoraLayer
from loralight.commands.estimate import Estimate
from loralight.config.build import build_data, build_task, build_trainer
from loralight.config.composition import compose, plain
from loralight.data import TaskData
from loralight.training.progress import progress_callbacks
from loralight.training.task import AdapterTask

WARM_UP = 8  # steps
NUM_WORDS, NUM_IMAGES = 20_000, 64
NUM_WORKERS = min(8, (os.cpu_count() or 1) - 1)  # what loralight takes beside a GPU
_COUNTED = 8  # rows whose operations are counted


class Work(NamedTuple):
    """What both sides do.

    Args:
        prepare: writes model and so many rows into a folder.
        overrides: those of `loralight train`, ``{folder}`` being that folder.
        batch: rows.
        unit: what is counted.
        peer_dtype: of the frozen weights on PEFT's side.
        has_liger: Liger has kernels for this model.
    """

    prepare: Callable[[Path, int], None]
    overrides: tuple[str, ...]
    batch: int
    unit: str
    peer_dtype: torch.dtype = torch.float32
    has_liger: bool = False


def words_of(folder: Path) -> np.ndarray[Any, Any]:
    """The words of a tokenizer that is written there beside the model."""
    words = [f"w{number}" for number in range(NUM_WORDS)]
    marks = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(marks + words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        eos_token="[SEP]",
    ).save_pretrained(folder / "model")
    return np.array(words)


def write_bert(folder: Path, num_rows: int, lengths: tuple[int, int]) -> None:
    """BERT-base's shape and texts of that many words, from and to."""
    words, draw = words_of(folder), np.random.default_rng(0)
    BertForSequenceClassification(BertConfig(vocab_size=30522)).save_pretrained(folder / "model")
    texts = (" ".join(draw.choice(words, draw.integers(*lengths, endpoint=True))) for _ in range(num_rows))
    lines = ["text,label", *(f"{text},{'ab'[number % 2]}" for number, text in enumerate(texts))]
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def write_llama(folder: Path, num_rows: int, lengths: tuple[int, int] = (1020, 1020)) -> None:
    """Llama 3.2 1B's shape in bf16, and texts of that many words, from and to, for so many rows of 1,024 tokens."""
    words, draw = words_of(folder), np.random.default_rng(0)
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        rope_theta=500_000.0,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "model")
    counts = draw.integers(*lengths, endpoint=True, size=num_rows * 1100 // lengths[0])
    counts = counts[: int((counts.cumsum() < num_rows * 1100).sum())] if lengths[0] < 1020 else counts[:num_rows]
    lines = ["text", *(" ".join(draw.choice(words, count)) for count in counts)]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    (folder / "validation.csv").write_text("\n".join(lines[:9]) + "\n")


def write_resnet(folder: Path, num_rows: int) -> None:
    """ResNet-50 and pictures of its size."""
    (folder / "model").mkdir()
    write("resnet50", folder / "model")
    draw = np.random.default_rng(0)
    for number in range(num_rows):
        for split in ("train", "validation") if number < NUM_IMAGES else ("train",):
            at = folder / split / "ab"[number % 2]
            at.mkdir(parents=True, exist_ok=True)
            if number < NUM_IMAGES:
                small = Image.fromarray(draw.integers(0, 256, (28, 28, 3), dtype=np.uint8))
                small.resize((256, 256)).save(at / f"{number}.jpg")
            else:  # what is in them does not matter
                first = number % NUM_IMAGES
                shutil.copy(folder / "train" / "ab"[first % 2] / f"{first}.jpg", at / f"{number}.jpg")


_MIXED, _TRUE = ("trainer.precision=bf16-mixed",), ("trainer.precision=bf16-true",)
_TEXT = (
    "task=text_classification",
    "data=text_classification",
    "data.path={folder}",
    "model.checkpoint={folder}/model",
)
_LM = ("task=text_generation", "data=text_generation", "data.path={folder}", "model.checkpoint={folder}/model")
_PACKED = (*_LM, "task.samples=0", "model.max_length=1024", *_TRUE)
_LM = (*_PACKED, "data.packed=false")
_IMAGES = ("task=image_classification", "data=image_classification", "data.path={folder}")
_IMAGES += ("model.checkpoint={folder}/model", "adapter.targets=[layer*.conv?,layer*.downsample.0]")

_BERT = partial(write_bert, lengths=(254, 254))
_PADDED = partial(write_bert, lengths=(8, 252))
_TEXT += ("model.max_length=256",)

WORKS = {
    "bert": Work(_BERT, (*_TEXT, *_MIXED), 128, "tokens"),
    "bert, base in bf16": Work(_BERT, (*_TEXT, *_TRUE), 128, "tokens", torch.bfloat16),
    "bert, rows of 10 to 254 tokens": Work(_PADDED, (*_TEXT, *_MIXED), 128, "tokens"),
    "llama": Work(write_llama, _LM, 8, "tokens", torch.bfloat16, True),
    "llama, checkpointing": Work(
        write_llama, (*_LM, "acceleration=gradient_checkpointing"), 8, "tokens", torch.bfloat16, True
    ),
    "llama, packed documents": Work(
        partial(write_llama, lengths=(32, 480)), _PACKED, 8, "tokens", torch.bfloat16, True
    ),
    "resnet50": Work(write_resnet, (*_IMAGES, *_MIXED), 128, "images"),
}


class Clock:
    """Reads the time where the warm-up and a run's steps end, and the peak of memory between."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.start, self.seconds, self.peak = steps, 0, 0.0, 0.0, 0

    def tick(self) -> None:
        """To be called after each step."""
        self.done += 1
        if self.done == WARM_UP:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.start = time.perf_counter()
        elif self.done == WARM_UP + self.steps:
            torch.cuda.synchronize()
            self.seconds = (time.perf_counter() - self.start) / self.steps
            self.peak = torch.cuda.max_memory_allocated()


class _OfLightning(lightning.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.tick()


class _OfHf(TrainerCallback):  # type: ignore[misc]
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.tick()


class _Peer(nn.Module):
    """A model of timm with its loss, as Hugging Face's Trainer wants it, BatchNorm frozen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def train(self, mode: bool = True) -> "_Peer":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def settings_of(work: Work, folder: Path, steps: int) -> dict[str, Any]:
    """The config of `loralight train`."""
    given = [override.format(folder=folder) for override in work.overrides]
    fixed = [
        f"data.batch_size={work.batch}",
        f"data.num_workers={NUM_WORKERS}",
        "adapter.rank=8",
        f"trainer.max_steps={steps}",
    ]
    fixed += ["trainer.limit_val_batches=0", "+trainer.enable_checkpointing=false", "~callbacks", "logger=csv"]
    config: dict[str, Any] = plain(compose("train", [*given, *fixed, f"logger.csv.save_dir={folder}/logs"]))
    return config


def with_loralight(work: Work, folder: Path, steps: int, compiled: bool) -> Clock:
    """As `loralight train` does it, bar, log and all."""
    config = settings_of(work, folder, WARM_UP + steps)
    data = build_data(config)
    task = build_task(config, data.model_arguments())
    if compiled:
        task.model.compile()
    clock = Clock(steps)
    _, callbacks = progress_callbacks(data.batch_size)
    build_trainer(config, folder, [*callbacks, _OfLightning(clock)]).fit(task, datamodule=data)
    return clock


def make_peer(work: Work, task: AdapterTask, folder: Path) -> nn.Module:
    """PEFT's model with LoRA on the same layers."""
    names = [name for name, module in task.model.named_modules() if isinstance(module, LoraLayer)]
    lora = partial(LoraConfig, r=8, lora_alpha=16, target_modules=names)
    if work.unit == "images":
        base: Any = timm.create_model(f"local-dir:{folder}/model", pretrained=True, num_classes=2)
        head = [name for name, module in base.named_modules() if module is base.get_classifier()]
        adapted = get_peft_model(base, lora(modules_to_save=head))
        return _Peer(adapted.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    if task.peft_task_type == "CAUSAL_LM":
        base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=work.peer_dtype)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=2, dtype=work.peer_dtype)
    return get_peft_model(base, lora(task_type=task.peft_task_type))


def with_hf_trainer(work: Work, folder: Path, steps: int, compiled: bool, liger: bool = False) -> Clock:
    """PEFT's model in Hugging Face's Trainer."""
    config = settings_of(work, folder, WARM_UP + steps)
    data = build_data(config)
    task = build_task(config, data.model_arguments())  # for the names of its layers
    model = make_peer(work, task, folder)
    del task
    clock = Clock(steps)
    arguments = TrainingArguments(
        output_dir=str(folder / "peer"),
        per_device_train_batch_size=work.batch,
        max_steps=WARM_UP + steps,
        learning_rate=1e-3,
        warmup_steps=0.06,
        bf16=True,
        torch_compile=compiled,
        gradient_checkpointing="gradient_checkpointing" in config["acceleration"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=NUM_WORKERS,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_liger_kernel=liger,
    )
    rows: Any = data.splits["train"]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=partial(_collate, data),
        callbacks=[_OfHf(clock)],
    )
    with _llama_put_back():
        trainer.train()
    return clock


@contextmanager
def _llama_put_back() -> Iterator[None]:
    """Afterwards transformers' Llama is what it was: Liger's functions and classes replace its own for all models."""
    before = dict(vars(modeling_llama))
    try:
        yield
    finally:
        vars(modeling_llama).update(before)


def _collate(data: TaskData, rows: list[Any]) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = data.collate(rows)
    if "targets" in batch:  # those of loralight are shifted already, transformers shifts labels itself
        batch["labels"] = nn.functional.pad(batch.pop("targets"), (1, 0), value=-100)[:, :-1]
    return batch


def size_of(work: Work, folder: Path) -> tuple[float, float]:
    """Tokens or images of a batch, and floating-point operations of PEFT's plain step on them, without padding."""
    config = settings_of(work, folder, 1)
    data = build_data(config)
    model: Any = make_peer(work, build_task(config, data.model_arguments()), folder).cuda().train()
    if work.unit == "tokens":  # the counter does not know heads that share keys
        model.get_base_model().set_attn_implementation("eager")
    rows = data.splits["train"]
    with FlopCounterMode(display=False) as counter, torch.autocast("cuda", torch.bfloat16):
        for number in range(_COUNTED):
            batch = {name: tensor.cuda() for name, tensor in _collate(data, [rows[number]]).items()}
            model(**batch)["loss"].backward()
    lengths = data.lengths("train")
    return work.batch * sum(lengths) / len(lengths), work.batch * counter.get_total_flops() / _COUNTED


def peak_rate() -> float:
    """Operations a second of a large product in bf16."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


PEER, LIGER = "PEFT + HF Trainer", "PEFT + HF Trainer + Liger"
WAYS = {PEER: with_hf_trainer, LIGER: partial(with_hf_trainer, liger=True), "loralight": with_loralight}


def ways_of(work: Work) -> list[str]:
    """The sides that a work has here."""
    return [way for way in WAYS if way != LIGER or (work.has_liger and is_liger_kernel_available())]


def measure(
    name: str, work: Work, rounds: int, steps: int, compiled: bool, rate: float, table: Table, console: Console
) -> None:
    """Run all sides in turns and add their rows."""
    seconds: dict[str, list[float]] = {way: [] for way in ways_of(work)}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        folder = Path(place)
        work.prepare(folder, work.batch * (WARM_UP + steps + 1))
        items, count = size_of(work, folder)
        for number in range(rounds):
            for way in list(seconds)[:: 1 if number % 2 else -1]:
                gc.collect()
                torch.cuda.empty_cache()
                torch._dynamo.reset()
                clock = WAYS[way](work, folder, steps, compiled)
                console.print(f"{name}, {way}: {clock.seconds * 1e3:.1f} ms")
                seconds[way].append(clock.seconds)
                peaks[way] = clock.peak
        estimated = sum(Estimate(settings_of(work, folder, steps)).sizes(work.batch).values())
    for way in seconds:
        median = sorted(seconds[way])[rounds // 2]
        table.add_row(
            f"{name}{', compiled' if compiled else ''}",
            way,
            f"{median * 1e3:.1f} ms",
            f"{items / median:,.0f} {work.unit}",
            f"{count / median / rate:.2f}",
            f"{peaks[way] / 1e9:.2f} GB",
            str(ratio(seconds, way, PEER)),
            f"{peaks[way] / peaks[PEER]:.2f}",
            f"{estimated / 1e9:.2f} GB" if way == "loralight" else "",
        )


def main() -> None:
    """Print the table, and what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "there is no GPU here\n")
    if not is_liger_kernel_available():
        print("liger-kernel is not installed, so its rows are left out; pip install liger-kernel brings them")
    logs.configure()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    rate = peak_rate()
    title = f"{torch.cuda.get_device_name()}, torch {torch.__version__}; bf16 products at {rate / 1e12:.0f} TFLOP/s"
    columns = ("work", "way", "step", "a second", "share of that rate", "peak memory", "time, PEFT = 1.00", "memory")
    columns += ("estimated",)
    table = Table(*columns, title=title, title_justify="left")
    console = Console(width=170)
    for name in arguments.only:
        try:
            measure(name, WORKS[name], arguments.rounds, arguments.steps, arguments.compile, rate, table, console)
        except RuntimeError:  # out of memory, say: the others are measured all the same
            console.print_exception(max_frames=4)
        console.print(table)


if __name__ == "__main__":
    main()
