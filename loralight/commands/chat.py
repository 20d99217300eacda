"""``loralight chat``: turn by turn with a language model that was trained on chats."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from loralight import logs
from loralight.artifacts.loading import build, find_recipe
from loralight.commands.typed import typed
from loralight.config.build import task_class
from loralight.config.check import check_keywords
from loralight.config.composition import plain
from loralight.errors import InputError
from loralight.models.trust import trust_of, trusting
from loralight.training.task import AdapterTask

RESET = "/reset"


def main(config: DictConfig) -> None:
    """The job that Hydra runs: answers each line, given all turns before it.

    Raises:
        InputError: the adapter cannot be loaded, or does not answer chats (``E-INPUT``, ``E-STREAM``).
    """
    logs.configure()
    settings = plain(config)
    path, made = find_recipe(
        settings["run"], base=settings["checkpoint"], task=settings["task"], arguments=settings["arguments"]
    )
    kind = task_class(made)
    if kind.stream is AdapterTask.stream:
        raise InputError("E-STREAM", f"{kind.__name__} does not write text: loralight predict answers its inputs")
    check_keywords(kind.predict_batch, settings["options"], "options")
    with trusting(**trust_of(settings)):
        task = build(path, made, settings["device"])
    if sys.stdin.isatty():
        print(f"{RESET} begins anew, Ctrl-D ends")
    _converse(task, settings["system"], settings["options"])


def _converse(task: AdapterTask, system: str | None, options: Mapping[str, Any]) -> None:
    start = [] if system is None else [_turn("system", system)]
    turns = list(start)
    for line in typed("> "):
        if line == RESET:
            turns = list(start)
            continue
        asked = [*turns, _turn("user", line)]
        try:
            turns = [*asked, _turn("assistant", _answer(task, asked, options))]
        except InputError as error:
            if turns == start and not sys.stdin.isatty():
                raise
            print(f"loralight: {error}. {RESET} begins anew", file=sys.stderr)  # such as for too long a conversation


def _answer(task: AdapterTask, turns: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> str:
    """Print the answer as it is generated, and return it."""
    text = ""
    for piece in task.stream(turns, **options):
        print(piece, end="", flush=True)
        text += piece
    print()
    return text


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
