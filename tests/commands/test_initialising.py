"""Adapters that change their own form, before training or after it: such a run is evaluated, resumed and loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import loralight
from loralight.adapters import Lora
from loralight.training.checkpoint import newest

InProcess = Callable[..., int]
EVA = ["adapter.init=eva", "adapter.eva_batches=2", "adapter.rank=4"]


@pytest.mark.parametrize(
    "settings",
    [["adapter=adalora", "adapter.rank=2"], ["adapter.init=pissa", "optimizer.lr=1e-3"], EVA],
    ids=["adalora", "pissa", "eva"],
)
def test_a_run_whose_adapter_is_kept_in_another_form_is_evaluated_and_loaded(
    settings: list[str], in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    assert in_process("train", *tiny_run, *settings, "hydra.run.dir=run") == 0
    assert in_process("evaluate", "run=run", "output=again.json") == 0
    reported = json.loads((tmp_path / "run" / "summary.json").read_text())
    measured = json.loads((tmp_path / "again.json").read_text())
    # the form that is kept adds up in another order
    assert measured == pytest.approx({name: reported["metrics"][name] for name in measured}, rel=1e-4)
    loaded = loralight.load(tmp_path / "run")
    assert isinstance(loaded.adapter, Lora) and loaded.predict(["a fine film"])
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and (settings != EVA or config["rank_pattern"])


def test_a_run_that_began_by_looking_at_data_is_resumed_as_it_began(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path
) -> None:
    line = [*tiny_run, *EVA, "scheduler=constant", "scheduler.warmup=0"]
    assert in_process("train", *line, "trainer.max_epochs=2", "hydra.run.dir=whole") == 0
    assert in_process("train", *line, "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    ranks = json.loads((tmp_path / "run" / "initialised.json").read_text())["arguments"]["rank_pattern"]
    assert sum(ranks.values()) == 4 * len(ranks) and len(set(ranks.values())) > 1
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
    whole, resumed = (load_file(newest(tmp_path / run) / "tensors.safetensors") for run in ("whole", "run"))
    whole, resumed = ({n: t for n, t in state.items() if ".callbacks." not in n} for state in (whole, resumed))
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
