"""Weights that are sharded over two processes: they compute, save and resume as whole ones in one process."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loralight.adapters import Lora
from loralight.errors import InputError
from loralight.training.sharding import refuse_whole_weights

from ..warm import run_warm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")

InProcess = Callable[..., int]
PROGRAM = Path(__file__).with_name("sharded.py")
FSDP = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
QUICK = {
    "lora": [],
    "full": ["adapter=full"],
    "prefix_tuning": ["adapter=prefix_tuning"],
    "recomputed": ["acceleration=gradient_checkpointing", "trainer.accumulate_grad_batches=2"],
    "compared": ["adapter.targets=all"],
    "spoilt": [],
    "offloaded": ["trainer.strategy.cpu_offload=true"],
}
LONG = {
    name: [f"adapter={name}"]
    for name in (
        *("bitfit", "pfeiffer", "parallel", "linear_probe", "last_layers", "ia3", "vera", "lora_fa", "norm_tuning"),
        *("prompt_tuning", "dora", "houlsby", "peft"),
    )
} | {"pissa": ["adapter.init=pissa"], "rows": ["trainer.accumulate_grad_batches=4"]}
REFUSED = {
    "two_dtypes": (["adapter=bitfit", "trainer.precision=bf16-true"], "learn in bfloat16 and float32"),
    "after_steps": (["adapter=adalora"], "AdaLora changes weights by their whole gradients after each step"),
    "penalty": (["adapter.frobenius=0.1"], "Lora adds a penalty on whole weights"),
}
HALF = {"half": ["trainer.precision=bf16-true"], "mixed": ["trainer.precision=bf16-mixed"]}
Found = Callable[[str], dict[str, Any]]


def ran(folder: Path, cases: Mapping[str, list[str]]) -> Found:
    done = run_warm([str(PROGRAM), str(folder), json.dumps(cases)], cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda name: torch.load(folder / f"{name}.pt", weights_only=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    refused = {name: settings for name, (settings, _) in REFUSED.items()}
    return ran(tmp_path_factory.mktemp("sharded"), QUICK | HALF | refused)


@pytest.fixture(scope="module")
def found_of_all(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return ran(tmp_path_factory.mktemp("sharded"), LONG)


def assert_same(
    sharded: dict[str, Any], alone: dict[str, Any], atol: float = 1e-6, spoilt: tuple[int, ...] = ()
) -> None:
    assert len(sharded["losses"]) == len(alone["losses"]) > 0
    for name in ("gradients", "losses", "tensors", "metrics"):
        torch.testing.assert_close(sharded[name], alone[name], rtol=0, atol=atol)
    largest = [max(gradient.abs().max() for gradient in step.values()) for step in sharded["gradients"]]
    assert [size > 1e-4 for size in largest] == [number not in spoilt for number in range(len(largest))]


@pytest.mark.parametrize("name", QUICK)
def test_losses_gradients_and_weights_are_those_of_one_process(found: Found, name: str) -> None:
    assert_same(found(name), found(f"{name}.alone"), spoilt=(2,) if name == "spoilt" else ())
    assert found(name)["answers"] == found(f"{name}.alone")["answers"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_so_are_those_of_every_method(found_of_all: Found, name: str) -> None:
    assert_same(found_of_all(name), found_of_all(f"{name}.alone"))


@pytest.mark.parametrize("name", HALF)
def test_in_half_precision_they_are_near(found: Found, name: str) -> None:
    assert_same(found(name), found(f"{name}.alone"), atol=2e-3)


def test_each_process_holds_its_part_alone(found: Found) -> None:
    sharded, alone = found("lora"), found("lora.alone")
    assert alone["held"] == alone["total"] == sharded["total"]
    assert abs(sharded["held"] / alone["total"] - 0.5) < 0.02


def test_a_checkpoint_holds_what_learns_as_a_whole(found: Found) -> None:
    sharded, alone = found("full"), found("full.alone")
    saved, expected = sharded["checkpoint"], alone["checkpoint"]
    assert saved["state_dict"].keys() == expected["state_dict"].keys()
    torch.testing.assert_close(saved["state_dict"], sharded["tensors"], rtol=0, atol=0)
    torch.testing.assert_close(sharded["gathered"], sharded["given"], rtol=0, atol=0)  # what was loaded last
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (saved, expected)]
    torch.testing.assert_close(*states, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", QUICK)
def test_what_is_loaded_is_computed_with(found: Found, name: str) -> None:
    sharded, alone = found(name), found(f"{name}.alone")
    torch.testing.assert_close(sharded["given"], alone["given"], rtol=0, atol=0)
    torch.testing.assert_close(sharded["loaded"], alone["loaded"], rtol=1e-5, atol=1e-5)


def test_accelerations_tell_whether_they_are_on(found: Found) -> None:
    on, off = found("recomputed")["accelerations"]
    assert {"unpadding", "dropout", "gradient_checkpointing"} <= set(on)
    assert off["frozen_products"] == "a process has only a part of each weight (trainer=fsdp)"


@pytest.mark.parametrize("name", REFUSED)
def test_what_takes_whole_weights_is_refused(found: Found, name: str) -> None:
    told: Any = found(name)
    assert told.startswith("E-FSDP: trainer=fsdp: ") and REFUSED[name][1] in told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer.devices=1"], "shards weights over processes, and here is one"),
        (["adapter=adalora"], "AdaLora changes weights"),
        (["compile=true"], "set compile=false"),
    ],
)
def test_a_setting_that_takes_whole_weights_is_refused_before_processes_start(
    settings: list[str], message: str, in_process: InProcess, tiny_run: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    given = [override for override in tiny_run if not override.startswith("trainer=")]
    assert in_process("train", *given, *FSDP, *settings, "hydra.run.dir=run") == 2
    printed = capfd.readouterr().err.splitlines()
    assert printed[-1].startswith("loralight: E-FSDP") and message in printed[-1]
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "strategy",
    ["fsdp", "{_target_: lightning.pytorch.strategies.ModelParallelStrategy, tensor_parallel_size: 2}"],
)
def test_lightning_s_own_strategies_with_parts_of_weights_are_refused(
    strategy: str, in_process: InProcess, tiny_run: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    several = ["trainer.devices=2", f"trainer.strategy={strategy}"]
    assert in_process("train", *tiny_run, *several, "hydra.run.dir=run") == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("loralight: E-TRAINER: trainer.strategy=") and "Take trainer=fsdp" in told


def test_quantised_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"^E-FSDP: trainer=fsdp: task.quantize=torchao/int8 packs weights"):
        refuse_whole_weights(Lora(targets="all-linear"), "torchao/int8")


def test_more_gpus_than_there_are_are_refused(
    in_process: InProcess, tiny_run: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    given = [override for override in tiny_run if not override.startswith("trainer=")]
    assert in_process("train", *given, "trainer=fsdp", "trainer.devices=64", "hydra.run.dir=run") == 2
    assert "E-DEVICES: trainer.devices=64 on" in capfd.readouterr().err


def test_an_estimate_counts_the_part_of_a_process(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = ["trainer.accelerator=cpu", "memory=64GB"]
    assert in_process("estimate", *tiny_run, "trainer=fsdp", *cpu, "trainer.devices=4", "output=four.json") == 0
    assert "a process receives 6.0 MB of weights, and 24.9 kB of gradients" in capsys.readouterr().out
    assert in_process("estimate", *tiny_run, *cpu, "~acceleration.selective_recompute", "output=one.json") == 0
    four, one = (json.loads((tmp_path / f"{name}.json").read_text())["bytes"] for name in ("four", "one"))
    for name in ("weights", "gradients", "optimizer state"):
        assert four[name] == one[name] // 4
    assert four["weights gathered at a time"] == pytest.approx(one["weights"], rel=0.01)  # there are only two blocks


@pytest.fixture
def run(still_run: list[str]) -> list[str]:
    return [*still_run, "scheduler=constant", "data.limit_eval_rows=17"]


@pytest.mark.slow
@pytest.mark.parametrize("later", [3, 4])
@pytest.mark.usefixtures("warm_ranks")
def test_a_run_resumes_on_another_number_of_processes(
    later: int, in_process: InProcess, run: list[str], tmp_path: Path
) -> None:
    fsdp = [*run, *FSDP, "data.global_batch_size=12"]
    assert in_process("train", *fsdp, "hydra.run.dir=two") == 0
    assert in_process("train", *fsdp, "trainer.max_steps=2", "hydra.run.dir=begun") == 0
    assert in_process("train", "resume=begun", "trainer.max_steps=-1", f"trainer.devices={later}") == 0
    two, resumed = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("two", "begun"))
    torch.testing.assert_close(resumed, two, rtol=0, atol=1e-5)
    summary = json.loads((tmp_path / "begun" / "summary.json").read_text())
    assert (summary["processes"], summary["steps"]) == (later, 4)


@pytest.mark.usefixtures("warm_ranks")
def test_a_run_is_that_of_one_process_and_resumes_to_the_same_bits(
    in_process: InProcess, run: list[str], tmp_path: Path
) -> None:
    fsdp = [*run, *FSDP, "data.batch_size=4"]
    assert in_process("train", *run, "trainer=cpu", "data.batch_size=8", "probe=false", "hydra.run.dir=one") == 0
    assert in_process("train", *fsdp, "hydra.run.dir=two") == 0
    assert "no linear probe: its pass would take the whole model" in (tmp_path / "two" / "train.log").read_text()
    assert in_process("train", *fsdp, "trainer.max_steps=3", "hydra.run.dir=begun") == 0
    assert in_process("train", "resume=begun", "trainer.max_steps=-1") == 0
    one, two, resumed = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in RUNS)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    assert two.keys() == resumed.keys() and all(torch.equal(two[name], resumed[name]) for name in two)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in RUNS]
    assert [(summary["processes"], summary["steps"]) for summary in summaries] == [(1, 5), (2, 5), (2, 5)]
    assert summaries[1]["metrics"] == pytest.approx(summaries[0]["metrics"], abs=1e-5)
    recipes = [json.loads((tmp_path / name / "adapter/loralight.json").read_text()) for name in RUNS]
    assert recipes[0] == recipes[1]  # the base's fingerprint among it
    assert in_process("evaluate", "run=two", "trainer=cpu") == 0


RUNS = ("one", "two", "begun")
