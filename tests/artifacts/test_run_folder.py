"""A run's folder: never written over, and resumed only as it was begun."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from loralight.artifacts.run_folder import going_on, read_config, share_name, take
from loralight.errors import InputError

CONFIG: dict[str, Any] = {
    "seed": 0,
    "resume": None,
    "auto_batch": False,
    "task": {"_target_": "x.Task", "label_smoothing": 0.0},
    "adapter": {"_target_": "x.Lora", "rank": 8, "targets": ["query"]},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
    "data": {"path": "a", "train": None, "batch_size": 8, "num_workers": 0, "columns": {"text": "text"}},
    "scheduler": {"name": "linear", "warmup": 0.1},
    "trainer": {"max_epochs": 1, "accumulate_grad_batches": 1, "precision": "32-true", "gradient_clip_val": 1.0},
    "callbacks": {
        "best": {"monitor": "validation/loss", "dirpath": "/runs/a/checkpoints/best"},
        "recent": {"every_n_train_steps": 200},
    },
    "logger": {"csv": {"name": ""}},
    "compile": False,
    "monitor": {"metric": "validation/loss", "mode": "min"},
}


def changed(name: str, value: Any) -> dict[str, Any]:
    """`CONFIG` to be resumed, with one value another."""
    made = copy.deepcopy(CONFIG) | {"resume": "here"}
    *parts, key = name.split(".")
    inside = made
    for part in parts:
        inside = inside.setdefault(part, {})
    inside[key] = value
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_keeps_its_config_and_overrides(tmp_path: Path) -> None:
    take(tmp_path / "new" / "run", CONFIG, ["adapter.rank=8", "+x='Ünï'"])
    assert read_config(tmp_path / "new" / "run") == CONFIG
    overrides = (tmp_path / "new" / "run" / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(overrides) == ["adapter.rank=8", "+x='Ünï'"]


@pytest.mark.parametrize("name", ["checkpoints/last/x/manifest.json", "adapter/loralight.json", "summary.json"])
def test_a_folder_with_a_run_is_refused_and_stays_as_it_is(name: str, tmp_path: Path) -> None:
    take(tmp_path, CONFIG, ["adapter.rank=8"])
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("precious")
    (tmp_path / "metrics.csv").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="E-OUTPUT") as caught:
        take(tmp_path, CONFIG | {"seed": 1}, [])
    assert name.partition("/")[0] in str(caught.value)
    assert f"resume={tmp_path}" in str(caught.value)
    assert contents(tmp_path) == before


def test_a_folder_in_which_a_run_never_started_is_taken(tmp_path: Path) -> None:
    take(tmp_path, CONFIG, [])
    (tmp_path / "train.log").write_text("E-DATA")
    take(tmp_path, CONFIG | {"seed": 1}, [])
    assert read_config(tmp_path)["seed"] == 1


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("seed", 1, "seed: 0, now 1"),
        ("adapter.rank", 4, "adapter.rank: 8, now 4"),
        ("adapter.targets", ["value"], "adapter.targets: ['query'], now ['value']"),
        ("adapter._target_", "x.Dora", "adapter._target_: 'x.Lora', now 'x.Dora'"),
        ("optimizer.lr", 1e-4, "optimizer.lr: 0.001, now 0.0001"),
        ("task.label_smoothing", 0.1, "task.label_smoothing: 0.0, now 0.1"),
        ("data.batch_size", 4, "data.batch_size: 8, now 4"),
        ("data.columns", {"text": "b"}, "data.columns.text: 'text', now 'b'"),
        ("scheduler.name", "cosine", "scheduler.name: 'linear', now 'cosine'"),
        ("scheduler", None, "scheduler"),
        ("scheduler.warmup", 0.2, "scheduler.warmup: 0.1, now 0.2"),
        ("trainer.accumulate_grad_batches", 4, "trainer.accumulate_grad_batches: 1, now 4"),
        ("trainer.precision", "bf16-mixed", "trainer.precision"),
        ("trainer.gradient_clip_val", None, "trainer.gradient_clip_val: 1.0, now None"),
        ("trainer.gradient_clip_algorithm", "value", "trainer.gradient_clip_algorithm: None, now 'value'"),
        ("callbacks.best.monitor", "validation/f1", "callbacks.best.monitor"),
        ("callbacks.early_stopping", {"patience": 3}, "callbacks.early_stopping.patience: None, now 3"),
        ("compile", True, "compile: False, now True"),
        ("monitor.mode", "max", "monitor.mode: 'min', now 'max'"),
    ],
)
def test_a_resumed_run_must_learn_as_before(name: str, value: Any, says: str, tmp_path: Path) -> None:
    take(tmp_path, CONFIG, [])
    (tmp_path / "metrics.csv").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="E-RESUME") as caught:
        take(tmp_path, changed(name, value), [])
    assert says in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trainer.max_epochs", 2),
        ("trainer.max_steps", 100),
        ("trainer.devices", 2),
        ("trainer.log_every_n_steps", 1),
        ("data.num_workers", 2),
        ("data.path", "moved"),
        ("callbacks.recent.every_n_train_steps", 10),
        ("callbacks.best.dirpath", "/moved/checkpoints/best"),
        ("logger.csv", None),
        ("logger.wandb", {"project": "mine"}),
        ("resume", "here"),
    ],
)
def test_what_does_not_change_learning_may_change(name: str, value: Any, tmp_path: Path) -> None:
    take(tmp_path, CONFIG, [])
    take(tmp_path, changed(name, value), [])
    assert read_config(tmp_path) == changed(name, value)


def test_metrics_of_before_are_kept_each_time(tmp_path: Path) -> None:
    take(tmp_path, CONFIG, [])
    for number in (1, 2, 3):
        (tmp_path / "metrics.csv").write_text(str(number))
        take(tmp_path, CONFIG | {"resume": "here"}, [])
        assert not (tmp_path / "metrics.csv").exists()
    assert {name: text for name, text in contents(tmp_path).items() if "metrics" in name} == {
        "metrics.1.csv": b"1",
        "metrics.2.csv": b"2",
        "metrics.3.csv": b"3",
    }


def test_a_folder_that_is_no_run_cannot_be_read_or_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E-RUN"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="E-RUN"):
        take(tmp_path, CONFIG | {"resume": "here"}, [])
    assert contents(tmp_path) == {}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that has a checkpoint and no results."""
    take(tmp_path, CONFIG, [])
    (tmp_path / "checkpoints/last/x").mkdir(parents=True)
    (tmp_path / "checkpoints/last/x/manifest.json").touch()
    return tmp_path


