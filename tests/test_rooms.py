"""What an import brings with it: a room's wall is of use where one can take the room alone."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from .warm import run_warm

DOCS = Path(__file__).resolve().parents[1] / "docs"
PACKAGE = DOCS.parent / "loralight"
HEAVY = ("datasets", "hydra", "lightning", "omegaconf", "timm", "torch", "torchmetrics", "transformers")
OF_A_RUN = ("datasets", "hydra", "lightning", "omegaconf")


# One process each: what must be absent after an import must be so after those before it too.
IMPORTS: list[dict[str, Iterable[str]]] = [
    {
        "import loralight": HEAVY,
        "import loralight.kernels.linear": [*OF_A_RUN, "transformers"],
        "from loralight.adapters import Lora, inject, merge": OF_A_RUN,
        "from loralight.models import load_model": OF_A_RUN,
        "from loralight import AdapterTask, Step, TaskData": ["datasets", "hydra", "omegaconf"],
        "from loralight.training import AdapterTask": ["datasets", "hydra", "omegaconf"],
    },
    {
        line: [name for name in HEAVY if name not in ("hydra", "omegaconf")]
        for line in ("import loralight.config.plugins", "import loralight.commands.compare")
    },
]


@pytest.mark.parametrize("imports", IMPORTS, ids=list)
def test_an_import_brings_no_more_than_it_needs(imports: dict[str, Iterable[str]]) -> None:
    lines = [
        f"{line}; print([name for name in {list(absent)} if name in sys.modules])" for line, absent in imports.items()
    ]
    command = [sys.executable, "-c", "\n".join(["import sys", *lines])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert dict(zip(imports, done.stdout.splitlines(), strict=True)) == dict.fromkeys(imports, "[]")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script of the documents by its name."""
    monkeypatch.syspath_prepend(DOCS)
    return import_module


def test_the_picture_of_the_rooms_shows_what_is_imported(script: Callable[[str], Any]) -> None:
    rooms = script("rooms")
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.draw(rooms.imports()), (
        "draw it anew: python docs/rooms.py"
    )


def test_the_tour_s_links_lead_to_what_they_name(script: Callable[[str], Any]) -> None:
    links = script("links")
    text = links.TOUR.read_text(encoding="utf-8")
    assert len(links.LINK.findall(text)) > 20 and text == links.mended(text), "mend them: python docs/links.py"


CHANGES = re.findall(
    r"^\| (.+) \| (.+) \|$", (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
)


def test_the_files_that_a_change_opens_are_few_and_are_there() -> None:
    table = dict(CHANGES[[change for change, _ in CHANGES].index("a learning-rate schedule") :])
    assert len(table) >= 12
    for change, files in table.items():
        named = re.findall(r"`([\w./<>-]+[./][\w./<>-]*)`|\]\(([\w./-]+)\)", files)
        paths = [one or other for one, other in named]
        assert 1 <= len(paths) <= 3, change
        for path in paths:
            folder, _, name = path.rpartition("/")
            known = folder if "<" in name else path
            assert any((place / known).exists() for place in (DOCS.parent, PACKAGE)), f"{change}: {path}"


FACES = {"acceleration", "adapters", "data", "errors", "kernels", "logs", "models", "resources", "testing", "training"}
WITH_PLUGINS = ("examples", "loralight/skeleton", "tasks")
PLUGINS = [file for folder in WITH_PLUGINS for file in (DOCS.parent / folder).rglob("*.py")]


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: str(file.relative_to(DOCS.parent)))
def test_a_plugin_imports_what_rooms_show_and_nothing_behind_it(file: Path) -> None:
    imported = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    of_ours = [node.module for node in imported if node.module and node.module.split(".")[0] == "loralight"]
    assert {*of_ours} <= {"loralight", *(f"loralight.{face}" for face in FACES)}
    hidden = [
        f"{node.module}.{alias.name}"
        for node in imported
        if node.module in of_ours
        for alias in node.names
        if alias.name not in import_module(node.module).__all__ and alias.name not in FACES
    ]
    assert hidden == []


@pytest.mark.parametrize("face", [f"loralight.{face}" for face in sorted(FACES)])
def test_a_room_shows_no_name_that_it_does_not_have(face: str) -> None:
    room = import_module(face)
    assert [name for name in room.__all__ if getattr(room, name, None) is None] == []
    assert not hasattr(room, "absent")


SHOWN = ["loralight", *(f"loralight.{face}" for face in sorted(FACES - {"errors", "logs", "resources"}))]


def documented(file: Path) -> set[str]:
    """The names of a file that are defined with a docstring; a constant's stands under it."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    found = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)}
    for node, after in pairwise(body):
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("face", SHOWN)
def test_every_name_that_a_room_shows_has_a_docstring(face: str) -> None:
    shown = import_module(face)
    names = [name for name in shown.__all__ if name != "__version__"]
    known = {name for file in PACKAGE.rglob("*.py") for name in documented(file)}
    assert names and [name for name in names if name not in known] == []


def test_pages_on_what_rooms_show_are_written_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="the extra docs is not installed")
    done = run_warm([str(DOCS / "api.py"), str(tmp_path)], cwd=DOCS, timeout=240)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    pages = {f"{name.replace('.', '/')}.html": import_module(name) for name in SHOWN}
    found = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.html")}
    assert found == {"index.html", *pages}
    for page, face in pages.items():
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert [name for name in face.__all__ if f'id="{name}"' not in text] == [], page
