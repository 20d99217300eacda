"""Training from a notebook, where Lightning's strategies fork the processes that train."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")

CELLS = """
import sys
sys.ps1 = ">>> "  # by which Lightning knows a notebook
from functools import partial
import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from several import Rows, Tokens
from loralight.adapters import Lora
from loralight.training.optim import schedule

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
quiet |= {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "precision": "64-true", "max_epochs": 2}

def fit(**devices):
    adam, linear = partial(torch.optim.AdamW, lr=0.05), partial(schedule, name="linear")
    task = Tokens(adapter=Lora(targets="0", rank=2), optimizer=adam, scheduler=linear, seed=3)
    trainer = lightning.Trainer(accelerator="cpu", **quiet, **devices)
    trainer.fit(task, datamodule=Rows(num_rows=53, num_workers=0, global_batch_size=12))
    return task.trainable_tensors()

several = fit(devices=2)  # by ddp_fork, which Lightning chooses here
torch.testing.assert_close(several, fit(devices=2, strategy="ddp_notebook"))
torch.testing.assert_close(several, fit(devices=1), rtol=0, atol=1e-12)
try:
    fit(devices=2, strategy="ddp")
except MisconfigurationException as error:
    print(error)
"""


def test_two_processes_of_a_notebook_bring_back_what_one_would_learn(
    run_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = run_command([sys.executable, "-c", CELLS], cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "`Trainer(strategy='ddp')` is not compatible with an interactive environment" in done.stdout
