"""Which launcher has started a process, by its environment, and what contradicts itself there."""

import pytest

from loralight.errors import InputError
from loralight.world import Launched, is_again, launched

TASKS = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, None),  # shells in an allocation
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, None),
        ({"RANK": "0", "LOCAL_RANK": "0"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Launched("torchrun", 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}, Launched("torchrun", 0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, Launched("torchrun", 5, 8, 2)),
        ({**TASKS, "SLURM_PROCID": "3"}, Launched("srun", 3, 4, 2)),
        ({**TASKS, "SLURM_PROCID": "3", "RANK": "0", "WORLD_SIZE": "2"}, Launched("torchrun", 0, 2)),  # in a job
    ],
)
def test_a_launcher_is_known_by_its_environment(environment: dict[str, str], found: Launched | None) -> None:
    assert launched(environment) == found


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "process 2 of 2 on 1 machines"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "process 0 of 0"),
        ({"RANK": "0", "WORLD_SIZE": "5", "LOCAL_WORLD_SIZE": "2"}, "process 0 of 5 on 2 machines"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        (
            {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun",
        ),
        ({"TORCHELASTIC_RUN_ID": "none"}, "WORLD_SIZE is ''"),
        ({"RANK": "1"}, "RANK=1 is set, and no launcher .* unset RANK"),
        ({"LOCAL_RANK": "1", "RANK": "0"}, "LOCAL_RANK=1 is set"),
        ({"SLURM_NTASKS": "4(x2)"}, r"SLURM_NTASKS is '4\(x2\)'"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "srun has not started this process"),  # a job's script
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, "srun has not started this process"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, "--ntasks-per-node=4"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=f"^E-LAUNCHER: .*{says}"):
        launched(environment)


def test_a_command_that_is_started_again_is_known_by_its_environment() -> None:
    assert not is_again({}) and not is_again({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert is_again({"TORCHELASTIC_RESTART_COUNT": "1"}) and is_again({"SLURM_RESTART_COUNT": "2"})
