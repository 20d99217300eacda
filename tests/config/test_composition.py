"""Composing configs: where they come from, and messages about what cannot be composed."""

import os
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loralight.cli import VERBS
from loralight.config.composition import compose, explain, plain, trusted_packages, whole_errors
from loralight.errors import InputError


def test_compose_gives_what_the_command_line_shows() -> None:
    config = compose("train", ["adapter.rank=3", "scheduler=cosine"])
    assert config.adapter.rank == 3
    assert config.scheduler.name == "cosine"
    assert config.task.max_length == config.model.max_length


@pytest.mark.parametrize(
    "verb", sorted(VERBS.keys() - {"sweep", "explain", "tasks", "new-task"})
)  # these take no settings
def test_every_verb_with_settings_has_its_config(verb: str) -> None:
    assert compose(verb, []) is not None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("adapter.rnk=4", "there is no setting 'adapter.rnk'. Did you mean 'rank' or 'lr_rank'?"),
        ("lr=1", "Did you mean 'adapter.lr' or 'optimizer.lr'?"),
        ("trainer.qqqqq=1", "trainer has: _target_, accelerator"),
        ("trainer=tp", "trainer=tp: tensor parallelism is not offered. Each kind of adapted layer would need a plan"),
        ("trainer=tensor_parallel", "trainer=fsdp holds a part of each weight on each device too"),
        ("scheduler=cosin", "scheduler=cosin: there is no such choice. Did you mean 'cosine'? Possible: constant, "),
        ("scheduler=qqqqq", "there is no such choice. Possible: constant, cosine, linear"),
        ("adapter.rank=[1", """If the value is a text, quote it, once more for the shell: 'adapter.rank="[1"'"""),
        ("data.columns.text=No. #", """'data.columns.text="No. #"'"""),
        ("data.path=a b,c.csv", "A list is name=[a,b]; several values are for loralight sweep"),
        ("}{", "'}{' is no override: a setting is name=value"),
    ],
)
def test_an_override_that_cannot_be_is_explained(override: str, says: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        compose("train", [override])
    message = explain(caught.value, "train", [override])
    assert message is not None and message.startswith("E-OVERRIDE: ")
    assert says in message


@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_a_launcher_that_is_not_installed_names_its_extra(launcher: str) -> None:
    message = f"Could not find 'hydra/launcher/{launcher}'\n\nAvailable options in 'hydra/launcher':\n\tbasic"
    told = str(explain(HydraException(message), "train", [f"hydra/launcher={launcher}"]))
    assert f'pip install "loralight[{launcher}]"' in told


def test_what_is_not_about_an_override_is_left_alone() -> None:
    assert explain(ValueError("of another kind"), "train", []) is None


def test_plain_values_hold_no_interpolation() -> None:
    config = OmegaConf.create({"a": {"b": "${c}"}, "c": [1, "${d}"], "d": None})
    made = plain(config)
    assert made == {"a": {"b": [1, None]}, "c": [1, None], "d": None}
    assert type(made["a"]["b"]) is list


@pytest.mark.parametrize("value", ["???", "${nowhere}"])
def test_a_value_that_is_missing_is_named(value: str) -> None:
    with pytest.raises(InputError, match=r"E-CONFIG: .*(seed|nowhere)"):
        plain(OmegaConf.create({"seed": value}))


def test_trusted_packages_include_sound_plugins_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("sound", "broken"):
        (tmp_path / name / "conf" / "task").mkdir(parents=True)
        (tmp_path / name / "conf" / "task" / f"{name}.yaml").touch()
    (tmp_path / "sound" / "__init__.py").touch()  # without it a folder is no package
    monkeypatch.setenv("LORALIGHT_PLUGINS", f"{tmp_path / 'sound'}{os.pathsep}{tmp_path / 'broken'}")
    trusted = trusted_packages()
    assert {"loralight", "torch", "sound"} <= set(trusted)
    assert "broken" not in trusted
    assert len(trusted) == len(set(trusted))


@pytest.mark.parametrize("before", [None, "0"])
def test_whole_errors_leaves_the_environment_as_it_was(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    with pytest.raises(KeyError), whole_errors():
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise KeyError
    assert os.environ.get("HYDRA_FULL_ERROR") == before
