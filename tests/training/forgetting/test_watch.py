"""`forgetting=`: what the base could do is measured before and after training, and training does not notice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM, AutoTokenizer

from loralight.config.sharding import check_sharding
from loralight.errors import InputError
from loralight.reports.runs import read_run
from loralight.training import AdapterTask
from loralight.training.memory import peak_memory, uncounted

InProcess = Callable[..., int]
GENERAL = ["the quick brown fox jumps over the lazy dog", "rain fell on the town", "a ship left the harbour at noon"]
FAST = ["optimizer.lr=0.02", "probe=false"]


@pytest.fixture
def general(tmp_path: Path) -> list[str]:
    """The words by which a run of an encoder measures its loss on general texts."""
    (tmp_path / "general.txt").write_text("".join(f"{text}\n" for text in GENERAL))
    return ["forgetting=masked_language_model", "forgetting.texts=general.txt"]


def metrics_of(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "summary.json").read_text())["metrics"]
    return {name.removeprefix("forgetting/"): value for name, value in found.items() if name.startswith("forgetting/")}


def masked_loss(checkpoint: str) -> float:
    """The loss of the pretrained model, by transformers alone."""
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(checkpoint).eval(),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    losses = []
    for number, text in enumerate(GENERAL):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        inside = range(1, ids.shape[1] - 1)
        count = max(1, round(0.15 * len(inside)))
        places = sorted(np.random.default_rng([0, number]).permutation(list(inside))[:count].tolist())
        masked = ids.clone()
        masked[0, places] = tokenizer.mask_token_id
        with torch.no_grad():
            losses.append(cross_entropy(model(masked).logits[0, places], ids[0, places], reduction="none"))
    return float(torch.cat(losses).mean())


def test_a_run_tells_what_it_forgot_and_trains_as_it_would_without_the_probe(
    in_process: InProcess, tiny_run: list[str], tiny_bert: str, general: list[str], tmp_path: Path
) -> None:
    line = ["train", *tiny_run, *FAST, "adapter.dropout=0.1"]
    assert in_process(*line, *general, "hydra.run.dir=with") == 0
    assert in_process(*line, "hydra.run.dir=without") == 0
    found = metrics_of(tmp_path / "with")
    assert found.keys() == {"loss", "loss_before", "loss_off"}
    assert found["loss_before"] == pytest.approx(masked_loss(tiny_bert), rel=1e-5)
    assert found["loss_off"] == found["loss_before"] and abs(found["loss"] - found["loss_before"]) > 1e-3
    told = (tmp_path / "with" / "train.log").read_text()
    assert "with the adapter off the model computes exactly what the base model computed" in told
    weights = [load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("with", "without")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert in_process("evaluate", "run=without", *general, "output=later.json") == 0
    later = json.loads((tmp_path / "later.json").read_text())
    assert {name: later[f"forgetting/{name}"] for name in found} == pytest.approx(found, rel=1e-6)
    assert read_run(tmp_path / "without").score("forgetting/loss") == pytest.approx(found["loss"], rel=1e-6)
    assert read_run(tmp_path / "without").probe == read_run(tmp_path / "with").probe, "so that reports compare them"
    (tmp_path / "general.txt").unlink()
    assert in_process("evaluate", "run=with") == 0, "which needs no probe"


def test_a_resumed_run_finds_what_the_uninterrupted_run_finds(
    in_process: InProcess,
    tiny_run: list[str],
    general: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["train", *tiny_run, *FAST, *general, "trainer.max_epochs=2"]
    assert in_process(*line, "hydra.run.dir=whole") == 0
    step = AdapterTask.training_step

    def cut(task: AdapterTask, *given: Any) -> torch.Tensor:
        if task.global_step == 7:
            raise InputError("E-CUT", "here")
        return step(task, *given)

    with monkeypatch.context() as patched:
        patched.setattr(AdapterTask, "training_step", cut)
        assert in_process(*line, "hydra.run.dir=cut") == 2
    assert in_process("train", "resume=cut") == 0
    assert "going on from" in capsys.readouterr().err
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


def test_a_base_that_was_trained_itself_is_measured_before_and_cannot_be_measured_after(
    in_process: InProcess, tiny_run: list[str], tiny_bert: str, general: list[str], tmp_path: Path
) -> None:
    assert in_process("train", *tiny_run, *FAST, *general, "adapter=full", "hydra.run.dir=run") == 0
    found = metrics_of(tmp_path / "run")
    assert found.keys() == {"loss", "loss_before"} and found["loss"] != found["loss_before"]
    assert found["loss_before"] == pytest.approx(masked_loss(tiny_bert), rel=1e-5)
    assert "no measure with the adapter off: FullFineTuning trains" in (tmp_path / "run" / "train.log").read_text()


def test_a_method_that_does_not_start_at_the_base_is_measured_where_it_starts(
    in_process: InProcess, tiny_run: list[str], tiny_bert: str, general: list[str], tmp_path: Path
) -> None:
    words = ["adapter=prompt_tuning", "adapter.num_tokens=2"]
    assert in_process("train", *tiny_run, *FAST, *general, *words, "hydra.run.dir=run") == 0
    found = metrics_of(tmp_path / "run")
    assert found["loss_off"] == pytest.approx(masked_loss(tiny_bert), rel=1e-5)
    assert found["loss_before"] != found["loss_off"]
    told = (tmp_path / "run" / "train.log").read_text()
    assert "with the adapter off the model computes exactly what the base model computed" in told


PROBE = """
from loralight.training import ForgettingProbe, Measured

