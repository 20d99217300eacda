"""The check of a config against constructors: types, names, and what may be named at all."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from loralight.config.check import check, check_keywords, find_target
from loralight.config.composition import TRUSTED, trusted_packages
from loralight.errors import InputError

LORA = {"_target_": "loralight.adapters.Lora", "targets": "all-linear"}
ADAMW = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3}
TRAINER = {"_target_": "lightning.Trainer"}


class Parent:
    def __init__(self, *, width: int, names: Sequence[str] = (), **rest: Any) -> None: ...


class Child(Parent):
    def __init__(
        self,
        *,
        mode: Literal["min", "max"] = "min",
        on: bool = False,
        rates: Mapping[str, float] | None = None,
        anything: Any = None,
        **parent: Any,
    ) -> None: ...


class Leaf(Child):
    def __init__(self, *, width: int = 3) -> None: ...


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A config of `Child`, which stands where a plugin's class would."""
    import loralight

    for found in (Child, Leaf):
        monkeypatch.setattr(found, "__module__", "loralight")
        monkeypatch.setattr(loralight, found.__name__, found, raising=False)
    return {"_target_": "loralight.Child", "width": 3}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LORA | {"rank": "abc"}, "part.rank: 'abc' is not an integer"),
        (LORA | {"rank": 8.5}, "part.rank: 8.5 is not an integer"),
        (LORA | {"rank": True}, "part.rank: True is not an integer"),
        (LORA | {"rank": None}, "part.rank: None is not an integer"),
        (LORA | {"dropout": "high"}, "part.dropout: 'high' is not a number"),
        (LORA | {"targets": 3}, "part.targets: 3 is not a text or a list"),
        (LORA | {"targets": ["query", 3]}, "a list with each element a text"),
        (LORA | {"rank_pattern": ["query"]}, "part.rank_pattern: ['query'] is not a mapping"),
        (LORA | {"rank_pattern": {"query": "x"}}, "a mapping to an integer"),
        (LORA | {"rnk": 16}, "Lora takes no argument 'rnk'. Did you mean 'rank' or 'lr_rank'?"),
        (LORA | {"zzz": 16}, "targets, rank, alpha, dropout"),
        (ADAMW | {"weight_decy": 0}, "AdamW takes no argument 'weight_decy'. Did you mean 'weight_decay'?"),
        (ADAMW | {"lr": "fast"}, "part.lr: 'fast' is not a number"),
        (TRAINER | {"precision": "bf32"}, "part.precision: 'bf32' is not one of"),
        (TRAINER | {"max_epochs": 1.5}, "part.max_epochs: 1.5 is not an integer or null"),
        (TRAINER | {"profiler": {**TRAINER, "max_epoch": 1}}, "part.profiler: Trainer takes no argument 'max_epoch'"),
        ({"_target_": "loralight.adapters.Lora", "rank": 8}, "Lora needs targets"),
        ({"rank": 8}, "has no _target_"),
        (3, "has no _target_"),
        (None, "has no _target_"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_possible(config: Any, message: str) -> None:
    with pytest.raises(InputError, match="E-CONFIG: part") as caught:
        check(config, "part", TRUSTED)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        LORA,
        LORA | {"targets": ["query", "value"], "alpha": 16, "rank_pattern": {"*.query": 4}},
        LORA | {"alpha": None, "dropout": 0},
        ADAMW | {"lr": 1, "betas": [0.9, 0.95], "foreach": None},
        TRAINER | {"devices": "auto", "limit_train_batches": 1, "deterministic": "warn", "callbacks": None},
        TRAINER | {"devices": [0, 1], "max_time": "00:01:00:00", "default_root_dir": "runs"},
        TRAINER | {"profiler": {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "filename": "x"}},
        {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "x", "dirpath": "checkpoints"},
    ],
)
def test_a_right_setting_passes(config: dict[str, Any]) -> None:
    check(config, "part", TRUSTED)


class Sized:
    def __init__(self, *, width: int = 3, height: int = 4) -> None: ...


def test_a_plugin_s_class_that_does_not_take_what_all_do_is_refused(child: dict[str, Any]) -> None:
    check(child, "data", TRUSTED, base=Sized)
    with pytest.raises(
        InputError, match=r"^E-PLUGIN: data\._target_: Leaf does not take height, .* each Sized: .*\*\*"
    ):
        check({"_target_": "loralight.Leaf", "height": 2}, "data", TRUSTED, base=Sized)


