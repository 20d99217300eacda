"""Run folders of strangers: what they say is data. Nothing in them is run, and nothing outside of them is touched."""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loralight.cli import run as command_line

from .warm import run_warm

pytestmark = pytest.mark.timeout(900)
Spoil = Callable[[Path], Any]
SECRET = "the-secret-of-the-environment"
CONFIG, OVERRIDES = ".hydra/config.yaml", ".hydra/overrides.yaml"
LOADS = {"_target_": "torch.load", "f": "x.pt", "weights_only": False}
LOADED = "{_target_: torch.load, f: x.pt, weights_only: false}"
RESUME = ("resume",)
ALL = ("evaluate", "merge", "resume")


def config(**changes: Any) -> Spoil:
    """Other values in the config, by their names with __ for the dots; a mapping is added to what is there."""

    def spoil(folder: Path) -> None:
        content = yaml.safe_load((folder / CONFIG).read_text())
        for name, value in changes.items():
            *parents, last = name.split("__")
            node = content
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = (
                {**node[last], **value} if isinstance(node.get(last), dict) and isinstance(value, dict) else value
            )
        (folder / CONFIG).write_text(yaml.safe_dump(content, sort_keys=False))

    return spoil


def text(content: str | bytes) -> Spoil:
    """Another config altogether."""
    return lambda folder: (folder / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())


def more(lines: str) -> Spoil:
    """A config that goes on."""
    return lambda folder: (folder / CONFIG).write_text((folder / CONFIG).read_text() + lines)


def said(*overrides: str) -> Spoil:
    """Other words of the command line."""

    def spoil(folder: Path) -> None:
        found = yaml.safe_load((folder / OVERRIDES).read_text())
        (folder / OVERRIDES).write_text(yaml.safe_dump([*found, *overrides]))

    return spoil


def link(name: str, target: str) -> Spoil:
    """A link out of the folder, in a file's or a folder's place."""

    def spoil(folder: Path) -> None:
        if (folder / name).is_dir():
            shutil.move(folder / name, folder / "aside")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder.parent / target)

    return spoil