class Norm(ForgettingProbe):
    def __init__(self, *, factor: float = 1.0) -> None:
        self.factor = factor

    def measure(self, task, base):
        outputs = task.model.base_model.embeddings.word_embeddings.weight.norm(dim=1)
        return Measured(scores={"norm": self.factor * float(outputs.mean())}, outputs=outputs)
"""


def test_a_stranger_s_probe_is_a_file_and_a_line_of_yaml(
    in_process: InProcess, refused: Callable[..., str], tiny_run: list[str], tmp_path: Path
) -> None:
    (tmp_path / "norms" / "conf" / "forgetting").mkdir(parents=True)
    (tmp_path / "norms" / "__init__.py").write_text(PROBE)
    (tmp_path / "norms" / "conf" / "forgetting" / "norms.yaml").write_text("_target_: norms.Norm\n")
    (tmp_path / "norms" / "conf" / "forgetting" / "adapters.yaml").write_text(
        "_target_: loralight.adapters.FullFineTuning\n"
    )
    line = ["train", "--plugin-dir", "norms", *tiny_run, *FAST]
    assert in_process(*line, "forgetting=norms", "+forgetting.factor=2.0", "hydra.run.dir=run") == 0
    found = metrics_of(tmp_path / "run")
    assert found.keys() == {"norm", "norm_before", "norm_off"} and len(set(found.values())) == 1
    assert "Did you mean 'factor'" in refused(*line, "forgetting=norms", "+forgetting.facter=2.0")
    assert "E-PLUGIN: forgetting._target_: FullFineTuning is no " in refused(*line, "forgetting=adapters")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["forgetting.texts=gone.txt"], "E-FORGETTING: forgetting.texts=gone.txt: there is no such file"),
        (["forgetting.texts=general.txt", "forgetting.rows=0"], "E-FORGETTING: forgetting.rows=0: give 1 or more"),
        (["forgetting.texts=numbers.jsonl"], "has no text; give a text a line, or a column text"),
        ([], "E-CONFIG: forgetting.texts: Missing mandatory value"),
    ],
)
def test_what_cannot_be_measured_is_told_before_training(
    words: list[str], message: str, refused: Callable[..., str], tiny_run: list[str], general: list[str], tmp_path: Path
) -> None:
    (tmp_path / "numbers.jsonl").write_text('{"number": 1}\n')
    assert message in refused("train", *tiny_run, *FAST, general[0], *words, "hydra.run.dir=run")
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_sharded_weights_are_refused() -> None:
    sharded: dict[str, Any] = {"_target_": "loralight.training.FullyShard"}
    config = {
        "trainer": {"strategy": sharded, "accelerator": "cpu", "devices": 2},
        "adapter": {"_target_": "loralight.adapters.Lora", "targets": "all"},
        "task": {},
        "compile": False,
        "forgetting": {"_target_": "x"},
    }
    with pytest.raises(InputError, match="E-FSDP: forgetting="):
        check_sharding(config)


def test_memory_that_is_not_counted_leaves_the_peak() -> None:
    with uncounted():
        taken = torch.ones(100_000_000)
        del taken
    before = peak_memory()
    with uncounted():
        taken = torch.ones(200_000_000)
        del taken
    assert peak_memory() < before + 400_000_000
