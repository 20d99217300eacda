"""Every form of data keeps what a task promises."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from loralight.config.composition import compose, plain
from loralight.data import TaskData
from loralight.tasks.text_generation import TextGenerationData
from loralight.testing import TaskContract

from .conftest import WORDS


def phrase(number: int, length: int) -> str:
    return " ".join(WORDS[(number * 7 + at * (number % 5 + 1)) % len(WORDS)] for at in range(length))


FORMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "text": lambda n: {"text": phrase(n, 4 + n % 9)},
    "prompt": lambda n: {"prompt": phrase(n, 2 + n % 3), "completion": phrase(n + 1, 1 + n % 4)},
    "chat": lambda n: {
        "messages": [{"role": "user", "content": phrase(n, 2)}, {"role": "assistant", "content": phrase(n + 1, 3)}]
    },
}


class OfForm(TaskContract):
    """A tiny Llama on small files of one form, packed or not."""

    form: ClassVar[str]
    settings: ClassVar[list[str]] = []

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls, tmp_path_factory: pytest.TempPathFactory, tiny_llama: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(cls.form)
        for split, count in {"train": 60, "validation": 20}.items():
            lines = [json.dumps(FORMS[cls.form](number)) for number in range(count)]
            (folder / f"{split}.jsonl").write_text("\n".join(lines))
        overrides = [
            *("task=text_generation", "data=text_generation", f"data.path='{folder}'", "data.batch_size=4"),
            *(f"model.checkpoint='{tiny_llama}'", "model.max_length=48", "task.samples=0", *cls.settings),
        ]
        settings: dict[str, Any] = plain(compose("train", [*overrides, "trainer=cpu", "~callbacks", "~logger"]))
        return settings

    def inputs(self, data: TaskData) -> list[Any]:
        assert isinstance(data, TextGenerationData)
        return [record for record, _ in data.prompts("validation", 3)]


class TestPlainText(OfForm):
    form = "text"


class TestPromptsWithCompletions(OfForm):
    form = "prompt"


class TestChats(OfForm):
    form = "chat"


class TestPlainTextThatIsNotPacked(OfForm):
    form = "text"
    settings: ClassVar[list[str]] = ["data.packed=false"]


del OfForm, TaskContract  # promises of nothing in particular


def test_the_demo_says_what_its_readme_says() -> None:
    from loralight.resources import resolve

    folder = Path(resolve("pkg://loralight.tasks.text_generation/demo"))
    readme = (folder / "README.md").read_text(encoding="utf-8")
    questions = []
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert f"`{split}.jsonl`" in readme and f"{len(rows):>4} |" in readme
        questions += [row["messages"][0]["content"] for row in rows]
        answers = [row["messages"][1]["content"] for row in rows]
        assert all(answer.startswith("Ahoy, ") and answer.endswith(" The lamp is lit.") for answer in answers)
    assert len(set(questions)) == len(questions)
