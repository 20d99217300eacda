"""``loralight tasks``: the plugins found, from where, and what each needs."""

import sys
from contextlib import redirect_stdout
from importlib import import_module

from rich.console import Console
from rich.table import Table

from loralight.composition import compose
from loralight.plugins import OWN, discover


def main() -> None:
    """Print a table of the plugins, and below it what is wrong with the broken ones."""
    table = Table()
    for column in ("task", "what it does", "columns", "default model", "from"):
        table.add_column(column, no_wrap=column == "task", overflow="fold")
    plugins = discover()
    broken = [(plugin, plugin.fault) for plugin in plugins if plugin.fault]
    for plugin in plugins:
        if plugin.origin != OWN and not plugin.fault and (fault := _import_fault(plugin.package)):
            broken.append((plugin, fault))
            continue
        for file in plugin.tasks():
            try:
                table.add_row(file.stem, plugin.summary(), *_needs(file.stem), plugin.origin)
            except Exception as error:  # of whatever is in its YAML
                broken.append((plugin, f"conf/task/{file.name} does not compose: {' '.join(str(error).split())}"))
    console = Console()
    console.print(table)
    for plugin, fault in broken:
        line = f"broken: {plugin.name} ({plugin.origin}): {fault}"
        console.print(line, style="red", markup=False, soft_wrap=True)


def _import_fault(package: str) -> str:
    """What importing a stranger's package raises; it is only listed, so that harms no other."""
    try:
        with redirect_stdout(sys.stderr):
            import_module(package)
    except (Exception, SystemExit) as error:
        return f"importing {package!r} raises {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _needs(task: str) -> tuple[str, str]:
    """The columns that its data must have, and its default model."""
    config = compose("train", [f"task={task}"])
    columns = ", ".join(key for key, name in (config.data.get("columns") or {}).items() if name is not None)
    return columns, str((config.get("model") or {}).get("checkpoint", ""))
