"""``loralight tasks``: the plugins found, from where, and what each needs."""

from rich.console import Console
from rich.table import Table

from loralight.composition import compose
from loralight.plugins import discover


def main() -> None:
    """Print a table of the plugins, and below it what is wrong with the broken ones."""
    table = Table()
    for column in ("task", "what it does", "columns", "default model", "from"):
        table.add_column(column, no_wrap=column == "task", overflow="fold")
    plugins = discover()
    broken = [(plugin, plugin.fault) for plugin in plugins if plugin.fault]
    for plugin in plugins:
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


def _needs(task: str) -> tuple[str, str]:
    """The columns that its data must have, and its default model."""
    config = compose("train", [f"task={task}"])
    columns = ", ".join(key for key, name in (config.data.get("columns") or {}).items() if name is not None)
    return columns, str((config.get("model") or {}).get("checkpoint", ""))
