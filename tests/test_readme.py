"""The README's commands and blocks of Python run, each by itself."""

import io
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
InProcess = Callable[..., int]
SHORT = ["debug=fast", "trainer.accelerator=cpu"]


def parts() -> list[tuple[str, str]]:
    """(language, text) of each line of bash and each block of Python; those that begin with ``# not run`` are left out.

    A line each, since all of them take minutes: on a busy machine one test of them would be cut by its time limit.
    """
    found = re.findall(r"^```(bash|python)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    blocks = [(language, text) for language, text in found if not text.startswith("# not run")]
    return [
        (language, part)
        for language, text in blocks
        for part in (text.splitlines() if language == "bash" else [text])
        if language == "python" or shlex.split(part, comments=True)
    ]


def trains(line: str) -> bool:
    return line.startswith("loralight train hydra.run.dir=")


LINES = [text for language, text in parts() if language == "bash" and not trains(text)]
BLOCKS = [text for language, text in parts() if language == "python"]


def test_there_is_something_to_run() -> None:
    assert len(BLOCKS) > 3 and {"train", "predict", "evaluate", "merge"} <= {line.split()[1] for line in LINES[:8]} | {
        line.rpartition("loralight ")[2].split()[0] for line in LINES
    }


@pytest.fixture(scope="module")
def trained(folder_of_runs: tuple[Path, InProcess]) -> Path:
    """The runs that README trains in folders that it names, and reads later."""
    folder, in_process = folder_of_runs
    for language, line in parts():
        if language == "bash" and trains(line):
            assert in_process(*words_of(line)) == 0
    return folder / "runs"


@pytest.fixture
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the runs that this test's text names, if it does."""
    monkeypatch.chdir(tmp_path)
    if "runs/" in request.node.callspec.params["text"]:
        shutil.copytree(request.getfixturevalue("trained"), "runs")


def words_of(line: str) -> list[str]:
    """What follows the program's name, cut short: a batch of everything, on any machine."""
    program, *words = shlex.split(line, comments=True)
    assert program == "loralight", f"the test does not know how to run: {line}"
    if words[0] == "train" and "--help" not in words:
        words += SHORT
    if words[0] == "together":
        words.append(f"each={' '.join(SHORT)}")
    return words


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("text", LINES)
def test_a_command_of_the_readme_runs(
    text: str, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if piped := re.fullmatch(r"echo \"(.*)\" \| (.*)", text):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{piped[1]}\n"))
        text = piped[2]
    assert in_process(*words_of(text)) == 0, capsys.readouterr().err


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 on transformers 5.23
@pytest.mark.parametrize("text", BLOCKS)
def test_a_block_of_python_of_the_readme_runs(text: str) -> None:
    exec(compile(text, "README.md", "exec"), {})
