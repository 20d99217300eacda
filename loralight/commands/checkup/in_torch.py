"""What torch knows of this machine, as lines of JSON, and a reduction between two processes of this module.

It runs by itself (``python -m ... RANK``), as importing torch takes seconds, and as native code that hangs can only be
killed with its process.
"""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loralight.kernels.trial import kept

_PATIENCE = timedelta(seconds=10)  # of one process for the other


def main() -> None:
    """Tell of torch, and then reduce a number over both processes: over gloo, and over nccl where there are GPUs."""
    rank = int(sys.argv[1])
    if rank == 0:
        for what in (devices, backends, products):
            _tell(what.__name__, **what())
    if not dist.is_available():
        return
    from torch._C._distributed_c10d import TCPStore  # which a torch without distribution lacks

    port = 0 if rank == 0 else int(input())
    store = TCPStore("localhost", port, is_master=rank == 0, wait_for_workers=False, timeout=_PATIENCE)
    if rank == 0:
        _tell("port", port=store.port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=_PATIENCE)
    _reduce("gloo", lambda: torch.tensor([1.0]), None, expected=2)
    num_gpus = min(torch.cuda.device_count(), 2)
    if not num_gpus or not dist.is_nccl_available():
        _tell("nccl", processes=0)
        return
    group = dist.new_group(range(num_gpus), backend="nccl", timeout=_PATIENCE)
    if rank < num_gpus:
        _reduce("nccl", lambda: torch.tensor([1.0], device=f"cuda:{rank}"), group, expected=num_gpus)


def devices() -> dict[str, Any]:
    """The GPUs, with their free and whole memory in bytes, and the version of CUDA or ROCm that torch is built for."""
    return {
        "gpus": [
            [torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number)]
            for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
        "mps": torch.backends.mps.is_available(),
        "built_for": torch.version.cuda or torch.version.hip,
    }


def backends() -> dict[str, Any]:
    """What computes and communicates, and the number of threads."""
    there = dist.is_available()
    return {
        "communicate": [name for name in ("gloo", "nccl", "mpi") if there and getattr(dist, f"is_{name}_available")()],
        "compute": [
            name
            for name, part in (("mkl", torch.backends.mkl), ("onednn", torch.backends.mkldnn))
            if part.is_available()
        ],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def products() -> dict[str, Any]:
    """The answers of `loralight.kernels.trial` that are kept for this processor."""
    return {"answers": kept()}


def _reduce(name: str, make: Callable[[], Tensor], group: Any, *, expected: int) -> None:
    number = make()
    dist.all_reduce(number, group=group)  # the first one connects
    started = perf_counter()
    number.fill_(1.0)
    dist.all_reduce(number, group=group)
    found = float(number)  # waits for a GPU
    _tell(name, processes=expected, sum=found, seconds=perf_counter() - started)


def _tell(name: str, **told: Any) -> None:
    print(json.dumps({"name": name, **told}), flush=True)


if __name__ == "__main__":
    main()
