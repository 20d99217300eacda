"""Checks of what the two processes with torch tell: devices, what computes, what communicates."""

import os
from pathlib import Path

from loralight.commands.checkup.finding import Finding, Machine, gib
from loralight.commands.checkup.limits import num_cores
from loralight.commands.checkup.pair import EndedError

_DRIVER = Path("/dev/nvidiactl")  # which NVIDIA's driver makes


def devices(machine: Machine) -> Finding:
    """The GPUs, and why torch sees none where there are some."""
    told = machine.pair.told("devices")
    built, gpus = told["built_for"], told["gpus"]
    if gpus:
        return Finding("; ".join(f"{name}, {gib(free)} of {gib(whole)} free" for name, free, whole in gpus))
    if told["mps"]:
        return Finding("Apple's GPU (mps)")
    none = f"no GPU; this torch is built for {built or 'processors alone'}"
    hidden = machine.environment.get("CUDA_VISIBLE_DEVICES")
    if not _DRIVER.exists() or hidden in ("", "-1"):
        return Finding(none if hidden is None else f"{none}; CUDA_VISIBLE_DEVICES={hidden}")
    if built is None:
        wrong = "there is NVIDIA's driver, and a torch without CUDA"
        return Finding(none, wrong, "pip install --force-reinstall torch, in a build with CUDA")
    wrong = f"the driver does not serve CUDA {built}"
    return Finding(none, wrong, "update the driver, or install a torch for the CUDA that nvidia-smi names")


def backends(machine: Machine) -> Finding:
    """What multiplies on the processor, and what several processes talk by."""
    told = machine.pair.told("backends")
    words = [f"{told['capability']} by {', '.join(told['compute']) or 'plain code'}", *told["communicate"]]
    if "gloo" not in told["communicate"]:
        return Finding("; ".join(words), "this torch has no gloo: it trains in one process alone", "pip install torch")
    return Finding("; ".join(words))


def threads(machine: Machine) -> Finding:
    """The threads of one process, against the cores that it may use."""
    number, cores = machine.pair.told("backends")["threads"], num_cores()
    told = f"{number} in one process"
    if number <= cores:
        return Finding(told)
    wrong = f"{number} threads on {cores} cores wait for each other"
    return Finding(told, wrong, f"export OMP_NUM_THREADS={cores}")


def products(machine: Machine) -> Finding:
    """Which library multiplies with frozen weights, by the trials that are kept."""
    answers = machine.pair.told("products")["answers"]
    cache = Path(machine.environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    told = f"oneDNN for {sum(answers.values())} of {len(answers)} products that were tried on this processor"
    if os.access(next(path for path in (cache, *cache.parents) if path.exists()), os.W_OK):
        return Finding(told if answers else "none was tried yet; the first run does")
    wrong = f"trials cannot be kept in {cache}: two runs may round differently"
    return Finding(told, wrong, "export XDG_CACHE_HOME=FOLDER")


def over_gloo(machine: Machine) -> Finding:
    """A sum over two processes on this machine's processor."""
    try:
        told = machine.pair.told("gloo")
    except EndedError as error:
        return Finding("none", str(error), "export GLOO_SOCKET_IFNAME=lo, or give this host's name in /etc/hosts")
    return Finding(f"{told['processes']} processes, {1000 * told['seconds']:.1f} ms")


def over_nccl(machine: Machine) -> Finding:
    """A sum over two GPUs, or over one where there is no second."""
    try:
        told = machine.pair.told("nccl")
    except EndedError as error:
        return Finding("none", str(error), "NCCL_DEBUG=INFO loralight doctor says more; NCCL_P2P_DISABLE=1 may help")
    if not told["processes"]:
        return Finding("no GPU, or no nccl")
    return Finding(f"{told['processes']} processes, {1000 * told['seconds']:.1f} ms")
