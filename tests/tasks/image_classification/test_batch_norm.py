"""`task.batch_norm=auto`: the statistics of the data are taken where the base's do not suit the data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from loralight.artifacts.run_folder import read_config
from loralight.commands import batch_norm
from loralight.commands.batch_norm import with_batch_norm
from loralight.plain_yaml import read_yaml


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train (3 x 60 images) and validation (3 x 40): noise of one mean, weaker or stronger."""
    folder, random = tmp_path_factory.mktemp("noises"), np.random.default_rng(0)
    for split, count in {"train": 60, "validation": 40}.items():
        for name, spread in {"weak": 30, "middle": 38, "strong": 46}.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = 128 + random.normal(0, spread + random.normal(0, 2), (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{number}.png")
    return folder


def with_statistics(model: Path, of: Path, to: Path, *, off_by: float = 0.0) -> str:
    """A copy of a model with the statistics of these images in BatchNorm layers, and means off by as many spreads."""
    shutil.copytree(model, to)
    net = timm.create_model("test_resnet", num_classes=7)
    net.load_state_dict(load_file(to / "model.safetensors"))
    norms = [norm for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    config = json.loads((to / "config.json").read_text())
    files = sorted((of / "train").glob("*/*.png"))
    pixels = torch.tensor(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        net.train()((pixels - mean) / std)
        for norm in norms:
            norm.running_mean += off_by * norm.running_var.sqrt()
    save_file(net.state_dict(), to / "model.safetensors")
    return str(to)


def words(noises: Path, model: str, *more: str, run: str = "run") -> list[str]:
    of_task = ["task=image_classification", "data=image_classification", f"data.path='{noises}'"]
    plain = ["model.image_size=32", "model.crop_pct=1.0", "data.crop_scale=[1,1]", "data.horizontal_flip=0"]
    quick = ["trainer=cpu", "trainer.max_epochs=1", "page=false", "probe=false"]
    return ["train", *of_task, f"model.checkpoint='{model}'", *plain, *quick, f"hydra.run.dir={run}", *more]


@pytest.mark.parametrize(("off_by", "chosen"), [(0.8, "frozen"), (-3.0, "statistics")])
def test_the_statistics_that_suit_the_data_are_taken_and_saved(
    noises: Path, tiny_resnet: str, in_process: Callable[..., int], tmp_path: Path, off_by: float, chosen: str
) -> None:
    model = with_statistics(Path(tiny_resnet), noises, tmp_path / "model", off_by=off_by)
    assert in_process(*words(noises, model)) == 0
    assert read_config(tmp_path / "run")["task"]["batch_norm"] == chosen
    assert f"task.batch_norm={chosen}" in read_yaml(tmp_path / "run/.hydra/overrides.yaml")
    trained = load_file(next((tmp_path / "run/adapter").glob("*.safetensors")))
    assert any("running_mean" in name for name in trained) == (chosen == "statistics")


def test_the_rows_of_the_trial_do_not_depend_on_the_seed(
    noises: Path, tiny_resnet: str, in_process: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_statistics(Path(tiny_resnet), noises, tmp_path / "model", off_by=-3.0)
    lines = []
    for seed in (0, 1):
        assert in_process(*words(noises, model, f"seed={seed}", "trainer.max_steps=1")) == 0
        lines += [line for line in capsys.readouterr().out.splitlines() if line.startswith("task.batch_norm=auto:")]
        shutil.rmtree(tmp_path / "run")
    assert lines[0] == lines[1]


def test_what_was_decided_stays_when_the_run_is_resumed_and_where_another_begins_at_it(
    noises: Path, tiny_resnet: str, in_process: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_statistics(Path(tiny_resnet), noises, tmp_path / "model", off_by=-3.0)
    assert in_process(*words(noises, model)) == 0
    capsys.readouterr()
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
    assert read_config(tmp_path / "run")["task"]["batch_norm"] == "statistics"
    assert "task.batch_norm=auto" not in capsys.readouterr().out
    assert in_process(*words(noises, model, "init=run", "trainer.max_steps=1", run="second")) == 0
    assert "task.batch_norm=auto: statistics, as in run" in capsys.readouterr().out
    assert read_config(tmp_path / "second")["task"]["batch_norm"] == "statistics"


def test_a_run_s_folder_is_refused_before_the_trial(
    noises: Path, tiny_resnet: str, in_process: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text("{}")
    assert in_process(*words(noises, tiny_resnet)) == 2
    said = capsys.readouterr()
    assert "run holds another run (summary.json)" in said.err
    assert "task.batch_norm=auto" not in said.out


def test_a_batch_of_few_rows_keeps_the_base_s_statistics(
    image_folders: Path, tiny_resnet: str, in_process: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(*words(image_folders, tiny_resnet, "data.batch_size=8", "trainer.max_steps=1")) == 0
    assert "task.batch_norm=auto: frozen, as 8 rows are too few for" in capsys.readouterr().out


def test_processes_that_another_program_started_keep_the_base_s_statistics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_norm, "process_rank", lambda: 0)
    config = {"task": {"batch_norm": "auto"}, "init": None}
    assert with_batch_norm(config, ["task.batch_norm=auto"]) == (
        {"task": {"batch_norm": "frozen"}, "init": None},
        ["task.batch_norm=frozen"],
    )
    assert "as processes that torchrun or srun has started could decide differently" in capsys.readouterr().out


def test_without_a_linear_probe_the_base_s_statistics_stay(
    tmp_path: Path,
    tiny_resnet: str,
    image_folders: Path,
    in_process: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert in_process(*words(image_folders, tiny_resnet, "data.limit_rows=2", "trainer.max_steps=1")) == 0
    reason = "as there is no linear probe to decide by: 2 training rows are fewer than 3 classes"
    assert f"task.batch_norm=auto: frozen, {reason}" in capsys.readouterr().out
