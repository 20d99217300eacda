"""Tries the architectures of transformers and timm: `python docs/models.py RESULTS.jsonl` writes `docs/models.md`.

RESULTS keeps what was tried: a run that was cut goes on there. All take about half an hour of a processor.
"""

import importlib.util
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Models

Each architecture is built with small sizes and random weights, trained for two steps with the default settings,
loaded back, merged, and compared in its loss and in every gradient with the plain library's model of the merged weights
(`tests/models/`). An architecture that is not here has not been tried yet; `debug=fast` tries it in a minute.

- **trains**: exact in all of these.
- **refused**: with the error that a user sees.
- **not run here**: the library itself does not build or run it at these sizes, it takes something else than texts, or
  it needs a package that is not installed.

Written by `python docs/models.py`; a tenth is tried at each commit, all in `make test-all`.
"""
RESULTS = ("trains", "refused", "not run here")


def architectures() -> Any:
    """The module of the tests that tries one."""
    file = ROOT / "tests" / "models" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(trying: Any, kept: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """The result and the reason of each task with each architecture."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    known = {(kind, name): (result, why) for kind, name, result, why in map(json.loads, lines)}
    for kind, name in trying.found():
        if (kind, name) not in known:
            with tempfile.TemporaryDirectory() as folder:
                known[kind, name] = trying.outcome(kind, name, Path(folder))
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps([kind, name, *known[kind, name]]) + "\n")
    return known


def page(versions: str, known: dict[tuple[str, str], tuple[str, str]], registered: Mapping[str, int]) -> str:
    """The page: the numbers by task, then a row for those that train, and for each reason of the others.

    Args:
        versions: of the libraries.
        known: the result and the reason of each task with each architecture.
        registered: how many architectures of each task the registries have.
    """
    together: dict[tuple[str, str, str], list[str]] = {}
    for (kind, name), (result, why) in sorted(known.items()):
        reason = why.replace("|", "/").replace("`", "'")
        together.setdefault((kind, result, reason), []).append(name)
    lines = [HEAD, f"Found with {versions}.", "", *counts(known, registered)]
    lines += ["", "| task | result | architectures | reason |", "|---|---|---|---|"]
    for kind, result, why in sorted(together, key=lambda key: (key[0], RESULTS.index(key[1]), key[2])):
        names = ", ".join(f"`{name}`" for name in together[kind, result, why])
        lines.append(f"| `{kind}` | {result} | {names} | {why} |")
    return "\n".join(lines) + "\n"


def counts(known: dict[tuple[str, str], tuple[str, str]], registered: Mapping[str, int]) -> list[str]:
    """A table of how many architectures of each task have each result."""
    of = Counter((kind, result) for (kind, _), (result, _) in known.items())
    rows = [
        [f"`{kind}`", str(number), *(str(of[kind, result]) for result in RESULTS)]
        for kind, number in sorted(registered.items())
    ]
    return [f"| task | in the registries | {' | '.join(RESULTS)} |", "|---|---|---|---|---|"] + [
        f"| {' | '.join(row)} |" for row in rows
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of other people's code, about themselves
    logging.disable(logging.WARNING)
    trying = architectures()
    registered = Counter(kind for kind, _ in trying.found())
    made = page(trying.versions(), results(trying, Path(sys.argv[1])), registered)
    (ROOT / "docs" / "models.md").write_text(made, encoding="utf-8")