def test_what_comes_later_need_not_be_there() -> None:
    check({"_target_": "loralight.adapters.Lora"}, "part", TRUSTED, complete=False)
    check({"_target_": "torch.optim.AdamW", "_partial_": True}, "part", TRUSTED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "mean"}, "child.mode: 'mean' is not one of min, max"),
        ({"on": 1}, "child.on: 1 is not true or false"),
        ({"rates": {"a": "x"}}, "child.rates: {'a': 'x'} is not a mapping to a number or null"),
        ({"width": "x"}, "child.width: 'x' is not an integer"),
        ({"names": [1]}, "child.names"),
        ({"names": "abc"}, "child.names: 'abc' is not a list"),
    ],
)
def test_types_of_a_constructor_and_of_its_parents_hold(
    given: dict[str, Any], message: str, child: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        check(child | given, "child", TRUSTED)
    assert message in str(caught.value)


def test_arguments_that_fit_a_constructor_or_its_parents_pass(child: dict[str, Any]) -> None:
    given = {"mode": "max", "on": True, "rates": {"a": 1}, "anything": [{}], "names": ["a"], "of_rest": 3}
    check(child | given, "child", TRUSTED)


def test_arguments_of_a_parent_are_unknown_where_a_class_passes_nothing_on(child: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Leaf takes no argument 'mode'"):
        check({"_target_": "loralight.Leaf", "mode": "max"}, "leaf", TRUSTED)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "posix.system",
        "json.loads",
        "builtins.eval",
        "eval",
        "subprocess.run",
        "pickle.loads",
        "importlib.import_module",
        "torchvision.models.resnet18",  # begins like torch, and is another package
        "hydra.utils.instantiate",
        "torch.os.system",  # of another package, which torch imports
        "torch.sys.exit",
        "torch.builtins.eval",
        "lightning.pytorch.trainer.trainer.os.system",
        "transformers.utils.hub.json.loads",
        "loralight.cli.os.system",
        "loralight.training.launch.Ranks.__init__.__globals__.os.system",
        "torch.load",  # a function of a library, which may read, write and run whatever it is given
        "torch.hub.load",
        "torch.compile",
        "torch.jit.load",
        "transformers.pipeline",
        "transformers.AutoModel.from_pretrained",
        "datasets.load_dataset",
        "datasets.load_from_disk",
        "lightning.seed_everything",
        "timm.create_model",
        "torch.optim",  # a module
        "torch.__version__",  # a value
        "torch.optim.NoSuchOptimizer",
        "torch",
        "",
        3,
        None,
        ["torch.optim.AdamW"],
    ],
    ids=str,
)
def test_only_classes_of_trusted_packages_may_be_named(target: Any) -> None:
    with pytest.raises(InputError, match=r"E-TARGET: part\._target_"):
        find_target(target, "part", TRUSTED)
    with pytest.raises(InputError, match=r"E-TARGET: part\.profiler\._target_"):
        check(TRAINER | {"profiler": {"_target_": target}}, "part", TRUSTED)


@pytest.mark.parametrize(
    "target",
    ["torch.optim.AdamW", "lightning.Trainer", "loralight.adapters.Lora", "loralight.training.optim.schedule"],
)
def test_a_trusted_target_is_found(target: str) -> None:
    assert find_target(target, "part", TRUSTED).__name__ == target.rpartition(".")[2]


def test_a_target_that_cannot_be_imported_says_why() -> None:
    with pytest.raises(InputError, match=r"cannot import 'torch.optim.AdamX': .*AdamX"):
        find_target("torch.optim.AdamX", "part", TRUSTED)


def test_a_function_of_a_plugins_own_may_be_named_and_one_of_a_library_that_its_conf_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_functions" / "conf" / "scheduler").mkdir(parents=True)
    (tmp_path / "made_functions" / "__init__.py").write_text("from torch import load\ndef rates(): ...\n")
    conf = "x: {_target_: transformers.get_scheduler, _partial_: true}\n"
    (tmp_path / "made_functions" / "conf" / "scheduler" / "made.yaml").write_text(conf)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("LORALIGHT_PLUGINS", str(tmp_path / "made_functions"))
    trusted = trusted_packages()
    assert find_target("made_functions.rates", "part", trusted).__name__ == "rates"
    assert find_target("transformers.get_scheduler", "part", trusted).__name__ == "get_scheduler"
    for other in ("made_functions.load", "transformers.get_scheduler.__call__", "transformers.get_constant_schedule"):
        with pytest.raises(InputError, match="E-TARGET"):
            find_target(other, "part", trusted)


def test_keywords_are_all_parameters_with_a_default() -> None:
    def predict_batch(self: Any, inputs: list[Any], temperature: float = 1.0, *, top: int = 3, untyped=None) -> None:  # type: ignore[no-untyped-def]
        ...

    check_keywords(predict_batch, {"temperature": 0.5, "top": 1, "untyped": "x"}, "options")
    with pytest.raises(InputError, match=r"^E-CONFIG: options.inputs: there is no such option. .*temperature, top"):
        check_keywords(predict_batch, {"inputs": []}, "options")
    with pytest.raises(InputError, match=r"^E-CONFIG: options.temperature: 'hot' is not"):
        check_keywords(predict_batch, {"temperature": "hot"}, "options")
