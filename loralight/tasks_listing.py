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
    for plugin in plugins:
        for file in plugin.tasks():
            config = compose("train", [f"task={file.stem}"])
            columns = ", ".join(key for key, name in (config.data.get("columns") or {}).items() if name is not None)
            table.add_row(
                file.stem,
                plugin.summary(),
                columns,
                str((config.get("model") or {}).get("checkpoint", "")),
                plugin.origin,
            )
    console = Console()
    console.print(table)
    for plugin in plugins:
        if plugin.fault:
            console.print(
                f"broken: {plugin.name} ({plugin.origin}): {plugin.fault}", style="red", markup=False, soft_wrap=True
            )
