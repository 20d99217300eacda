"""``loralight new-task NAME``: writes a small working plugin for the user to change."""

import keyword
import re
from pathlib import Path

from loralight.config.local_packages import taken_by
from loralight.config.plugins import discover
from loralight.errors import InputError

_MODEL = "sentence_pairs"  # the plugin in skeleton/ from which every new plugin is made


def main(arguments: list[str]) -> None:
    """Write the plugin NAME into the folder NAME, and print the next commands.

    Raises:
        InputError: the name cannot name a package, or is taken (``E-NAME``), or the folder exists (``E-OUTPUT``).
    """
    if len(arguments) != 1:
        raise InputError("E-NAME", "loralight new-task NAME: give one name, such as sentence_pairs")
    (name,) = arguments
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise InputError(
            "E-NAME", f"{name!r}: a task's name is a package's: small letters, digits and _, such as my_task"
        )
    if taken := next((plugin for plugin in discover() if plugin.name == name), None):
        raise InputError("E-NAME", f"{name}: there is a task of this name from {taken.origin}; choose another")
    if place := taken_by(Path(name).resolve() / name):
        raise InputError("E-NAME", f"{name}: a package of this name would be hidden by {place}; choose another")
    if Path(name).exists():
        raise InputError("E-OUTPUT", f"{name}: the folder exists, and nothing is overwritten; choose another name")
    files = write(name, Path(name))
    print(
        f"A task that trains at once: a number for two texts. In {name}/:",
        *(f"  {file.relative_to(name)}" for file in files),
        "Next:",
        f"  loralight train --plugin-dir {name}/{name} task={name}",
        f"  pip install -e {name}     # then loralight train task={name} from anywhere",
        f"  pytest {name}             # what every task promises",
        sep="\n",
    )


def write(name: str, folder: Path) -> list[Path]:
    """Write the skeleton under another name; returns the files."""
    camel = "".join(word.capitalize() for word in name.split("_"))
    names = {_MODEL: name, "SentencePairs": camel, "Sentence pairs": name.replace("_", " ").capitalize()}
    source = Path(__file__).parents[1] / "skeleton"
    written = []
    for file in sorted(file for file in source.rglob("*") if file.is_file() and "__pycache__" not in file.parts):
        text, target = file.read_text(encoding="utf-8"), str(file.relative_to(source))
        for old, new in names.items():
            text, target = text.replace(old, new), target.replace(old, new)
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_text(text, encoding="utf-8")
        written.append(folder / target)
    return written