def pipe(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/last/*"), key=lambda path: path.stat().st_mtime)


def state(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Another state in every checkpoint, whose manifest fits it: its author can write both."""

    def spoil(folder: Path) -> None:
        for file in folder.glob("checkpoints/*/*/state.json"):
            content = json.loads(file.read_text())
            changed = change(content)
            file.write_text(json.dumps(content) if changed is None else changed)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            manifest = json.loads(file.with_name("manifest.json").read_text())
            manifest["sha256"]["state.json"] = digest
            file.with_name("manifest.json").write_text(json.dumps(manifest))

    return spoil


def chosen(path: str, also: str = "best_k_models") -> Spoil:
    """A checkpoint that names ``path`` as what a better one replaces."""

    def change(content: dict[str, Any]) -> None:
        for key, found in content["callbacks"].items():
            if key.startswith("ModelCheckpoint"):
                (score,) = list(found["best_k_models"].values())[:1] or [None]
                found[also] = {path: score} if also == "best_k_models" else path

    return state(change)


def manifest(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for file in folder.glob("checkpoints/*/*/manifest.json"):
            file.write_text(json.dumps({"sha256": {name: "0" * 64}}))

    return spoil


def tried(content: str, **changes: Any) -> Spoil:
    """Another result of trials, in a run whose settings ask for one."""

    def spoil(folder: Path) -> None:
        config(**changes)(folder)
        (folder / "tried.json").write_text(content)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


NOTHING = ""
"""Beside a refusal, a command may do what it does for the same folder without the words."""

WORDS = [
    f"++trainer.profiler={LOADED}",
    "++trainer.profiler={_target_: torch.hub.load, repo_or_dir: x}",
    f"++hydra.callbacks.x={LOADED}",
    "++hydra.job.env_set.LORALIGHT_PLUGINS=hostile_plugin",
    "hydra.searchpath=[file://hostile_plugin/conf]",
    "hydra.run.dir=victim",
    "hydra.output_subdir=x",
    "hydra.job.chdir=true",
    "hydra/launcher=joblib",
    "hydra/callbacks=x",
    "adapter=../../victim/x",
    "++data.train=${oc.env:SECRET}",
    "++logger.csv.name=${oc.env:SECRET}",
    "callbacks.best.dirpath=victim",
    "+callbacks.x={_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: victim}",
    *("~task", "~trainer", "~names", "~seed", "~hydra", "~model.checkpoint"),
]

HOSTILE: dict[str, tuple[Spoil, tuple[str, ...], str]] = {
    # words of the command line, of which each was run
    "words": (said(*WORDS), ALL, NOTHING),
    "words with tags": (
        lambda folder: (folder / OVERRIDES).write_text("- !!python/object/apply:os.system [touch ran]\n"),
        ALL,
        "E-RUN",
    ),
    "words in a mapping": (lambda folder: (folder / OVERRIDES).write_text("{a: b}\n"), RESUME, "E-RUN"),
    "words without end": (lambda folder: (folder / OVERRIDES).write_text("[" * 100_000), RESUME, "E-RUN"),
    "words are a pipe": (pipe(OVERRIDES), RESUME, "E-RUN"),
    # what is no config
    "a tag": (more("x: !!python/object/apply:os.system ['touch ran']\n"), ALL, "E-RUN"),
    "an alias": (more("a: &a [1]\nb: *a\n"), RESUME, "E-RUN: .*alias"),
    "laughs": (
        text("a: &a [x,x,x,x]\n" + "".join(f"b{n}: &b{n} [*{'a' if not n else f'b{n - 1}'}]\n" for n in range(99))),
        RESUME,
        "E-RUN",
    ),
    "bottomless": (text("{a: " * 30_000), RESUME, "E-RUN: .*deeper"),
    "a bottomless list": (text("- " * 30_000), RESUME, "E-RUN: .*deeper"),
    "without end": (lambda folder: os.truncate(folder / CONFIG, 2**33), RESUME, "E-RUN: .*128 kB"),
    "one key twice": (more("seed: 1\n"), RESUME, "E-RUN: .*twice"),
    "one key twice inside": (more("x: {a: 1, a: 2}\n"), RESUME, "E-RUN: .*twice"),
    "a merge": (more("x: {<<: {a: 1}}\n"), RESUME, "E-RUN"),
    "no number": (config(optimizer__lr=float("nan")), RESUME, "E-RUN: .*finite"),
    "a date": (more("x: 2026-01-01\n"), RESUME, "E-RUN"),
    "bytes": (text(b"\xff\xfe\x00\x01"), RESUME, "E-RUN"),
    "a list": (text("[1, 2]"), RESUME, "E-RUN"),
    "empty": (text(""), RESUME, "E-RUN"),
    "cut off": (text('seed: "0'), RESUME, "E-RUN"),
    "a colour for the terminal": (config(data__train="\x1b[31mx"), RESUME, "E-RUN"),
    "config is a link": (link(CONFIG, "victim/secret"), ALL, "E-RUN: .*regular"),
    "config is a pipe": (pipe(CONFIG), RESUME, "E-RUN: .*regular"),
    # what a config says
    "the environment in the config": (config(data__path="${oc.env:SECRET}"), ALL, "E-RUN"),
    "the environment in a key": (config(data__columns={"${oc.env:SECRET}": "x"}), RESUME, "E-RUN"),
    "a value to be given": (config(data__path="???"), RESUME, "E-RUN"),
    "settings of Hydra's": (config(hydra={"run": {"dir": "victim"}, "callbacks": {"x": LOADS}}), ALL, "E-"),
    "data that unpickle": (config(data=LOADS), ALL, "E-TARGET"),
    "a task of another's": (config(task___target_="os.system"), ALL, "E-TARGET"),
    "a class of a library": (config(task___target_="lightning.pytorch.loggers.CSVLogger"), ALL, "E-TARGET"),
    "a target in a setting": (config(adapter__targets=LOADS), ALL, "E-TARGET"),
    "a target in a list": (config(data__labels=[LOADS]), RESUME, "E-TARGET"),
    "a partial": (config(adapter___partial_=True), RESUME, "E-TARGET"),
    "arguments in their order": (config(data___args_=["x"]), RESUME, "E-TARGET"),
    "a target in a profiler": (config(trainer__profiler=LOADS), RESUME, "E-TARGET"),
    "a target by dots": (config(trainer={"profiler._target_": "torch.load"}), RESUME, "E-"),
    "words in a key": (config(adapter={"rank=3 ++hydra.run.dir": "victim"}), RESUME, "E-"),
    "an optimizer that runs": (config(optimizer___target_="torch.hub.load"), RESUME, "E-TARGET"),
    "an optimizer by its path": (config(optimizer="../../victim/x"), RESUME, "E-RUN"),
    "a probe that runs": (config(forgetting=LOADS), RESUME, "E-"),
    "a known probe that runs": (config(names__forgetting="features", forgetting=LOADS), RESUME, "E-TARGET"),
    "another part": (config(evil={"_target_": "os.system"}), RESUME, "E-TARGET"),
    "an unknown setting": (config(evil=3), RESUME, "E-RUN"),
    "an unknown argument": (config(task__evil=3), ALL, "E-CONFIG"),
    "a seed of many": (config(seed={"a": 1}), RESUME, "E-"),
    "a seed of letters": (config(seed="x"), RESUME, "E-CONFIG"),
    "a checkpoint of a package": (config(data__path="pkg://hostile_plugin.inside/x"), ALL, "E-"),
    "data from elsewhere": (config(data__train="http://127.0.0.1:9/x.csv"), RESUME, "E-"),
    "pickled data": (config(data__train="x.pkl"), RESUME, "E-"),
    # names of choices
    "a task by its path": (config(names__task="../../victim/x"), ALL, "E-RUN"),
    "a task by its whole path": (config(names__task="/etc/passwd"), RESUME, "E-RUN"),
    "an experiment that is not here": (config(names__experiment="evil"), ALL, "E-RUN: .*experiment=evil"),
    "a group that is not here": (config(names={"evil/group": "x"}), RESUME, "E-RUN"),
    "a group of Hydra's": (config(names={"hydra/launcher": "basic"}), RESUME, "E-RUN"),
    "a choice that is a list": (config(names__task=["a", "b"]), RESUME, "E-RUN"),
    "a choice with a word behind": (config(names__adapter="lora hydra.run.dir=victim"), RESUME, "E-RUN"),
    "no names": (config(names=3), RESUME, NOTHING),
    # where something is written
    "checkpoints elsewhere": (config(callbacks__best__dirpath="victim"), RESUME, "E-RUN"),
    "checkpoints elsewhere by name": (config(callbacks__best__filename="../../../victim/x"), RESUME, "E-RUN"),
    "checkpoints elsewhere by length": (config(callbacks__last__dirpath="victim/checkpoints/last"), RESUME, NOTHING),
    "a log elsewhere": (config(logger__csv__save_dir="victim"), RESUME, NOTHING),
    "a log elsewhere by name": (config(logger__csv__name="../../victim"), RESUME, "E-RUN"),
    "another log": (
        config(logger__x={"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "victim"}),
        RESUME,
        "E-TARGET",
    ),
    "another callback": (
        config(callbacks__x={"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "victim"}),
        RESUME,
        "E-TARGET",
    ),
    "a root elsewhere": (config(trainer__default_root_dir="victim"), ("evaluate", "resume"), "E-TRAINER"),
    "plugins of the trainer": (config(trainer__plugins="x"), RESUME, "E-TRAINER"),
    "a log behind a link": (link("train.log", "victim/secret"), RESUME, "E-RUN: .*leads out"),
    "results behind a link": (link("summary.json", "victim/secret"), RESUME, "E-RUN: .*leads out"),
    "answers behind a link": (link("predictions.jsonl", "victim/secret"), RESUME, "E-RUN: .*leads out"),
    "a page behind a link": (link("progress.html", "victim/secret"), RESUME, "E-RUN: .*leads out"),
    "a page that is a pipe": (pipe(".progress.html"), RESUME, "E-RUN"),
    "settings behind a link": (link(OVERRIDES, "victim/secret"), RESUME, "E-RUN"),
    "checkpoints behind a link": (link("checkpoints/best", "victim"), RESUME, "E-RUN: .*leads out"),
    "a log that is a pipe": (pipe("train.log"), RESUME, "E-RUN"),
    # what a checkpoint says
    "a checkpoint above": (chosen("../victim"), RESUME, "E-CKPT-PATH"),
    "a checkpoint far above": (chosen("checkpoints/best/../../../victim"), RESUME, "E-CKPT-PATH"),
    "a checkpoint at the root": (chosen("/etc"), RESUME, "E-CKPT-PATH"),
    "the run for a checkpoint": (chosen("."), RESUME, "E-CKPT-PATH"),
    "the last above": (chosen("../victim", "last_model_path"), RESUME, "E-CKPT-PATH"),
    "the worst above": (chosen("../victim", "kth_best_model_path"), RESUME, "E-CKPT-PATH"),
    "the best above": (chosen("../victim", "best_model_path"), RESUME, "E-CKPT-PATH"),
    "their folder above": (chosen("../victim", "dirpath"), RESUME, "E-CKPT-PATH"),
    "a checkpoint behind a link": (
        both(chosen("checkpoints/best/x"), link("checkpoints/best/x", "victim")),
        RESUME,
        "E-RUN: .*leads out",
    ),
    "a state that is a list": (state(lambda _: "[]"), RESUME, "E-CKPT"),
    "a bottomless state": (state(lambda _: '{"a":' * 50_000), RESUME, "E-CKPT"),
    "a state with strange items": (
        state(lambda found: found.update(callbacks={"__items__": [[[], 1]]})),
        RESUME,
        "E-CKPT-STATE",
    ),
    "a tensor that is not there": (
        state(lambda found: found.update(x={"__tensor__": "gone"})),
        RESUME,
        "E-CKPT-STATE",
    ),
    "another file to be read": (manifest("../../../../victim/secret"), RESUME, "E-CKPT"),
    "a device to be read": (manifest("/dev/zero"), RESUME, "E-CKPT"),
    # what trials are said to have found
    "nothing tried": (tried("{}", budget="10min"), RESUME, "E-RUN: .*tried.json"),
    "a yes for steps": (tried('{"most_steps": true}', budget="10min"), RESUME, "E-RUN: .*tried.json"),
    "no step": (tried('{"most_steps": 0}', budget="10min"), RESUME, "E-RUN: .*tried.json"),
    "steps beyond counting": (
        tried('{"most_steps": 100000000000000000}', budget="10min"),
        RESUME,
        "E-RUN: .*tried.json",
    ),
    "a tried rate without end": (tried('{"lr": 1e999}', optimizer__lr="auto"), RESUME, "E-.*tried.json"),
    "a tried rate of letters": (tried('{"lr": "1e-3"}', optimizer__lr="auto"), RESUME, "E-RUN: .*tried.json"),
    "a bottomless trial": (tried('{"lr": ' + "[" * 50_000, optimizer__lr="auto"), RESUME, "E-ADAPTER: .*tried.json"),
    "a trial that is a list": (tried("[1]", optimizer__lr="auto"), RESUME, "E-ADAPTER: .*tried.json"),
    "a trial of gigabytes": (
        both(tried("{}", budget="10min"), lambda folder: os.truncate(folder / "tried.json", 2**33)),
        RESUME,
        "E-ADAPTER: .*tried.json",
    ),
    "a trial behind a link": (
        both(config(budget="10min"), link("tried.json", "victim/secret")),
        RESUME,
        "E-RUN: .*tried.json leads out",
    ),
    "a trial that is a pipe": (both(config(budget="10min"), pipe("tried.json")), RESUME, "E-RUN: .*tried.json"),
    "an adapter that runs": (
        lambda folder: (folder / "initialised.json").write_text(
            json.dumps({"name": "lora", "arguments": {"targets": LOADS}})
        ),
        RESUME,
        "E-ADAPTER",
    ),
}


def line(verb: str, folder: str) -> list[str]:
    more = {"evaluate": [], "merge": [f"output={folder}.merged", "split=null"], "resume": ["trainer.max_epochs=2"]}[
        verb
    ]
    return ["train", f"resume={folder}", *more] if verb == "resume" else [verb, f"run={folder}", *more]


@pytest.fixture(scope="module")
def outcomes(tiny_bert: str, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """What became of each command, as a watched process tells."""
    here = tmp_path_factory.mktemp("hostile_runs")
    (here / "victim").mkdir()
    (here / "victim" / "secret").write_text("precious")
    (here / "hostile_plugin" / "conf").mkdir(parents=True)
    (here / "hostile_plugin" / "__init__.py").write_text("open('ran', 'w')")
    (here / "x.pt").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    make_run(here / "good", tiny_bert, texts)
    paths = os.pathsep.join([str(here), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "SECRET": SECRET, "COLUMNS": "400"}
    commands = [line(verb, "good") for verb in ALL]
    for number, (spoil, verbs, _) in enumerate(HOSTILE.values()):
        spoil(shutil.copytree(here / "good", here / f"run{number}"))
        commands += [line(verb, f"run{number}") for verb in verbs]
    (here / "commands.json").write_text(json.dumps(commands))
    script = Path(__file__).with_name("hostile_runs.py")
    done = run_warm([str(script), "commands.json"], cwd=here, env=environment, timeout=800)
    assert done.returncode == 0, done.stderr
    assert not (here / "ran").exists()
    assert {file.name: file.read_text() for file in (here / "victim").iterdir()} == {"secret": "precious"}
    kinds = (".csv", ".json", ".yaml", ".log")
    written = (file for file in here.rglob("*") if file.suffix in kinds and file.is_file())
    of_a_run = (file for file in written if file.stat().st_size < 2**30)  # one of ours has 8 GB of zeros
    assert not any(SECRET.encode() in file.read_bytes() for file in of_a_run)
    of = [(name, verb) for name, (_, verbs, _) in HOSTILE.items() for verb in verbs]
    return dict(zip(of, map(json.loads, done.stdout.splitlines()), strict=True))


def make_run(folder: Path, tiny_bert: str, texts: Path) -> None:
    made = [
        f"data.path='{texts}'",
        f"model.checkpoint='{tiny_bert}'",
        "data=text_classification",
        "model.max_length=16",
        "data.batch_size=20",
        "trainer=cpu",
        "trainer.max_epochs=1",
        f"hydra.run.dir='{folder}'",
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["loralight"])
        handlers = list(logging.getLogger().handlers)
        assert command_line(["train", *made]) == 0
        logging.captureWarnings(False)
        logging.getLogger().handlers = handlers


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_run_is_refused_by_name_or_goes_without_its_words(outcomes: dict[Any, Any], name: str) -> None:
    _, verbs, expected = HOSTILE[name]
    for verb in verbs:
        found = outcomes[name, verb]
        assert found["seen"] == [] and found["modules"] == [] and found["environment"] == []
        assert SECRET not in found["printed"]
        if found["code"] == 0:
            assert not expected, found["printed"]
        else:
            assert found["code"] == 2 and re.search(f"^loralight: {expected or 'E-'}", found["printed"], re.M), found
            told = found["printed"].partition("loralight: E-")[2]
            assert len(told) < 1200 and "\x1b" not in told and "Traceback" not in told


def test_there_are_many() -> None:
    assert len(HOSTILE) + len(WORDS) >= 80
