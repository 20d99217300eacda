"""Finds a class or function in the files of packages without importing them, since torch would take seconds."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Found:
    """A definition, and the module whose names it uses.

    Args:
        node: the class, function or value.
        module: dotted name of the module.
        name: the definition's own name.
    """

    node: Definition
    module: str
    name: str

    def near(self, name: str) -> "Found | None":
        """The definition of a name that is used in the same module."""
        return find(f"{self.module}.{name}")


@cache
def find(path: str) -> Found | None:
    """The definition of a dotted name such as ``loralight.adapters.Lora``, also if that module imports the name."""
    module, _, name = path.rpartition(".")
    if not module or (tree := _tree(module)) is None:
        return None
    for node in tree.body:
        if isinstance(node, Definition) and name in _names(node):
            return Found(node, module, name)
    for imported in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        for alias in imported.names:
            source = f"{_imported_from(imported, module)}.{alias.name}"
            if (alias.asname or alias.name) == name and source != path and (found := find(source)) is not None:
                return found
    return None


def documentation(found: Found) -> str:
    """The docstrings of a class and its constructor, or the docstring of a function."""
    node = found.node
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        return ""
    texts = [ast.get_docstring(node), *(ast.get_docstring(inner) for inner in constructors(node))]
    tree = _tree(found.module)
    assert tree is not None
    for other in tree.body:  # torch assembles its optimizers' docstrings below the class
        if isinstance(other, ast.Assign) and ast.unparse(other.targets[0]) == f"{found.name}.__doc__":
            texts.append("".join(_constants(other.value)))
    return "\n".join(filter(None, texts))


def constructors(node: ast.ClassDef | ast.FunctionDef) -> list[ast.FunctionDef]:
    """The ``__init__`` of a class."""
    return [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"]


def _constants(value: ast.AST) -> Iterator[str]:
    """The string constants in an expression, in their order."""
    return (node.value for node in ast.walk(value) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def _names(node: Definition) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _imported_from(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    spec = _spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    parts = module.split(".")
    package = parts[: len(parts) - node.level + is_package]
    return ".".join([*package, *filter(None, [node.module])])


@cache
def _tree(module: str) -> ast.Module | None:
    spec = _spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None


@cache
def _spec(module: str) -> ModuleSpec | None:
    """The spec of a module; `importlib.util.find_spec` would import its parent packages."""
    if (loaded := sys.modules.get(module)) is not None:
        return loaded.__spec__
    parent = module.rpartition(".")[0]
    path = None
    if parent:
        above = _spec(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        path = list(above.submodule_search_locations)
    finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for finder in finders if (spec := finder.find_spec(module, path)) is not None), None)
