"""The codes of errors, with what the page on debugging, docstrings and the messages themselves say of each."""

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
    """All codes, with the Python files of loralight and of plugins that have them."""
    found: dict[str, list[Path]] = {}
    for file in _sources():
        for code in dict.fromkeys(_QUOTED.findall(file.read_text(encoding="utf-8", errors="replace"))):
            found.setdefault(code, []).append(file)
    return dict(sorted(found.items()))


def passages(code: str) -> list[tuple[str, str]]:
    """What the page on debugging says of a code: headings and the paragraph, list item or row below each."""
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
    """When the error is raised and by what, as docstrings say it."""
    found: dict[str, str] = {}
    for file in files:
        for node in ast.walk(_parsed(file)):
            docstring = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
            for told in _said(docstring or "", code):
                found.setdefault(told, f"{file.stem}: {getattr(node, 'name', '')}")
    return [*found.items()]


def messages(code: str, files: Iterable[Path]) -> list[str]:
    """The messages of an error, with … for what differs."""
    calls = (node for file in files for node in ast.walk(_parsed(file)) if _raises(node, code))
    return [*dict.fromkeys(filter(_WORDS.search, map(_template, calls)))]


def page() -> str:
    """The page on debugging, of a clone or as it is installed; empty where it is left out."""
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
    """The part of a section ``Raises:`` that ends with the code in brackets, or another sentence that has the code."""
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
