"""What docstrings say of arguments, read without importing their classes."""

import inspect
import sys
from pathlib import Path

import pytest

from loralight.adapters import Lora
from loralight.config.arguments import arguments_of
from loralight.tasks.text_classification import TextClassification

STRANGER = '''
"""A method of a stranger's."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from loralight.adapters import Adapter
from .words import ORDER, Where

Order = Literal["up", "down"]


@dataclass(frozen=True, kw_only=True)
class Gain(Adapter):
    """Factors.

    Args:
        start: where factors start, on a line
            and another one.
        first, last: see `place`.
        order: likewise.

    Raises:
        InputError: never: it is kind.
    """

    start: float | None = 1.0
    first: int
    last: int
    order: Order = "up"
    where: Where = "here"
    kept: ClassVar[int] = 3


def place(first, last, order):
    """Place them.

    Args:
        first: the lowest layer.
        last: the highest.
        order: of the two.
    """
'''


@pytest.mark.parametrize("target", [Lora, TextClassification])
def test_it_knows_the_arguments_that_python_knows(target: type) -> None:
    found = arguments_of(f"{target.__module__}.{target.__qualname__}")
    known = {name for kind in target.__mro__ if "__init__" in vars(kind) for name in inspect.signature(kind).parameters}
    assert {name for name in known if name in found} == known - {"args", "kwargs"}
    assert [name for name in ("rank", "dropout", "pooling", "head_lr") if name in found and not found[name].text] == []


def test_a_stranger_s_docstrings_are_followed_through_parents_imports_and_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "strange_gain"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .module import Gain\nraise SystemExit('it is imported')\n")
    (folder / "module.py").write_text(STRANGER)
    (folder / "words.py").write_text("from typing import Literal\nORDER = 1\nWhere = Literal['here', 'there']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = arguments_of("strange_gain.Gain")
    texts = {name: argument.text for name, argument in found.items()}
    assert texts["start"] == "where factors start, on a line and another one."
    assert (texts["first"], texts["last"], texts["order"]) == ("the lowest layer.", "the highest.", "of the two.")
    assert texts["lr"].startswith("learning rate per step"), "its parent's"
    assert "kept" not in texts and "InputError" not in texts
    values = {name: found[name].values for name in ("start", "first", "order", "where")}
    assert values == {
        "start": "a number or null",
        "first": "an integer",
        "order": "up or down",
        "where": "here or there",
    }
    assert "strange_gain" not in sys.modules


@pytest.mark.parametrize(
    ("target", "name", "begins"),
    [
        ("torch.optim.AdamW", "betas", "coefficients used for computing running averages"),
        ("lightning.Trainer", "max_time", "Stop training after this amount of time"),
        ("lightning.pytorch.callbacks.EarlyStopping", "patience", "number of checks with no improvement"),
    ],
)
def test_libraries_are_read_too(target: str, name: str, begins: str) -> None:
    assert arguments_of(target)[name].text.startswith(begins)


@pytest.mark.parametrize("target", ["nowhere.At.All", "loralight.adapters.Nothing", "torch.zeros", ""])
def test_what_cannot_be_read_has_no_arguments(target: str) -> None:
    assert arguments_of(target) == {}
