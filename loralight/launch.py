"""One job in several processes: torch's elastic agent starts them, each with the same resolved config.

Lightning's own launcher starts its processes by running the command line again, which under Hydra's sweepers gives
them other settings than the first process has.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from loralight.errors import InputError


def process_rank() -> int | None:
    """This process's rank where torchrun, srun or `launch` has started several; None where it is alone."""
    if "TORCHELASTIC_RUN_ID" in os.environ or ("RANK" in os.environ and "WORLD_SIZE" in os.environ):
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and os.environ.get("SLURM_JOB_NAME") != "bash":
        return int(os.environ["SLURM_PROCID"])
    return None


def num_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes on this machine a trainer's config asks for.

    Raises:
        InputError: there are not as many devices (``E-DEVICES``), or several machines without a launcher (``E-NODES``).
    """
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    present = torch.cuda.device_count() if on_gpu else 0
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if devices in ("auto", -1):
        wanted = present if on_gpu else 1
    elif isinstance(devices, str):
        wanted = len([part for part in devices.split(",") if part.strip().isdigit()])
    else:
        wanted = devices if isinstance(devices, int) else len(devices)
    if accelerator in ("gpu", "cuda") and present < max(wanted, 1) and not torch.backends.mps.is_available():
        raise InputError(
            "E-DEVICES",
            f"trainer.devices={devices} on {present} GPUs; take fewer, or trainer=ddp_cpu to try several processes",
        )
    if wanted < 1:
        raise InputError("E-DEVICES", f"trainer.devices is {devices!r}; give a number of at least 1")
    if trainer.get("num_nodes", 1) > 1 and process_rank() is None:
        raise InputError(
            "E-NODES", "several machines need a launcher: start this very command with torchrun or srun on each"
        )
    return wanted


def launch(job: str, config: dict[str, Any], output_dir: Path) -> Any:
    """Run ``loralight.<job>.work(config, output_dir)``, in as many processes as the trainer asks for.

    Returns:
        What it returns, in the first process.

    Raises:
        InputError: a process found a mistake in what the user gave.
        RuntimeError: a process failed; the message ends with the first failure's traceback. All are gone by then.
    """
    wanted = num_processes(config["trainer"])
    if process_rank() is not None or wanted == 1:
        return _call(job, config, output_dir)
    ranks = dict.fromkeys(range(1, wanted), Std.ALL)  # rank 0 keeps the terminal
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=wanted,
        run_id="loralight",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=str(output_dir / "ranks"), redirects=ranks),
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it would say is raised below
    threads = max(1, (os.cpu_count() or 1) // wanted)
    try:
        returned = elastic_launch(settings, _worker)(job, json.dumps(config), str(output_dir), os.getpid(), threads)
    except ChildFailedError as error:
        raise _first_cause(error) from None
    return returned[0]


def _call(job: str, config: dict[str, Any], output_dir: Path) -> Any:
    return import_module(f"loralight.{job}").work(config, output_dir)


def _worker(job: str, config: str, output_dir: str, parent: int, threads: int) -> Any:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    returned = _call(job, json.loads(config), Path(output_dir))
    # not after a failure: the other processes would fail too, and tell so before this one has told its cause
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return returned


def _end_with(parent: int) -> None:
    """A killed parent cannot stop its children, and one that trained on would write into a resumed run's folder."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _first_cause(error: ChildFailedError) -> Exception:
    """The failure that came first, by when its file was written: others follow from it within the same second."""

    def written(rank: int) -> float:
        file = Path(error.failures[rank].error_file)
        return file.stat().st_mtime if file.is_file() else float("inf")

    rank = min(error.failures, key=written)
    failure = error.failures[rank]
    if not isinstance(failure.message, dict):
        return RuntimeError(f"process {rank} ended: {failure.message}")
    message = failure.message["message"]
    if message.startswith("InputError: "):
        code, _, text = message.removeprefix("InputError: ").partition(": ")
        return InputError(code, text)
    return RuntimeError(f"process {rank} failed:\n{failure.message['extraInfo']['py_callstack']}")
