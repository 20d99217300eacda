"""A run's settings, taken from its folder: what composes its config again, whatever words it was made with."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from loralight.artifacts.loading import find_recipe
from loralight.artifacts.run_folder import CONFIG, OVERRIDES, take
from loralight.artifacts.run_settings import RunSettings, with_those_of_a_run
from loralight.commands.new_task import write as write_plugin
from loralight.config.composition import settings_of
from loralight.config.local_packages import VARIABLE
from loralight.errors import InputError

MAKE = Callable[..., Path]
WORDS: dict[str, list[str]] = {
    "nothing": [],
    "an experiment": ["experiment=sst2", "data.path=texts"],
    "an experiment of another task": ["experiment=cifar10", "optimizer.lr=1e-5"],
    "several label columns": ["data.columns.label=[a,'b c']", "data.train=my.csv"],
    "patterns of layers": ["++adapter.rank_pattern={*.query:4,*.layer.0.*:16}", "adapter.targets=[query,value]"],
    "a logger less": ["~logger"],
    "a callback and an argument less": ["~callbacks.recent", "~optimizer.eps", "~scheduler=linear"],
    "another argument": ["+trainer.benchmark=false", "+trainer.max_time='00:01:00:00'"],
    "other callbacks": ["callbacks=early_stopping", "callbacks.early_stopping.patience=7"],
    "several callbacks": ["callbacks=[default,early_stopping]", "callbacks.best.monitor=validation/f1"],
    "an adapter by reference": ["adapter=dora", "adapter.alpha=${adapter.rank}", "optimizer.lr=${adapter.lr}"],
    "strange texts": ["data.train='it\\'s, a: {b} [c] \"d\" $x'", "data.validation='null'", "data.test='1e3'"],
    "debugging": ["debug=profile", "task=ner", "data.path=pkg://loralight.tasks.ner/demo"],
    "a method of PEFT's": ["adapter=peft", "adapter.method=OFT", "++adapter.arguments={r: 4, coft: true}"],
    "a callback that is off": ["callbacks.recent=null"],
}


@pytest.fixture
def made(tmp_path: Path) -> MAKE:
    """Makes a run's folder from words, as `loralight train` does, or did before it kept all choices (``earlier``)."""

    def make(words: list[str], name: str = "a run", *, earlier: bool = False) -> Path:
        folder = tmp_path / name
        config = settings_of("train", words, folder)
        if earlier:
            config["names"] = {part: config["names"][part] for part in ("task", "adapter")}
        take(folder, config, words)
        return folder

    return make


def again(folder: Path, *words: str) -> dict[str, Any]:
    """The settings that going on with a run has."""
    return settings_of("train", with_those_of_a_run("train", [f"resume={folder}", *words]), folder)


def kept(folder: Path) -> Any:
    config = yaml.safe_load((folder / CONFIG).read_text())
    return {key: value for key, value in config.items() if key not in ("names", "resume")}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("name", WORDS)
def test_a_run_is_composed_again_as_it_was(name: str, earlier: bool, made: MAKE) -> None:
    folder = made(WORDS[name], earlier=earlier)
    found = again(folder)
    assert {key: value for key, value in found.items() if key not in ("names", "resume")} == kept(folder)
    assert found["names"]["task"] == yaml.safe_load((folder / CONFIG).read_text())["names"]["task"]


def test_a_run_that_knew_less_settings_of_all_tasks_and_data_has_their_defaults(made: MAKE) -> None:
    folder = made(["task.head_lr=0.1", "data.batch_size=3"])
    config = yaml.safe_load((folder / CONFIG).read_text())
    for part, name in (("task", "batch_norm"), ("task", "quantize"), ("data", "header"), ("data", "length_grouped")):
        del config[part][name]
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    found = settings_of("evaluate", with_those_of_a_run("evaluate", [f"run={folder}"]), folder)
    assert (found["task"]["head_lr"], found["task"]["batch_norm"], found["task"]["quantize"]) == (0.1, "frozen", None)
    assert (found["data"]["batch_size"], found["data"]["header"], found["data"]["length_grouped"]) == (3, None, True)