def test_an_unfinished_run_of_the_same_settings_is_gone_on_with(begun: Path) -> None:
    resumed = going_on(begun, CONFIG)
    assert resumed == CONFIG | {"resume": str(begun)}
    take(begun, resumed, [])
    assert going_on(begun, CONFIG) == resumed  # and once more
    # what fits was found when it began
    assert going_on(begun, changed("data.batch_size", 1) | {"resume": None, "auto_batch": True}) == resumed


def test_the_config_is_whole_at_any_moment_as_a_launcher_s_other_processes_read_it(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed, write, seen = going_on(begun, CONFIG), Path.write_text, list[dict[str, Any]]()

    def amid(path: Path, text: str, **options: Any) -> int:
        write(path, "", **options)
        seen.append(going_on(begun, CONFIG))
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", amid)
    take(begun, resumed, [])
    assert seen and all(config == resumed for config in seen)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "mine"}, "mine"),
        ({"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1"}, f"torchrun-29500-{os.getppid()}"),
        ({"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2"}, "torchrun-29500-first"),  # alike on each machine
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, "slurm-7"),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}, None),
        ({"TORCHELASTIC_RUN_ID": "mine", "LORALIGHT_RUN_ID": "said"}, "said"),
    ],
)
def test_a_launcher_s_processes_have_one_folder(
    environment: dict[str, str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORALIGHT_RUN_ID", raising=False)
    for variable, value in {**environment, "MASTER_ADDR": "first", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(variable, value)
    try:
        share_name()
        assert os.environ.get("LORALIGHT_RUN_ID") == name
    finally:
        os.environ.pop("LORALIGHT_RUN_ID", None)


@pytest.mark.parametrize("why", ["other settings", "done", "no checkpoint", "half a checkpoint", "no run"])
def test_any_other_run_is_not(why: str, begun: Path) -> None:
    given = changed("trainer.max_epochs", 2) | {"resume": None} if why == "other settings" else CONFIG
    if why == "done":
        (begun / "summary.json").touch()
    if why in ("no checkpoint", "half a checkpoint"):
        (begun / "checkpoints/last/x/manifest.json").unlink()
    if why == "half a checkpoint":
        (begun / "checkpoints/last/.x.loralight-new").mkdir()
        (begun / "checkpoints/last/.x.loralight-new/manifest.json").touch()
        take(begun, CONFIG, [])  # begins anew: it never had one
    if why == "no run":
        (begun / ".hydra/config.yaml").unlink()
    assert going_on(begun, given) == given


@pytest.mark.parametrize("name", [".hydra", "train.log", "checkpoints/best", "logs/deep/down"])
def test_a_link_out_of_a_folder_is_no_place_to_write_to(name: str, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    take(victim if name == ".hydra" else folder, CONFIG, [])
    before = contents(victim)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(victim / ".hydra" if name == ".hydra" else victim)
    with pytest.raises(InputError, match=rf"E-RUN: .*{name} leads out"):
        take(folder, changed("resume", "here"), [])
    assert contents(victim) == before


def test_a_link_inside_a_folder_is_of_no_harm(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    take(tmp_path, CONFIG, [])
    take(tmp_path, changed("resume", "here"), [])
    assert read_config(tmp_path)["resume"] == "here"


def test_a_pipe_where_a_log_goes_is_told_in_place_of_waiting_for_it(tmp_path: Path) -> None:
    take(tmp_path, CONFIG, [])
    os.mkfifo(tmp_path / "train.log")
    with pytest.raises(InputError, match="E-RUN"):
        take(tmp_path, changed("resume", "here"), [])


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "finite"), ("${x}", "refer"), ("\x1b", "characters")])
def test_what_could_not_be_read_again_is_not_begun(value: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"E-CONFIG: .*{says}"):
        take(tmp_path / "run", CONFIG | {"x": value}, [])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("accumulated", [1, 4])
def test_rows_of_a_step_may_be_divided_anew_if_their_number_is_given(accumulated: int, tmp_path: Path) -> None:
    given = changed("data.global_batch_size", 64)
    take(tmp_path, given | {"resume": None}, [])
    trainer = {**given["trainer"], "accumulate_grad_batches": accumulated}
    take(tmp_path, given | {"trainer": trainer, "data": {**given["data"], "batch_size": 16}}, [])
    with pytest.raises(InputError, match=r"^E-RESUME: .*data\.global_batch_size: 64, now 32"):
        take(tmp_path, given | {"data": {**given["data"], "global_batch_size": 32}}, [])


def test_a_run_of_an_earlier_version_has_no_number_of_rows_of_a_step(tmp_path: Path) -> None:
    take(tmp_path, CONFIG, [])
    take(tmp_path, changed("data.global_batch_size", None), [])
    with pytest.raises(InputError, match=r"^E-RESUME: .*data\.global_batch_size: None, now 64"):
        take(tmp_path, changed("data.global_batch_size", 64), [])
