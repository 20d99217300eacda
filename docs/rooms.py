"""Draws the rooms of loralight from the imports in its files: `python docs/rooms.py` writes `docs/rooms.svg`."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "loralight"
PICTURE = Path(__file__).with_name("rooms.svg")
GROUND = "errors, logs, ..."  # the files beside the rooms, which import nothing but one another
NO_ROOMS = {"skeleton"}
TOP = {"cli", "__main__", "__init__"}

WIDTH, HEIGHT, GAP, MARGIN = 150, 46, 46, 24  # of a room, between floors and at the edges, in pixels


def room_of(parts: tuple[str, ...]) -> str | None:
    """The room of a module by the parts of its name below the package; None for the command line above all rooms."""
    if not parts or parts[0] in TOP:
        return None
    return parts[0] if (PACKAGE / parts[0]).is_dir() else GROUND


def imports() -> dict[str, set[str]]:
    """For each room those that its files import from."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        room = room_of(parts)
        if room is None or parts[0] in NO_ROOMS:
            continue
        found[room] |= set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "loralight":
                names = node.module.split(".")[1:] or [node.names[0].name]
                found[room].add(room_of(tuple(names)) or room)
    return {room: others - {room} for room, others in found.items()}


def floors(rooms: dict[str, set[str]]) -> dict[str, int]:
    """How far above the ground each room lies: one above the highest that it imports from."""
    levels: dict[str, int] = {}

    def level(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            raise ValueError(f"a circle: {' -> '.join((*above, room))}")
        if room not in levels:
            lowest = -1 if room == GROUND else 0  # no room lies on the ground
            levels[room] = 1 + max((level(other, (*above, room)) for other in rooms[room]), default=lowest)
        return levels[room]

    for room in rooms:
        level(room)
    return levels


def needed(rooms: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no longer way makes plain already."""

    def below(room: str) -> set[str]:
        return rooms[room] | {far for near in rooms[room] for far in below(near)}

    return sorted(
        (room, other)
        for room, others in rooms.items()
        for other in others
        if not any(other in below(near) for near in others)
    )


def draw(rooms: dict[str, set[str]]) -> str:
    """The picture, as SVG."""
    levels = floors(rooms)
    by_level = defaultdict(list)
    for room in sorted(rooms):
        by_level[levels[room]].append(room)
    widest = max(map(len, by_level.values()))
    width = 2 * MARGIN + widest * WIDTH + (widest - 1) * GAP
    height = 2 * MARGIN + len(by_level) * HEIGHT + (len(by_level) - 1) * GAP
    places = {}
    for floor, names in by_level.items():
        left = (width - len(names) * WIDTH - (len(names) - 1) * GAP) / 2
        for number, name in enumerate(names):
            places[name] = left + number * (WIDTH + GAP), height - MARGIN - HEIGHT - floor * (HEIGHT + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for room, other in needed(rooms):
        (x, y), (to_x, to_y) = places[room], places[other]
        x, y, to_x = x + WIDTH / 2, y + HEIGHT, to_x + WIDTH / 2
        lines.append(
            f'<path d="M{x:g} {y:g}C{x:g} {y + GAP / 2:g} {to_x:g} {to_y - GAP / 2:g} {to_x:g} {to_y - 2:g}" '
            'fill="none" stroke="#667" marker-end="url(#tip)"/>'
        )
    for room, (x, y) in places.items():
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3fb" stroke="#456"/>'
            f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}" text-anchor="middle">{room}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(imports()), encoding="utf-8")