@pytest.mark.parametrize("choice", ["prefix_cache", "[default,prefix_cache]", "[early_stopping,prefix_cache]"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_whose_cache_of_frozen_blocks_was_a_callback_is_composed_as_it_is_now(
    choice: str, earlier: bool, made: MAKE
) -> None:
    others = "early_stopping" if "early" in choice else "default"
    folder = made([f"callbacks={others}", "acceleration=prefix_cache"], earlier=earlier)
    expected = kept(folder)
    config = yaml.safe_load((folder / CONFIG).read_text())
    del config["acceleration"]["prefix_cache"]
    config["callbacks"]["prefix"] = {"_target_": "loralight.acceleration.prefix_cache.PrefixCache"}
    if not earlier:
        config["names"] |= {"callbacks": choice, "acceleration": "default"}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    (folder / OVERRIDES).write_text(yaml.safe_dump([f"callbacks={choice}"]))
    found = again(folder)
    assert {key: value for key, value in found.items() if key not in ("names", "resume")} == expected


def test_a_run_that_was_gone_on_with_is_composed_again(made: MAKE) -> None:
    folder = made([*WORDS["a callback and an argument less"], *WORDS["several callbacks"]])
    overrides = with_those_of_a_run("train", [f"resume={folder}", "trainer.max_epochs=9"])
    take(folder, settings_of("train", overrides, folder), overrides)
    assert again(folder)["trainer"]["max_epochs"] == 9
    assert {**again(folder), "names": 0} == {**settings_of("train", overrides, folder), "names": 0}


def test_what_the_user_says_wins_and_is_followed(made: MAKE) -> None:
    folder = made(["experiment=sst2", "model.checkpoint=a", "adapter.rank=4", "optimizer.lr=0.5"])
    found = again(folder, "model.checkpoint=b", "adapter=dora", "~logger")
    assert found["task"]["checkpoint"] == found["data"]["checkpoint"] == "b"
    assert (found["adapter"]["_target_"], found["adapter"]["rank"]) == ("loralight.adapters.Dora", 4)
    assert found["optimizer"]["lr"] == 0.5 and "logger" not in found


def test_a_moved_run_writes_where_it_is(made: MAKE, tmp_path: Path) -> None:
    folder = made(["debug=profile", "logger=tensorboard"]).rename(tmp_path / "elsewhere")
    found = again(folder)
    assert found["callbacks"]["best"]["dirpath"] == f"{folder}/checkpoints/best"
    assert {log["save_dir"] for log in found["logger"].values()} == {str(folder)}
    assert found["trainer"]["profiler"]["dirpath"] == str(folder)


def test_what_the_environment_says_is_not_a_runs_to_say(made: MAKE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/a")
    folder = made(["task=image_classification"])
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert again(folder)["data"]["folder"] == again(folder)["model"]["checkpoint"] == "/b/loralight/digits"


@pytest.mark.parametrize(
    ("words", "said", "expected"),
    [
        (["trainer=ddp", "trainer.devices=4"], [], ("auto", 1)),
        (["trainer.accelerator=gpu"], [], ("auto", 1)),
        (["trainer=cpu"], [], ("cpu", 1)),
        (["trainer=fsdp", "trainer.accelerator=cpu"], [], ("cpu", 1)),
        (["trainer=ddp"], ["trainer=ddp_cpu"], ("cpu", 2)),
        (["trainer=cpu"], ["trainer.accelerator=gpu"], ("gpu", 1)),
    ],
    ids=str,
)
def test_a_run_of_gpus_is_measured_where_there_are_none(
    words: list[str], said: list[str], expected: tuple[str, int], made: MAKE
) -> None:
    folder = made(words)
    trainer = settings_of("evaluate", with_those_of_a_run("evaluate", [f"run={folder}", *said]), folder)["trainer"]
    assert (trainer["accelerator"], trainer["devices"]) == expected


def test_measuring_takes_nothing_that_only_training_needs(made: MAKE) -> None:
    folder = made(["optimizer._target_=torch.optim.SGD", "+callbacks.x={_target_: a.B}", "adapter.rank=3"])
    config = yaml.safe_load((folder / CONFIG).read_text())
    config["trainer"]["profiler"] = {"_target_": "a.B"}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    taken = RunSettings(folder, [], trains=False).overrides()
    assert "++adapter.rank=3" in taken
    assert not any(word in override for override in taken for word in ("optimizer", "callbacks", "profiler", "logger"))


@pytest.mark.parametrize(
    ("words", "says", "again_said"),
    [
        (
            ["optimizer._target_=torch.optim.SGD"],
            "optimizer._target_='torch.optim.SGD'",
            ["optimizer._target_=torch.optim.SGD"],
        ),
        (
            ["+callbacks.mine={_target_: lightning.pytorch.callbacks.LearningRateMonitor, log_momentum: true}"],
            "callbacks.mine._target_",
            ["++callbacks.mine._target_=lightning.pytorch.callbacks.LearningRateMonitor"],
        ),
        (["callbacks.best.filename=x"], "callbacks.best.filename", ["callbacks.best.filename=x"]),
        (["callbacks.best.dirpath=/x"], "callbacks.best.dirpath", ["callbacks.best.dirpath=/x"]),
    ],
)
def test_what_names_code_or_a_place_is_to_be_said_again(
    words: list[str], says: str, again_said: list[str], made: MAKE
) -> None:
    folder = made(words)
    with pytest.raises(InputError) as caught:
        again(folder)
    assert says in str(caught.value)
    assert {**again(folder, *again_said), "names": 0, "resume": 0} == {**kept(folder), "names": 0, "resume": 0}


def test_a_config_folder_of_the_users_is_told_again(made: MAKE, tmp_path: Path) -> None:
    (tmp_path / "my confs" / "experiment").mkdir(parents=True)
    (tmp_path / "my confs" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nmy_rank: 5\nadapter: {rank: 5}\n"
    )
    searched = f"hydra.searchpath=['file://{tmp_path}/my confs']"
    folder = tmp_path / "run"
    take(folder, settings_of("train", [searched, "experiment=mine"], folder), ["experiment=mine"])
    with pytest.raises(InputError, match=r"E-RUN: .*experiment=mine, which is not installed here.*--config-dir"):
        RunSettings(folder, [], trains=True).overrides()
    assert "experiment=mine" in RunSettings(folder, [], conf=[f"{tmp_path}/my confs"], trains=True).overrides()


def test_a_plugin_and_its_function_are_taken_by_their_names(made: MAKE, tmp_path: Path, monkeypatch: Any) -> None:
    plugin = tmp_path / "made_rates"
    (plugin / "conf" / "scheduler").mkdir(parents=True)
    (plugin / "__init__.py").touch()
    (plugin / "conf" / "scheduler" / "made.yaml").write_text("_target_: made_rates.rates\n_partial_: true\nend: 1\n")
    monkeypatch.setenv(VARIABLE, str(plugin))
    folder = made(["scheduler=made", "scheduler.end=2"])
    assert again(folder)["scheduler"] == {"_target_": "made_rates.rates", "_partial_": True, "end": 2}
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(InputError, match=r"scheduler=made, which is not installed here.*--plugin-dir"):
        again(folder)


@pytest.mark.parametrize("name", ["a b", "it's", 'a "b"', "a,b", "[a]", "{a}", "a=b", "a\\", "ü", "$x"])
def test_a_runs_folder_may_be_called_anything(name: str, made: MAKE, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(["adapter.rank=3"], name)
    monkeypatch.chdir(folder.parent)
    found = settings_of("train", with_those_of_a_run("train", [f"resume={name}"]), folder)
    assert (found["adapter"]["rank"], found["resume"]) == (3, name)
    assert with_those_of_a_run("evaluate", [f"run={name}"])[-1] == with_those_of_a_run("merge", [f"run={name}"])[-1]


def test_a_folders_name_does_not_reach_the_environment(made: MAKE, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made([], "${oc.env:HOME}")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InputError, match="E-RUN"):
        with_those_of_a_run("train", ["resume=${oc.env:HOME}"])


def test_a_run_without_words_is_known_by_its_config(made: MAKE) -> None:
    folder = made(["adapter.rank=3"])
    os.remove(folder / OVERRIDES)
    assert again(folder)["adapter"]["rank"] == 3


def seal(folder: Path) -> None:
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}), encoding="utf-8")


def test_a_run_whose_plugin_is_not_found_says_how_it_is_named(
    made: MAKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "their own" / "written_task"
    plugin.parent.mkdir()
    write_plugin("written_task", plugin.parent)
    monkeypatch.setenv(VARIABLE, str(plugin))
    folder = made(["task=written_task"])
    recipe = {
        "task": {"name": "written_task", "arguments": {}},
        "adapter": {"name": "lora", "arguments": {}},
        "base": {},
    }
    (folder / "adapter").mkdir()
    (folder / "adapter" / "loralight.json").write_text(json.dumps(recipe), encoding="utf-8")
    save_file({"x": torch.ones(1)}, folder / "adapter" / "adapter_model.safetensors")
    seal(folder / "adapter")
    again(folder)
    monkeypatch.setenv(VARIABLE, "")
    words = re.escape(f"--plugin-dir '{plugin}'")
    with pytest.raises(InputError, match=rf"^E-RUN: .*=written_task, which is not installed.* add {words}"):
        again(folder)
    with pytest.raises(InputError, match=rf"^E-TASK: there is no task 'written_task'.* add {words}"):
        find_recipe(folder)
    (folder / ".hydra" / "plugins.yaml").write_text("[1, {a: b}]")  # a stranger's
    with pytest.raises(InputError, match=r"^E-TASK: there is no task 'written_task'; installed are [\w, ]+$"):
        find_recipe(folder)
