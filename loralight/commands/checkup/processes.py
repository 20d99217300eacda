"""Checks of a launcher's environment: which processes it says there are, and where they meet."""

import os
import re
import socket
from collections.abc import Mapping

from loralight.commands.checkup.finding import Finding, Machine
from loralight.errors import InputError
from loralight.world import launched

_LEFT_OVER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_OTHERS = {  # variables of launchers that Lightning knows, and loralight does not use
    "LSF": ("LSB_JOBID", "JSM_NAMESPACE_SIZE"),
    "MPI": ("OMPI_COMM_WORLD_SIZE",),
}
_PATIENCE = 3.0  # seconds


def launcher(machine: Machine) -> Finding:
    """Which launcher has started this process, and whether its variables fit each other."""
    given = machine.environment
    try:
        found = launched(given)
    except InputError as error:
        return Finding("cannot be told", str(error).partition(": ")[2], "see what is wrong")
    if found is not None:
        told = f"{found.by}: process {found.rank} of {found.num_ranks} on {found.num_machines} machines"
        return Finding(f"{told}, {os.uname().nodename}")
    for name, variables in _OTHERS.items():
        if all(variable in given for variable in variables):
            wrong = f"{name} has started this, and each of its processes would be a run of its own"
            return Finding(name, wrong, "start the command with torchrun or srun")
    if left := [name for name in _LEFT_OVER if name in given]:
        wrong = f"{', '.join(left)} set, and no launcher has started this: libraries take it for one process of several"
        return Finding("none", wrong, f"unset {' '.join(left)}")
    return Finding("none: loralight starts the processes that trainer.devices= says")


def rendezvous(machine: Machine) -> Finding:
    """Whether the place where the launcher's processes meet can be reached."""
    try:
        found = launched(machine.environment)
    except InputError:
        found = None
    if found is None:
        return Finding("localhost, any free port")
    host, port = meeting_place(machine.environment)
    told = f"{host}:{port}"
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        wrong = f"{host} is not known here: {error.strerror}"
        return Finding(told, wrong, "export MASTER_ADDR=ADDRESS, of the first machine")
    if machine.environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _answers(host, port, told)
    return _is_free(port, told) if found.rank == 0 else Finding(f"{told}, opened by process 0")


def meeting_place(given: Mapping[str, str]) -> tuple[str, int]:
    """The host and port at which a launcher's processes meet; under srun as Lightning takes them from the job."""
    first = re.sub(r"\[(.*?)[,\-\]].*", r"\1", given.get("SLURM_NODELIST", "127.0.0.1")).split(",")[0]
    number = given.get("SLURM_JOB_ID", "")[-4:]
    port = given.get("MASTER_PORT") or (15000 + int(number) if number.isdigit() else 12910)
    return given.get("MASTER_ADDR") or first, int(port)


def _answers(host: str, port: int, told: str) -> Finding:
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except OSError as error:
        wrong = f"nothing answers at {told} ({error.strerror or error}), where torchrun's agent should"
        return Finding(told, wrong, "open this port between the machines, or torchrun --rdzv-endpoint HOST:PORT")
    return Finding(f"{told} answers")


def _is_free(port: int, told: str) -> Finding:
    try:
        with socket.create_server(("", port)):
            return Finding(f"{told} is free")
    except OSError as error:
        wrong = f"port {port} is taken: {error.strerror}"
        return Finding(told, wrong, "export MASTER_PORT=NUMBER, the same on each machine")


def speaks_for_all(given: Mapping[str, str]) -> bool:
    """Whether this process is the only one, or the launcher's first."""
    try:
        found = launched(given)
    except InputError:
        return True
    return found is None or found.rank == 0
