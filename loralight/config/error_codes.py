"""The codes of errors, and for each the passages in the page on debugging, the docstrings and the messages."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from loralight.config.plugins import discover

CODE = re.compile(r"E-[A-Z0-9]+(?:-[A-Z0-9]+)*")
PAGE = "docs/debugging.md"
_PACKAGE = Path(__file__).resolve().parents[1]
_WORDS = re.compile(r"\w{2}")
_QUOTED = re.compile(rf"[\"'`]({CODE.pattern})[\"'`:]")


def codes() -> dict[str, list[Path]]:
    """All codes, with the Python files of loralight and of plugins that contain them."""
    found: dict[str, list[Path]] = {}
    for file in _sources():
        for code in dict.fromkeys(_QUOTED.findall(file.read_text(encoding="utf-8", errors="replace"))):
            found.setdefault(code, []).append(file)
    return dict(sorted(found.items()))


def passages(code: str) -> list[tuple[str, str]]:
    """Passages on a code in the page on debugging: a heading, and the paragraph, list item or table row below it."""
    found, heading, columns = [], "", list[str]()
    for block in re.split(r"\n\n|\n(?=[-|])", page()):
        if block.startswith("#"):
            heading, columns = block.lstrip("# "), []
        cells = [cell.strip() for cell in block.strip("|").split("|")] if block.startswith("|") else []
        columns = columns or cells
        if re.search(rf"{code}(?![\w-])", block):
            text = "; ".join(map(": ".join, zip(columns[1:], cells[1:], strict=True))) if cells else block
            found.append((heading, _plain(text)))
    return found


def reasons(code: str, files: Iterable[Path]) -> list[tuple[str, str]]:
    """The conditions under which an error is raised, from docstrings, with the place of each."""
    found: dict[str, str] = {}
    for file in files:
        for node in ast.walk(_parsed(file)):
            docstring = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
            for told in _said(docstring or "", code):
                found.setdefault(told, f"{file.stem}: {getattr(node, 'name', '')}")
    return [*found.items()]


def messages(code: str, files: Iterable[Path]) -> list[str]:
    """The messages of an error, with … for the parts that vary."""
    calls = (node for file in files for node in ast.walk(_parsed(file)) if _raises(node, code))
    return [*dict.fromkeys(filter(_WORDS.search, map(_template, calls)))]


def page() -> str:
    """The page on debugging, from a clone or as installed; empty if it is missing."""
    clone = _PACKAGE.parent / PAGE
    if clone.is_file():
        return clone.read_text(encoding="utf-8")
    try:
        installed = [file for file in files("loralight") or [] if file.name == Path(PAGE).name]
    except PackageNotFoundError:
        return ""
    return installed[0].read_text(encoding="utf-8") if installed else ""


def _sources() -> Iterator[Path]:
    folders = [_PACKAGE, *(plugin.folder for plugin in discover() if plugin.folder)]
    files = dict.fromkeys(file for folder in folders for file in sorted(folder.rglob("*.py")))
    return (file for file in files if "skeleton" not in file.parts)


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8", errors="replace"))


def _said(docstring: str, code: str) -> Iterator[str]:
    """Parts of a section ``Raises:`` that end with the code in brackets, and other sentences that contain the code."""
    text, _, raised = (" ".join(part.split()) for part in docstring.partition("Raises:"))
    for part, named in re.findall(r"(.*?)\((``E-[^)]*)\)", raised):
        if f"``{code}``" in named:
            yield re.sub(r"^[,;. ]*(?:or |and )?(?:\w+Error: )?", "", part).strip().replace("``", "")
    for sentence in re.split(r"(?<=\.) ", text):
        if f"``{code}``" in sentence:
            yield sentence.removesuffix(".").replace("``", "")


def _raises(node: ast.AST, code: str) -> bool:
    first = node.args[0] if isinstance(node, ast.Call) and len(node.args) > 1 else None
    return isinstance(first, ast.Constant) and first.value == code


def _template(call: ast.AST) -> str:
    assert isinstance(call, ast.Call)
    parts = call.args[1].values if isinstance(call.args[1], ast.JoinedStr) else [call.args[1]]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).removeprefix("- ").split())
