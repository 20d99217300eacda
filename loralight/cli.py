"""The command ``loralight``: its verbs and its error messages. It answers without importing torch."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from loralight.errors import InputError, did_you_mean
from loralight.stopping import Stopped, ignore, listen
from loralight.version import __version__

VERBS = {
    "train": "fine-tune a model: check, fit, test, save",
    "evaluate": "the metrics of a finished run, on any split or other data",
    "predict": "predictions of a trained adapter for new inputs, a line of JSON each",
    "chat": "turn by turn with a language model that was trained on chats",
    "merge": "a plain model with the adapter in its weights, and how true it is to the adapted one",
    "spectrum": "size and rank of a trained low-rank update, layer by layer",
    "ranks": "the scores of a trained low-rank update at lower ranks, and the least that is as good",
    "combine": "a weighted sum of trained adapters, as an adapter of its own",
    "estimate": "the memory that training would take, and the largest batch that fits; loads no weights",
    "sweep": "train once for each of several values, and compare the runs",
    "tune": "search for the settings with the best score, by Optuna",
    "study": "methods of fine-tuning side by side on your data, each at the best of several rates",
    "compare": "finished runs side by side: scores with intervals, costs, a page",
    "together": "several trainings on one base model, which is in memory once",
    "doctor": "what this machine and environment give, and the lines that change what is wrong",
    "explain": "what a setting, a choice or the code of an error means",
    "tasks": "the task plugins found, and their required settings",
    "new-task": "write a small working task plugin, to be changed into yours",
}

HELP = """loralight: fine-tune pretrained models with adapters.

  loralight VERB [name=value ...] [--help]

{verbs}

  loralight train                                     the default task on its demo data
  loralight train --help                              every choice and setting
  loralight explain optimizer.lr                      what a setting means, or an error (E-COLUMN)
  loralight train adapter.rank=16 data.train=my.csv   other settings, other data
  loralight predict run=runs/... input=texts.txt      what a trained adapter says

  --plugin-dir DIR    use the task plugin in a folder
  --version
  eval "$(loralight -sc install=bash)"                complete names with TAB
"""


_SEPARATES = re.compile(r"\+*[\w.]+=[,;:|\t ]")  # a value that Hydra reads only in quotes, which the shell has removed
_COMMA = re.compile(r",(?![^\[{]*[\]}])")  # outside of lists
_OWN = {
    "study": ("methods", "seeds", "budget", "jobs"),
    "tune": ("earlier", "trials", "budget", "jobs", "most_parameters", "most_memory"),
}
"""Settings of verbs that pass all other words on to their runs; the first of them is a list."""
_FLAGS_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
}


def main() -> None:
    """Entry point of the console script.

    Exits with 0, 2 for an error that the user can fix, 1 for a bug of ours (of `loralight doctor`: something is wrong),
    or 143 when told to stop (130 by Ctrl-C).
    """
    code = run(sys.argv[1:])
    if code in (130, 143):
        ignore()  # else a signal while the interpreter ends would change the exit code
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line ``loralight`` + ``arguments``; returns the exit code."""
    try:
        with listen():
            return _run(arguments)
    except Stopped as stopped:
        if stopped.message is not None:
            print(f"loralight: {stopped}", file=sys.stderr)
        return stopped.code


def _run(arguments: list[str]) -> int:
    try:
        arguments = _take_plugin_folders(arguments)
        if {"-sc", "--shell-completion"} & set(arguments):
            return _complete(arguments)
        verb, rest = _split_verb(arguments)
        if verb is None:
            return 0
        if verb == "tasks":
            import_module("loralight.commands.tasks").main()
            return 0
        if verb == "new-task":
            import_module("loralight.commands.new_task").main(rest)
            return 0
        if verb == "explain":
            words, flags = _sort(rest)
            helps = [flag for flag in flags if flag in ("--help", "-h")]
            import_module("loralight.commands.explain").main([*words, *helps], _config_folders(flags))
            return 0
        return _run_verb(verb, rest)
    except BrokenPipeError:  # `head` in `loralight train --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InputError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"loralight: {message}", file=sys.stderr)
    return 2


