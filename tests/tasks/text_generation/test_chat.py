"""`loralight chat`: each answer is that of `predict` to all turns so far."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loralight
from loralight.adapters import Lora
from loralight.commands.typed import typed
from loralight.tasks.text_classification import TextClassification
from loralight.tasks.text_generation import TextGeneration

Chat = Callable[..., list[str]]
OPTIONS = ["options.max_new_tokens=6", "device=cpu"]


@pytest.fixture(scope="module")
def adapter(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def saved(column: str) -> Path:
        folder = tmp_path_factory.mktemp(column) / "adapter"
        task = TextGeneration(checkpoint=tiny_llama, columns={column: column}, adapter=Lora(targets="all-linear"))
        task.configure_model()
        task.save(folder)
        return folder

    return saved


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Lines at a terminal, and then Ctrl-D; returns the list to which each prompt is added as it is shown."""

    def given(*lines: str) -> list[str]:
        shown: list[str] = []
        rest = iter(lines)

        def ask(prompt: str) -> str:
            shown.append(prompt)
            if (line := next(rest, None)) is None:
                raise EOFError
            return line

        terminal: Any = type("Terminal", (io.StringIO,), {"isatty": lambda _: True})()
        monkeypatch.setattr("sys.stdin", terminal)
        monkeypatch.setattr("builtins.input", ask)
        return shown

    return given


def answer(folder: Path, *turns: tuple[str, str]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    (found,) = loralight.load(folder).predict([messages], max_new_tokens=6)
    return str(found["completion"])


def test_it_answers_with_all_turns_in_view_until_it_is_told_to_begin_anew(
    adapter: Callable[[str], Path],
    in_process: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = adapter("messages")
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n\nany fine day\n/reset\nany fine day\n"))
    assert in_process("chat", f"run={folder}", "system=be lazy", *OPTIONS) == 0
    printed = capsys.readouterr().out
    start = [("system", "be lazy"), ("user", "what is it?")]
    first = answer(folder, *start)
    second = answer(folder, *start, ("assistant", first), ("user", "any fine day"))
    anew = answer(folder, start[0], ("user", "any fine day"))
    assert printed == f"{first}\n{second}\n{anew}\n" and len({first, second, anew}) == 3


def test_a_conversation_that_has_grown_too_long_can_begin_anew(
    adapter: Callable[[str], Path],
    in_process: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"it\n{'the quick fox ' * 60}\nit\n"))
    assert in_process("chat", f"run={adapter('messages')}", *OPTIONS) == 0
    printed = capsys.readouterr()
    assert printed.err.count("E-SEQ-LEN") == 1 and "/reset begins anew" in printed.err


def test_a_first_line_that_is_too_long_does_not_end_a_conversation_in_a_terminal(
    adapter: Callable[[str], Path],
    in_process: Callable[..., int],
    typing: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = adapter("messages")
    typing("the quick fox " * 60, "it")
    assert in_process("chat", f"run={folder}", *OPTIONS) == 0
    printed = capsys.readouterr()
    assert printed.err.count("E-SEQ-LEN") == 1 and answer(folder, ("user", "it")) in printed.out


@pytest.mark.parametrize(("given", "code"), [(["options.temperatur=1"], "temperature"), (["run=nowhere"], "E-")])
def test_what_it_cannot_do_is_said_before_the_first_turn(
    given: list[str], code: str, adapter: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    assert code in refused("chat", f"run={adapter('messages')}", *given)


def test_a_model_that_has_learnt_no_chats_is_refused(
    adapter: Callable[[str], Path], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n"))
    assert "E-INPUT" in refused("chat", f"run={adapter('text')}", *OPTIONS)


def test_a_terminal_shows_a_prompt_and_ends_by_ctrl_d(typing: Callable[..., list[str]]) -> None:
    shown = typing("one", " ", "two")
    assert [*typed("> ")] == ["one", "two"] and shown == ["> "] * 4


def test_a_task_that_writes_no_text_is_refused_before_the_first_turn(
    tiny_bert: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    task = TextClassification(checkpoint=tiny_bert, labels=["a", "b"], adapter=Lora(targets="all-linear"))
    task.configure_model()
    task.save(tmp_path / "adapter")
    message = "E-STREAM: TextClassification does not write text: loralight predict answers"
    assert message in refused("chat", f"run={tmp_path / 'adapter'}", *OPTIONS)
