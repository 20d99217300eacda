"""Descriptions of a class's arguments in its docstring, and the values that their annotations allow."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from itertools import chain

from loralight.annotations import WORDS
from loralight.config.sources import Found, constructors, documentation, find

_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:(.*)")
_SECTION = re.compile(r"[A-Z][A-Za-z ]*:")


@dataclass(frozen=True)
class Argument:
    """An argument of a class that a config names.

    Args:
        text: its entry under ``Args:``; empty if it has none.
        hint: its annotation, and the class in whose module the annotation's names are defined.
    """

    text: str
    hint: tuple[ast.expr, Found] | None

    @property
    def values(self) -> str:
        """The possible values in words; empty if they are not known."""
        options = [] if self.hint is None else [*dict.fromkeys(filter(None, _options(*self.hint)))]
        return " or ".join(filter(None, [", ".join(options[:-1]), *options[-1:]]))


@cache
def arguments_of(target: str) -> dict[str, Argument]:
    """The arguments of the class or function of a dotted name, including those of its parents."""
    found = find(target)
    return {} if found is None else _of(found)


def summary_of(target: str) -> str:
    """The first line of the docstring of a class or function."""
    found = find(target)
    return "" if found is None else documentation(found).partition("\n")[0]


def _of(found: Found) -> dict[str, Argument]:
    node = found.node
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {}
    texts = _texts(found)
    hints = {name: (hint, found) for name, hint in _annotations(node).items() if hint is not None}
    own = {name: Argument(texts.get(name, ""), hints.get(name)) for name in {**hints, **texts}}
    parents: dict[str, Argument] = {}
    for base in reversed(node.bases if isinstance(node, ast.ClassDef) else []):
        parent = found.near(ast.unparse(base).partition("[")[0])
        parents |= {} if parent is None else _of(parent)
    for name, argument in own.items():
        if name in parents:  # a child may annotate what its parent describes, or the other way round
            inherited = parents[name]
            own[name] = Argument(argument.text or inherited.text, argument.hint or inherited.hint)
    return {**parents, **own}


def _annotations(node: ast.ClassDef | ast.FunctionDef) -> dict[str, ast.expr | None]:
    """The arguments that a constructor, a dataclass or a function itself names."""
    functions = [node] if isinstance(node, ast.FunctionDef) else constructors(node)
    if functions:
        arguments = functions[0].args
        return {one.arg: one.annotation for one in chain(arguments.args, arguments.kwonlyargs) if one.arg != "self"}
    fields = (inner for inner in node.body if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name))
    return {
        field.target.id: field.annotation
        for field in fields
        if isinstance(field.target, ast.Name) and "ClassVar" not in ast.unparse(field.annotation)
    }


def _texts(found: Found) -> dict[str, str]:
    """The entries of ``Args:``; an entry that refers to another function gets its text from there."""
    texts: dict[str, str] = {}
    before, above = "", ""
    for names, text in _entries(documentation(found)):
        if text.startswith("likewise"):
            text = above if above.startswith("see `") else text.replace("likewise", f"as {before}", 1)
        for name in names:
            texts[name] = _followed(name, text, found) if len(names) > 1 or text.startswith("see `") else text
        before, above = names[0], text
    return texts


def _followed(name: str, text: str, found: Found) -> str:
    reference = re.search(r"see `(\w+)`", text)
    place = found.near(reference[1]) if reference else None
    return text if place is None else _texts(place).get(name) or text


def _entries(documentation: str) -> list[tuple[list[str], str]]:
    """Names and text of each entry in the sections ``Args:``, without line breaks."""
    entries: list[tuple[list[str], str]] = []
    inside, indent = False, 0
    for line in documentation.splitlines():
        depth, words = len(line) - len(line.lstrip()), line.strip()
        if _SECTION.fullmatch(words):
            inside, indent, section = words in ("Args:", "Arguments:"), 0, depth
            continue
        if not inside or not words:
            continue
        if depth <= section:
            inside = False
            continue
        indent = indent or depth
        if depth == indent and (entry := _ENTRY.fullmatch(words)):
            entries.append(([name.lstrip("*") for name in entry[1].split(", ")], entry[2].strip()))
        elif depth > indent and entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {words}".strip())
    return entries


def _options(hint: ast.expr, found: Found) -> list[str]:
    """The alternatives of an annotation in words."""
    if isinstance(hint, ast.Constant):
        return ["null"] if hint.value is None else []
    if isinstance(hint, ast.BinOp):
        return _options(hint.left, found) + _options(hint.right, found)
    if isinstance(hint, ast.Subscript):
        inner = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
        outer = ast.unparse(hint.value).rpartition(".")[2]
        if outer == "Literal":
            return [str(one.value) for one in inner if isinstance(one, ast.Constant)]
        if outer in ("Union", "Optional"):
            return [*chain.from_iterable(_options(one, found) for one in inner), *["null"] * (outer == "Optional")]
        return [_CONTAINERS.get(outer, "")]
    if not isinstance(hint, ast.Name):
        return []
    if hint.id in _WORDS:
        return [_WORDS[hint.id]]
    alias = found.near(hint.id)
    return _options(alias.node.value, alias) if alias and isinstance(alias.node, ast.Assign) else []


_WORDS = {kind.__name__: words for kind, words in WORDS.items()}
_CONTAINERS = dict.fromkeys(("Sequence", "list", "tuple"), "a list") | dict.fromkeys(("Mapping", "dict"), "a mapping")
