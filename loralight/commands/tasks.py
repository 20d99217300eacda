"""``loralight tasks``: the plugins found, their origins, and their required settings."""

import sys
from contextlib import redirect_stdout
from importlib import import_module
from textwrap import fill

from rich.console import Console

from loralight.config.composition import compose
from loralight.config.plugins import OWN, discover


def main() -> None:
    """Print each plugin's purpose and required settings, and then the faults of broken plugins."""
    console = Console()
    plugins = discover()
    broken = [(plugin, plugin.fault) for plugin in plugins if plugin.fault]
    for plugin in plugins:
        if plugin.origin != OWN and not plugin.fault and (fault := _import_fault(plugin.package)):
            broken.append((plugin, fault))
            continue
        for file in plugin.tasks():
            try:
                summary, facts = plugin.summary(), {**_needs(file.stem), "from": plugin.origin}
            except Exception as error:  # its YAML may cause any
                broken.append((plugin, f"conf/task/{file.name} does not compose: {' '.join(str(error).split())}"))
            else:
                _show(console, file.stem, summary, facts)
    for plugin, fault in broken:
        line = f"broken: {plugin.name} ({plugin.origin}): {fault}"
        console.print(line, style="red", markup=False, soft_wrap=True)


def _show(console: Console, task: str, summary: str, facts: dict[str, str]) -> None:
    """Print a task's name and description; text that users copy, such as a path, stays on one line."""
    console.print(task, style="bold", markup=False, highlight=False)
    summary = fill(summary, console.width, initial_indent="  ", subsequent_indent="  ")
    print(summary, *(f"  {name}: {value}" for name, value in facts.items()), "", sep="\n", file=console.file)


def _import_fault(package: str) -> str:
    """The error of importing a plugin, caught so that the listing continues; an empty string if there is none."""
    try:
        with redirect_stdout(sys.stderr):
            import_module(package)
    except (Exception, SystemExit) as error:
        return f"importing {package!r} raises {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _needs(task: str) -> dict[str, str]:
    """The columns that its data must have, and its default model."""
    config = compose("train", [f"task={task}"])
    columns = ", ".join(key for key, name in (config.data.get("columns") or {}).items() if name is not None)
    return {"columns": columns, "default model": str((config.get("model") or {}).get("checkpoint", ""))}