def _take_plugin_folders(arguments: list[str]) -> list[str]:
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        flag, _, value = argument.partition("=")
        if flag != "--plugin-dir":
            rest.append(argument)
            continue
        folder = value or next(waiting, "")
        if not Path(folder).is_dir():
            raise InputError("E-PLUGIN", f"--plugin-dir {folder}: there is no such folder")
        from loralight.config.plugins import add_folder

        add_folder(folder)
    return rest


def _split_verb(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The verb, wherever it stands, and all other arguments; None if the command has been answered already."""
    for place, (before, argument) in enumerate(pairwise(["", *arguments])):
        if argument in VERBS and before not in _FLAGS_WITH_VALUE:  # `--config-dir tasks` is a folder
            return argument, arguments[:place] + arguments[place + 1 :]
    if "--version" in arguments:
        print(f"loralight {__version__}")
    elif not arguments or {"--help", "-h"} & set(arguments):
        print(HELP.format(verbs="\n".join(f"  {verb:<10} {text}" for verb, text in VERBS.items())))
    else:
        word = next((argument for argument in arguments if argument[:1] != "-" and "=" not in argument), arguments[0])
        raise InputError("E-VERB", f"{word!r} is no verb.{did_you_mean(word, VERBS)} There are: {', '.join(VERBS)}")
    return None, []


def _run_verb(verb: str, arguments: list[str]) -> int:
    overrides, flags = _sort(arguments)
    said, is_sweep = overrides, verb == "sweep" or (verb == "train" and bool({"-m", "--multirun"} & set(flags)))
    folders = _config_folders(flags)
    taken, ignored = ("hydra.sweep.dir", "hydra.run.dir") if is_sweep else ("hydra.run.dir", "hydra.sweep.dir")
    if word := next((word for word in overrides if word.startswith(f"{ignored}=")), None):
        raise InputError("E-CONFIG", f"{word} has no effect on loralight {verb}: its folder is {taken}=")
    if verb == "sweep":
        verb, flags = "train", [*flags, "--multirun"]
    from loralight.artifacts.run_settings import with_those_of_a_run
    from loralight.config.overrides import quoted, with_launcher
    from loralight.config.own_data import with_own_data

    if verb == "train":
        overrides = with_launcher(overrides, is_sweep=is_sweep)
    if verb in ("train", "estimate"):
        overrides = with_own_data(overrides, folders)
    overrides = [quoted(o) if _SEPARATES.fullmatch(o) else o for o in overrides]
    overrides = with_those_of_a_run(verb, overrides, conf=folders)
    if verb == "together":  # a run's name is followed by a command line, which Hydra must take as a text
        overrides = [f"++{quoted(o)}" if o.startswith(("runs.", "each=")) else o for o in overrides]
    if verb == "compare":
        overrides = _with_runs(overrides)
    if verb in _OWN:
        overrides = _with_words(verb, overrides)
    if verb == "chat":  # a sentence with commas and marks that mean something to Hydra
        overrides = [quoted(o) if o.startswith("system=") else o for o in overrides]
    if verb in ("predict", "chat"):  # a task's own names, checked once the task is known
        overrides = [f"++{o}" if o.startswith(("options.", "arguments.")) else o for o in overrides]

    from loralight.artifacts.run_folder import share_name
    from loralight.config.composition import explain, run_hydra, whole_errors

    share_name()

    sys.argv = ["loralight", *overrides, *flags]  # Hydra's parser wants flags last
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"

    def fail(message: str) -> int:
        told_of = import_module("loralight.config.settings").told_of
        return _fail(message + told_of(message, verb, overrides, folders))

    try:
        with whole_errors():
            if {"--help", "-h"} & set(flags):
                print(import_module("loralight.config.help_page").help_page(verb, overrides, folders))
                return 0
            if is_sweep:
                overrides = import_module("loralight.commands.sweep").words_of_a_sweep(overrides)
                sys.argv = ["loralight", *overrides, *flags]
            run_hydra(_job(verb, wants_traceback, fail), verb)
        if is_sweep:
            import_module("loralight.commands.sweep").end(said)
    except Stopped as stopped:
        if is_sweep:
            stopped.message = import_module("loralight.commands.sweep").stopped(said, stopped.message)
        raise
    except BrokenPipeError:
        raise
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except Exception as error:
        message = str(error) if isinstance(error, InputError) else explain(error, verb, overrides)
        if message is None or wants_traceback:
            raise
        return fail(message)
    return 0


def _job(verb: str, wants_traceback: bool = False, fail: Callable[[str], int] = _fail) -> Callable[[Any], Any]:
    def job(config: Any) -> Any:
        from loralight.resources import spare_the_hub_without_network

        if verb != "doctor":  # which asks the hub by itself, with a time-out
            spare_the_hub_without_network()
        try:
            if verb == "train":
                import_module("loralight.commands.sweep").place_job_(config)
            if verb in ("train", "estimate"):
                from loralight.config.composition import plain
                from loralight.config.first_look import first_look

                first_look(plain(config))
            return import_module(f"loralight.commands.{verb}").main(config)
        except Exception as error:
            if verb == "train" and not wants_traceback and import_module("loralight.commands.sweep").failed(error):
                return None
            if not isinstance(error, InputError):
                raise
            from hydra.core.hydra_config import HydraConfig
            from hydra.types import RunMode

            if HydraConfig.get().mode == RunMode.MULTIRUN or wants_traceback:
                raise  # Hydra names the job that failed
            folder = Path(HydraConfig.get().runtime.output_dir)
            with suppress(OSError):  # Hydra has made the run's folder; remove it if empty, but never the user's own
                if folder != Path.cwd():
                    folder.rmdir()
            raise SystemExit(fail(str(error))) from None

    return job


def _with_runs(words: list[str]) -> list[str]:
    """The words of ``loralight compare``, with those that are not settings as the folders in ``runs``."""
    from loralight.config.composition import as_override

    folders = [word for word in words if "=" not in word or Path(word).is_dir()]
    return [*(word for word in words if word not in folders), *([as_override("runs", folders)] if folders else [])]


def _with_words(verb: str, words: list[str]) -> list[str]:
    """The words of a verb, with those that are not its own settings as the overrides of its runs."""
    from loralight.config.composition import as_override

    several = _OWN[verb][0]
    own = [word for word in words if word.startswith((*(f"{name}=" for name in _OWN[verb]), "hydra."))]
    lists = [word for word in own if re.fullmatch(rf"{several}=([^\[].*|\[[^\"']*\])", word)]  # quotes are for Hydra
    texts = [re.sub(r"^\[(.*)\]$", r"\1", word.removeprefix(f"{several}=")) for word in lists]
    listed = [as_override(several, [one.strip() for one in _COMMA.split(text) if one.strip()]) for text in texts]
    others = [word for word in own if word not in lists]
    return [*others, *listed, as_override("words", [word for word in words if word not in own])]


def _sort(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Overrides and flags, each in their order; a flag's value follows it."""
    overrides: list[str] = []
    flags: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        asks = before in ("--info", "-i") and "=" not in argument  # its value may be left out
        belongs = argument.startswith("-") or before in _FLAGS_WITH_VALUE or asks
        (flags if belongs else overrides).append(argument)
    return overrides, flags


def _config_folders(flags: list[str]) -> list[str]:
    """The folders that ``--config-dir`` names."""
    joined = [flag.partition("=")[2] for flag in flags if flag.startswith(("--config-dir=", "-cd="))]
    return joined + [value for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]


def _complete(arguments: list[str]) -> int:
    """Shell completion: Hydra completes settings after the verb, which it does not know, is removed from the line."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    verb = next((word for word in words[1:] if word in VERBS), None)
    if any(argument.startswith("query=") for argument in arguments):
        if verb is None or words[-1] == verb:
            print("\n".join(name for name in VERBS if name.startswith(words[-1])))
            return 0
        words.remove(verb)
        os.environ["COMP_LINE"] = " ".join(words)
    from loralight.config.composition import run_hydra

    sys.argv = ["loralight", *arguments]
    run_hydra(_job("train"), "train" if verb in (None, "sweep", "explain", "tasks", "new-task") else verb)
    return 0
