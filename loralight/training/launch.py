"""Run one job in several processes with the same resolved config and torchrun's environment variables.

Lightning's launcher starts its processes by running the command line again; under Hydra's sweepers these would get
other settings than the first process. Torch's elastic agent reports a single failure, of any process that has ended
when it looks, and waits forever for a process that left by `sys.exit`.
"""

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from loralight.errors import InputError
from loralight.stopping import SIGNALS, held, listen
from loralight.training.ranks import Ranks, report_of, tells_of_another
from loralight.world import launched

Job = Callable[[dict[str, Any], Path], Any]


def process_rank() -> int | None:
    """This process's rank if torchrun, srun or `launch` has started several processes, else None."""
    given = launched()
    return None if given is None else given.rank


def num_processes(trainer: Mapping[str, Any]) -> int:
    """The number of processes on this machine that a trainer's config asks for.

    Raises:
        InputError: the machine has fewer devices (``E-DEVICES``), or several machines lack a launcher (``E-NODES``).
    """
    wanted, present = num_wanted(trainer), torch.cuda.device_count()
    on_gpu = trainer.get("accelerator", "auto") in ("gpu", "cuda")
    if on_gpu and present < max(wanted, 1) and not torch.backends.mps.is_available():
        raise InputError(
            "E-DEVICES",
            f"trainer.devices={trainer.get('devices', 'auto')} on {present} GPUs; take fewer, or trainer=ddp_cpu to "
            "try several processes",
        )
    if wanted < 1:
        raise InputError("E-DEVICES", f"trainer.devices is {trainer.get('devices')!r}; give a number of at least 1")
    if num_nodes(trainer) > 1 and process_rank() is None:
        raise InputError(
            "E-NODES", "several machines need a launcher: start this very command with torchrun or srun on each"
        )
    return wanted


def num_wanted(trainer: Mapping[str, Any]) -> int:
    """The number of processes on a machine that a trainer's config asks for, whether or not this machine has as many.

    Without a number (``auto``) it is that of this machine's GPUs, or 1.
    """
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if devices in ("auto", -1):
        on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
        return torch.cuda.device_count() if on_gpu else 1
    if isinstance(devices, str):
        return len([part for part in devices.split(",") if part.strip().isdigit()])
    return devices if isinstance(devices, int) else len(devices)


def num_nodes(trainer: Mapping[str, Any]) -> int:
    """The number of machines of a run: as a trainer's config says, or as many as the launcher started (``auto``)."""
    wanted = trainer.get("num_nodes", 1)
    if wanted != "auto":
        return int(wanted)
    given = launched()
    return 1 if given is None else given.num_machines


def world_size(trainer: Mapping[str, Any]) -> int:
    """The number of processes of a run on all machines, with a trainer's config.

    Raises:
        InputError: see `num_processes`.
    """
    given = launched()
    return num_processes(trainer) if given is None else given.num_ranks


def check_processes(trainer: Mapping[str, Any]) -> None:
    """Check the number of processes before any of them starts to work.

    Raises:
        InputError: see `num_processes`; or torchrun or srun has started another number than the trainer's config says
            (``E-DEVICES``).
    """
    wanted, machines, given = num_processes(trainer), num_nodes(trainer), launched()
    if given is not None and wanted * machines != given.num_ranks:
        raise InputError(
            "E-DEVICES",
            f"{given.by} has started {given.num_ranks} processes on {given.num_machines} machines, and "
            f"trainer.devices={trainer.get('devices', 'auto')} with trainer.num_nodes={machines} makes "
            f"{wanted * machines}; give trainer.devices={given.num_local} (or as many processes as devices), and leave "
            "out trainer.num_nodes",
        )


def launch(job: Job, config: dict[str, Any], output_dir: Path) -> Any:
    """Run ``job(config, output_dir)`` in as many processes as the trainer asks for.

    Args:
        job: a function at the top level of a module: other processes import it by its name.
        config: of `loralight train`, in plain values.
        output_dir: the run's folder.

    Returns:
        The job's result in the first process.

    Raises:
        InputError: a process found a mistake in the user's input.
        RuntimeError: a process failed; the message ends with the first failure's traceback. All processes have ended.
        Stopped: the processes were told to stop.
    """
    wanted = num_processes(config["trainer"])
    if process_rank() is not None:
        return _recorded(job, config, output_dir)
    if wanted == 1:
        return job(config, output_dir)
    # this process keeps the port open, so that no other program takes it before rank 0 does
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(wanted),
        "LOCAL_WORLD_SIZE": str(wanted),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "loralight",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    (output_dir / "ranks").mkdir(parents=True, exist_ok=True)
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(wanted)]
    return Ranks(_worker, [(environment, job, config, output_dir) for environment in ranks]).run()


def launch_without_folder(job: Job, config: dict[str, Any]) -> Any:
    """As `launch` for a job that has no folder, such as an evaluation; alone it runs here, and nothing is written.

    Of several processes all but the first print into a temporary folder, which the job gets too.
    """
    if world_size(config["trainer"]) == 1:
        return job(config, Path())
    with TemporaryDirectory() as folder:
        return launch(job, config, Path(folder))


def _recorded(job: Job, config: dict[str, Any], output_dir: Path) -> Any:
    """Run the job; if it fails, torchrun's agent is told the traceback, which it prints as the last thing.

    The agent takes the earliest of these for the cause. So an error that tells of another process's end is left out. If
    the agent is killed, the process ends too, and does not go on without the others.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_agent, args=(os.getppid(),), daemon=True).start()
    try:
        return job(config, output_dir)
    except Exception as error:
        if not tells_of_another(error):
            import_module("torch.distributed.elastic.multiprocessing.errors").get_error_handler().record_exception(
                error
            )
        raise


def _worker(pipe: Connection, environment: dict[str, str], job: Job, config: dict[str, Any], output_dir: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(None, force=True)  # data loader workers start as under torchrun, not by spawn
    os.environ.update(environment)
    rank, num_ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if rank:  # the first keeps the terminal
        log = os.open(output_dir / "ranks" / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
    faulthandler.enable()
    # tqdm's default lock has a system semaphore; if a process is killed, a warning about it reaches the terminal
    import_module("tqdm").tqdm.set_lock(threading.RLock())
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_ranks))
    with listen(ends_at_once=False):  # the parent decides; signals of a terminal reach it too
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        report = report_of(rank, lambda: job(config, output_dir))
        with held():
            pipe.send(report)
            if report.is_good and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    if not report.is_good:
        if rank and report.traceback:
            print(report.traceback, file=sys.stderr)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # destroying the process group would wait for the others


def _end_with_agent(agent: int) -> None:
    while os.getppid() == agent:
        time.sleep(1.0)
    os._exit(1)


def _end_with_parent() -> None:
    """End with the parent: killed, it cannot stop its children, and they would write into a resumed run's folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
