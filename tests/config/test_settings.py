"""Every setting has a meaning, from a docstring or a comment; a stranger's too."""

from functools import cache
from pathlib import Path

import pytest

from loralight.cli import VERBS
from loralight.config.composition import compose_for_help
from loralight.config.conf_files import conf_files
from loralight.config.settings import Settings, elsewhere, nearest, told_of

PLAIN = sorted(VERBS.keys() - {"sweep", "explain", "tasks", "new-task"})
OPTIONS = [f"{file.group}={file.option}" for file in conf_files() if file.group and not file.is_recipe]


@cache
def settings(verb: str, *overrides: str) -> Settings:
    config, choices, _ = compose_for_help(verb, [*overrides])
    return Settings(config, verb=verb, choices=choices)


@pytest.mark.parametrize("line", [[verb] for verb in PLAIN] + [["train", option] for option in OPTIONS], ids=" ".join)
def test_every_setting_has_a_meaning(line: list[str]) -> None:
    found = settings(*line)
    leaves = [name for name in found if "." not in name or not found[name.rpartition(".")[0]].value]
    assert [name for name in leaves if found[name].value and not found[name].meaning] == []


def test_every_choice_of_ours_has_a_description() -> None:
    assert [str(file) for file in conf_files() if not file.description and not file.is_recipe] == []


def test_a_setting_is_told_in_the_words_of_yaml() -> None:
    found = settings("train")
    assert found["task.head_weight_decay"].meaning == "weight decay of the head; the optimizer's if null"
    assert found["adapter.alpha"].comment == "2 * rank if null"
    assert found["adapter.lr"].argument.values == "a number"
    assert found["model.max_length"].meaning == "tokens of a text that are read", "by the task that refers to it"
    assert found["trainer.num_nodes"].text == "Number of GPU nodes for distributed training."


def test_the_comment_nearest_to_the_value_counts() -> None:
    assert settings("train", "task=ner")["data.batch_size"].comment == "few rows: more steps"
    assert settings("train", "task=ner", "data=ner")["data.batch_size"].comment.startswith("rows, each with all its")


def test_a_stranger_s_settings_are_explained_by_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "strange_pairs"
    (folder / "conf" / "task").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        '"""Pairs."""\n\nfrom loralight import AdapterTask\n\n\nclass Pairs(AdapterTask):\n    """Pairs of things.\n\n'
        "    Args:\n        margin: how far apart they are.\n        training: see `AdapterTask`.\n"
        '    """\n\n    def __init__(self, *, margin: float, **training) -> None: ...\n'
    )
    (folder / "conf" / "task" / "strange_pairs.yaml").write_text(
        "# @package _global_\n# Which two belong together\ndefaults:\n  - /data: sentiment_demo\n"
        "task:\n  _target_: strange_pairs.Pairs\n  margin: 0.5\n  note: a # only here\n"
    )
    monkeypatch.setenv("LORALIGHT_PLUGINS", str(folder))
    config, choices, _ = compose_for_help("train", ["task=strange_pairs"])
    found = Settings(config, verb="train", choices=choices)
    assert found["task.margin"].meaning == "how far apart they are" and found["task.note"].meaning == "only here"
    assert found["task.head_lr"].meaning.startswith("learning rate of the head per step")
    assert [file.description for file in found.files if str(file) == "task=strange_pairs"] == [
        "Which two belong together"
    ]


def test_a_setting_of_another_choice_is_found_with_its_class() -> None:
    (found,) = elsewhere("adapter.initial_rank")
    assert (found.value, found.target, str(found.file)) == ("12", "loralight.adapters.AdaLora", "adapter=adalora")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lr", "Did you mean 'adapter.lr' or 'optimizer.lr'?"),
        ("rnk", "'adapter.rank'"),
        ("adapter.initial_rnk", "'adapter.initial_rank'"),
        ("optimzer.lr", "'optimizer.lr'"),
        ("fold_batchnorm", "'fold_batch_norm'"),
        ("qqqq", ""),
    ],
)
def test_a_misspelt_setting_leads_to_the_closest(name: str, hint: str) -> None:
    assert hint in nearest(name, settings("train")) and bool(hint) == bool(nearest(name, settings("train")))


def test_an_error_that_names_no_setting_is_left_alone() -> None:
    assert told_of("E-DATA: rows.csv: there is no such file", "train", []) == ""
    assert told_of("E-OVERRIDE: there is no setting 'qqq'.", "train", ["qqq=1"]) == ""
