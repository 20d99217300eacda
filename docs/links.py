"""Points links of tour.md at the lines that define what they name: `python docs/links.py` mends them."""

import re
from pathlib import Path

TOUR = Path(__file__).with_name("tour.md")
LINK = re.compile(r"\[`(\w+)`\]\(([\w./]+\.py)#L\d+\)")


def mended(text: str) -> str:
    """The text, each link such as ``[`launch`](../loralight/training/launch.py#L72)`` at the line of that definition.

    Raises:
        ValueError: the file defines no such name.
    """
    return LINK.sub(_to_line, text)


def _to_line(link: re.Match[str]) -> str:
    name, file = link.groups()
    lines = (TOUR.parent / file).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if re.match(rf"\s*(?:def|class) {name}\b", line):
            return f"[`{name}`]({file}#L{number})"
    raise ValueError(f"{file} defines no {name}")


if __name__ == "__main__":
    TOUR.write_text(mended(TOUR.read_text(encoding="utf-8")), encoding="utf-8")
