"""The launcher that started this process among others, by its environment: torchrun, srun, or none.

This module imports nothing heavy: the command line names a run's folder by the launcher.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from loralight.errors import InputError

_SHELLS = ("bash", "interactive")
"""Names of SLURM's jobs that are shells: a command there is alone, whatever the job's tasks, as Lightning has it."""


@dataclass(frozen=True)
class Launched:
    """This process among those that a launcher started.

    Args:
        by: the launcher.
        rank: of this process, over all machines.
        num_ranks: processes on all machines.
        num_machines: machines, as the launcher counts them.
    """

    by: str
    rank: int
    num_ranks: int
    num_machines: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_ranks or self.num_machines < 1 or self.num_ranks % self.num_machines:
            raise InputError(
                "E-LAUNCHER",
                f"{self.by}'s variables say that this is process {self.rank} of {self.num_ranks} on "
                f"{self.num_machines} machines; give every machine as many, and unset what an earlier run has left",
            )

    @property
    def num_local(self) -> int:
        """Processes on each machine."""
        return self.num_ranks // self.num_machines


def launched(environment: Mapping[str, str] | None = None) -> Launched | None:
    """This process among those of torchrun, srun or `loralight.training.launch`; None if nothing has launched it.

    Args:
        environment: that of the process; None for this one's.

    Raises:
        InputError: the variables of torchrun or srun contradict each other, a job with several tasks was not started by
            srun, or processes that torchrun starts again would wait for those before them (``E-LAUNCHER``).
    """
    given = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in given or ("RANK" in given and "WORLD_SIZE" in given):
        _check_store(given)
        num_ranks = _number(given, "WORLD_SIZE")
        # torchrun says both; who sets RANK and WORLD_SIZE by hand may leave out the rest
        local = _number(given, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in given else num_ranks
        return Launched("torchrun", _number(given, "RANK"), num_ranks, max(num_ranks // max(local, 1), 1))
    if _number(given, "SLURM_NTASKS", "1") > 1 and given.get("SLURM_JOB_NAME") not in _SHELLS:
        return _by_srun(given)
    if left := [name for name in ("RANK", "LOCAL_RANK") if given.get(name, "0") != "0"]:
        raise InputError(
            "E-LAUNCHER",
            f"{left[0]}={given[left[0]]} is set, and no launcher has started this process: Lightning would take it for "
            f"one of several, and leave logs to the first; unset {' '.join(left)}",
        )
    return None


def is_again(environment: Mapping[str, str] | None = None) -> bool:
    """Whether torchrun starts this command again after a failure, or SLURM after it was requeued.

    Args:
        environment: that of the process; None for this one's.
    """
    given = os.environ if environment is None else environment
    counts = (given.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count not in ("", "0") for count in counts)


def _by_srun(given: Mapping[str, str]) -> Launched:
    tasks = given["SLURM_NTASKS"]
    if "SLURM_STEP_ID" not in given or "SLURM_PROCID" not in given:
        raise InputError(
            "E-LAUNCHER",
            f"SLURM gave this job {tasks} tasks, and srun has not started this process, so it would wait for the "
            "others: put srun before the command, or ask for one task (--ntasks=1), where loralight starts the "
            "processes that trainer.devices= says",
        )
    if "SLURM_NTASKS_PER_NODE" not in given:  # which Lightning demands
        machines = _number(given, "SLURM_NNODES", "1")
        share = int(tasks) // machines if machines > 0 else tasks
        raise InputError("E-LAUNCHER", f"srun with --ntasks={tasks}: say --ntasks-per-node={share} in its place")
    return Launched("srun", _number(given, "SLURM_PROCID"), int(tasks), _number(given, "SLURM_NNODES", "1"))


def _check_store(given: Mapping[str, str]) -> None:
    """Refuse restarts with a store that outlives them (https://github.com/pytorch/pytorch/issues/135712)."""
    restarts = given.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and given.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise InputError(
            "E-LAUNCHER",
            f"torchrun --max-restarts {restarts}: processes that are started again would find the addresses of those "
            "before them in the agent's store, and wait for them; export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before "
            "torchrun",
        )


def _number(given: Mapping[str, str], name: str, otherwise: str = "") -> int:
    value = given.get(name, otherwise)
    if not value.isdigit():
        raise InputError("E-LAUNCHER", f"the environment variable {name} is {value!r}, and must be a number")
    return int(value)
