"""``loralight doctor``: what this machine and environment give, and what is wrong, in under 20 seconds."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import NamedTuple

from omegaconf import DictConfig

from loralight import logs
from loralight.artifacts.output import refuse_existing
from loralight.commands.checkup import devices, disks, hub, limits, packages, processes
from loralight.commands.checkup.finding import Finding, Machine
from loralight.commands.checkup.pair import Pair
from loralight.config.composition import plain


class Check(NamedTuple):
    """A check: its name, the function that looks, and the seconds after which it is given up."""

    name: str
    look: Callable[[Machine], Finding]
    seconds: float = 6.0


CHECKS = (
    Check("system", packages.system),
    Check("packages", packages.packages),
    Check("extras", packages.extras),
    Check("cores", limits.cores),
    Check("memory", limits.memory),
    Check("shared memory", limits.shared_memory),
    Check("disk of runs", disks.disk_of_runs),
    Check("disk of models", disks.disk_of_models),
    Check("locks", disks.lock),
    Check("clock", disks.clock),
    Check("terminal", hub.encoding),
    Check("hub", hub.hub),
    Check("launcher", processes.launcher),
    Check("rendezvous", processes.rendezvous),
)
WITH_TORCH = (
    Check("devices", devices.devices, 16.0),
    Check("backends", devices.backends, 16.0),
    Check("threads", devices.threads, 16.0),
    Check("products", devices.products, 16.0),
    Check("gloo", devices.over_gloo, 16.0),
    Check("nccl", devices.over_nccl, 16.0),
)


def main(config: DictConfig) -> None:
    """The job that Hydra runs.

    Raises:
        SystemExit: something is wrong; with code 1.
    """
    logs.configure()
    settings = plain(config)
    refuse_existing(settings["output"])
    pair, speaks = Pair(), processes.speaks_for_all(os.environ)
    found: dict[str, Finding] = {}
    try:
        machine = Machine(os.environ, Path(settings["runs"]), pair.start(os.environ) if speaks else pair)
        for check, finding in examined((*CHECKS, *WITH_TORCH) if speaks else CHECKS, machine):
            found[check.name] = finding
            if speaks:
                logs.show(f"{check.name:<15} {finding.told}")
    finally:
        pair.end()
    wrong = {name: finding for name, finding in found.items() if finding.wrong}
    for name, finding in wrong.items():
        logs.show(f"\nwrong: {name}: {finding.wrong}", f"  {finding.remedy}")
    if settings["output"] and speaks:
        report = {name: asdict(finding) for name, finding in found.items()}
        Path(settings["output"]).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if wrong:
        raise SystemExit(1)
    if speaks:
        logs.show("\nnothing is wrong")


def examined(checks: Sequence[Check], machine: Machine) -> Iterator[tuple[Check, Finding]]:
    """What the checks find, in their order.

    All begin at once, each in a thread of its own, and one that hangs is left behind: its thread ends with the process.
    """
    started = monotonic()
    begun = [(check, _begin(check, machine)) for check in checks]
    for check, answer in begun:
        try:
            yield check, answer.get(timeout=max(started + check.seconds - monotonic(), 0.0))
        except Empty:
            wrong = f"no answer within {check.seconds:.0f} s"
            yield check, Finding("no answer", wrong, "try again on a quiet machine; else it hangs here in a run, too")


def _begin(check: Check, machine: Machine) -> "SimpleQueue[Finding]":
    answer: SimpleQueue[Finding] = SimpleQueue()

    def look() -> None:
        try:
            answer.put(check.look(machine))
        except Exception as error:  # a check that fails is a finding, too
            answer.put(Finding("cannot be told", f"{type(error).__name__}: {error}", "see what is wrong"))

    Thread(target=look, daemon=True).start()
    return answer
