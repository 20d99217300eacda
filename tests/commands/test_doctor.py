"""What `loralight doctor` finds: each check with what is right and what is wrong, and one that never answers."""

import json
import socket
import subprocess
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from loralight.commands.checkup import devices, disks, hub, limits, packages, processes
from loralight.commands.checkup.finding import Finding, Machine
from loralight.commands.checkup.pair import EndedError, Pair
from loralight.commands.doctor import CHECKS, WITH_TORCH, Check, examined

TORCHRUN = {"TORCHELASTIC_RUN_ID": "run", "RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "1"}
SRUN |= {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1234567", "SLURM_NODELIST": "node[03-04,07]"}


class Told(Pair):
    """A pair that has told already."""

    def __init__(self, **told: dict[str, Any]) -> None:
        super().__init__()
        self._told, self._has_ended = told, True


def machine(environment: Mapping[str, str] = {}, runs: Path = Path("runs"), **told: dict[str, Any]) -> Machine:
    return Machine(environment, runs, Told(**told))


def test_it_tells_of_every_check_and_ends_with_code_1_if_one_is_wrong(
    cold_loralight: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = cold_loralight("doctor", "output=found.json", HF_HUB_OFFLINE="1")
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == [check.name for check in (*CHECKS, *WITH_TORCH)]
    assert found["gloo"]["told"].startswith("2 processes") and not found["gloo"]["wrong"], done.stderr
    wrong = [name for name, finding in found.items() if finding["wrong"]]
    assert done.returncode == (1 if wrong else 0)  # which depends on the machine
    assert [line.split()[1].strip(":") for line in done.stdout.splitlines() if line.startswith("wrong: ")] == [
        name.split()[0] for name in wrong
    ]
    assert all(line.partition(" ")[0] in done.stdout for line in found)


def test_of_a_launcher_s_processes_the_first_speaks(
    in_process: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**TORCHRUN, "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("loralight.commands.doctor.CHECKS", [Check("one", lambda _: Finding("fine"))])
    assert in_process("doctor") == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("loralight.commands.doctor.CHECKS", [Check("one", lambda _: Finding("bad", "so", "do"))])
    assert in_process("doctor") == 1
    assert capsys.readouterr().out == "\nwrong: one: so\n  do\n"


def test_a_check_that_hangs_or_fails_is_a_finding_beside_the_others() -> None:
    never = threading.Event()

    def hangs(_: Machine) -> Finding:
        never.wait()
        return Finding("")

    def fails(_: Machine) -> Finding:
        raise RuntimeError("broken")

    checks = [Check("hangs", hangs, 0.1), Check("fails", fails), Check("sound", lambda _: Finding("fine"))]
    found = {check.name: finding for check, finding in examined(checks, machine())}
    never.set()
    assert found["hangs"].wrong == "no answer within 0 s"
    assert found["fails"].wrong == "RuntimeError: broken"
    assert found["sound"] == Finding("fine")


def test_processes_that_end_without_an_answer_leave_their_last_error(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is broken')\n")
    pair = Pair().start({"PYTHONPATH": str(tmp_path)})
    try:
        with pytest.raises(EndedError, match="libtorch is broken"):
            pair.told("devices")
        found = devices.over_gloo(Machine({}, Path(), pair))
    finally:
        pair.end()
    assert "libtorch is broken" in found.wrong and found.remedy


@pytest.mark.parametrize(
    ("environment", "told", "wrong"),
    [
        ({}, "none: loralight starts", ""),
        (TORCHRUN, "torchrun: process 0 of 4 on 2 machines", ""),
        (SRUN, "srun: process 1 of 4 on 2 machines", ""),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, "none: loralight starts", ""),
        ({**TORCHRUN, "RANK": "4"}, "", "process 4 of 4"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "", "WORLD_SIZE is 'many'"),
        ({**SRUN, "SLURM_NTASKS": "5"}, "", "process 1 of 5 on 2 machines"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "", "put srun before the command"),
        ({"RANK": "0", "MASTER_PORT": "1"}, "none", "RANK, MASTER_PORT set, and no launcher"),
        ({"LSB_JOBID": "1", "JSM_NAMESPACE_SIZE": "2"}, "LSF", "start the command|a run of its own"),
    ],
)
def test_a_launcher_s_variables_are_told_and_held_against_each_other(
    environment: dict[str, str], told: str, wrong: str
) -> None:
    found = processes.launcher(machine(environment))
    assert told in found.told
    assert bool(found.wrong) == bool(found.remedy) == bool(wrong)
    assert any(part in found.wrong for part in wrong.split("|"))


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is taken, and answers."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def no_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def test_the_place_where_processes_meet_is_tried(port: int, no_port: int) -> None:
    here = {**TORCHRUN, "MASTER_ADDR": "localhost"}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert processes.rendezvous(machine()).wrong == ""
    assert processes.rendezvous(machine({**here, **agent, "MASTER_PORT": str(port)})).wrong == ""
    assert "nothing answers" in processes.rendezvous(machine({**here, **agent, "MASTER_PORT": str(no_port)})).wrong
    assert processes.rendezvous(machine({**here, "MASTER_PORT": str(no_port)})).wrong == ""
    assert f"port {port} is taken" in processes.rendezvous(machine({**here, "MASTER_PORT": str(port)})).wrong
    elsewhere = {**here, "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": str(port)}
    assert "nowhere.invalid is not known" in processes.rendezvous(machine(elsewhere)).wrong


def test_under_srun_the_place_is_lightning_s() -> None:
    assert processes.meeting_place(SRUN) == ("node03", 15000 + 4567)
    assert processes.meeting_place({**SRUN, "SLURM_NODELIST": "one,two"}) == ("one", 19567)
    assert processes.meeting_place({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "3000"}) == ("10.0.0.1", 3000)


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "a/memory.max": "4096"}),
        (
            "3:cpu,cpuacct:/a\n4:memory:/a",
            {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000", "memory/a/memory.limit": "4096"},
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_limits_of_control_groups_count(
    group: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name.replace("memory.limit", "memory.limit_in_bytes")).write_text(text)
    for used in ("a/memory.current", "memory/a/memory.usage_in_bytes"):
        if (tmp_path / used).parent.is_dir():
            (tmp_path / used).write_text("1024")
    (tmp_path / "own").write_text(group)
    monkeypatch.setattr(limits, "_GROUPS", tmp_path)
    monkeypatch.setattr(limits, "_OWN", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert limits.num_cores() == 2
    assert "2 of 64" in limits.cores(machine()).told
    if limits.free_memory() != (None, None):  # a system without /proc/meminfo
        assert limits.free_memory() == (3072, 4096)
        assert limits.memory(machine()).wrong


def test_more_threads_than_cores_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_cores", lambda: 2)
    assert devices.threads(machine(backends={"threads": 2})).wrong == ""
    assert devices.threads(machine(backends={"threads": 64})).remedy == "export OMP_NUM_THREADS=2"


@pytest.mark.parametrize(
    ("built", "hidden", "wrong"),
    [(None, {}, "a torch without CUDA"), ("13.0", {}, "does not serve CUDA 13.0"), ("13.0", {"": ""}, "")],
)
def test_a_driver_without_a_gpu_for_torch_is_wrong_unless_it_is_hidden(
    built: str | None, hidden: dict[str, str], wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": ""} if hidden else {}
    told = {"gpus": [], "mps": False, "built_for": built}
    monkeypatch.setattr(devices, "_DRIVER", tmp_path)
    assert wrong in (found := devices.devices(machine(environment, devices=told))).wrong
    assert bool(found.wrong) == bool(wrong)
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "none")
    assert devices.devices(machine(environment, devices=told)).wrong == ""
    gpus = {**told, "gpus": [["H200", 2**30, 2**31]]}
    assert devices.devices(machine(devices=gpus)).told == "H200, 1.0 GiB of 2.0 GiB free"


def test_a_package_that_is_missing_or_too_old_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.packages(machine()).wrong == packages.extras(machine()).wrong == ""
    version = packages._version
    monkeypatch.setattr(packages, "_version", lambda name: "1.0" if name in ("torch", "optuna") else version(name))
    found = packages.packages(machine())
    assert found.wrong == "torch is 1.0, and must be >=2.10" and found.remedy == "pip install 'torch>=2.10'"
    assert packages.extras(machine()).remedy == 'pip install -U "loralight[tune]"'
    monkeypatch.setattr(packages, "_version", lambda name: None if name in ("torch", "optuna") else version(name))
    assert packages.packages(machine()).wrong == "torch is not installed"
    assert packages.extras(machine()).wrong == ""  # nobody needs it


def test_a_full_or_read_only_disk_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = machine({"HF_HOME": str(tmp_path)}, tmp_path / "not" / "yet")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2**40, 0, 2**39))
    assert disks.disk_of_runs(here).wrong == disks.disk_of_models(here).wrong == ""
    assert disks.disk_of_models(here).told.startswith(f"{tmp_path / 'hub'}: 512.0 GiB")
    assert disks.lock(here).wrong == disks.clock(here).wrong == ""
    assert not (tmp_path / "not").exists() and list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2**40, 0, 2**20))
    assert "less than 1.0 GiB" in disks.disk_of_runs(here).wrong and "hydra.run.dir" in disks.disk_of_runs(here).remedy
    assert "less than 5.0 GiB" in disks.disk_of_models(here).wrong and "HF_HOME" in disks.disk_of_models(here).remedy

    def refuses(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuses)
    assert "Read-only file system" in disks.disk_of_runs(here).wrong


@pytest.fixture
def answers() -> Iterator[Callable[[str], str]]:
    """Starts a server whose answers have a date, and tells its address."""
    servers: list[HTTPServer] = []

    def start(date: str) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(200)
                self.send_header("Date", date)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_hub_is_asked_and_its_clock_compared(
    answers: Callable[[str], str], no_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    late = hub.hub(machine({"HF_ENDPOINT": answers("Sat, 01 Jan 2000 00:00:00 GMT")}))
    assert "answers" in late.told and "the hub's clock is" in late.wrong and late.wrong.count("behind") == 1
    silent = hub.hub(machine({"HF_ENDPOINT": f"http://127.0.0.1:{no_port}"}))
    assert "does not answer" in silent.wrong and "HF_HUB_OFFLINE=1" in silent.remedy
    assert hub.hub(machine({"HF_HUB_OFFLINE": "1"})).told.startswith("not asked, as HF_HUB_OFFLINE=1")
    monkeypatch.setattr("socket.getaddrinfo", _unknown)
    assert "the cache alone" in (found := hub.hub(machine({"HF_ENDPOINT": "http://hub.invalid"}))).told
    assert found.wrong == ""


def _unknown(*_: Any, **__: Any) -> None:
    raise socket.gaierror(-2, "Name or service not known")


def test_a_terminal_that_cannot_print_tables_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, is_wrong in (("utf-8", False), ("ascii", True)):
        monkeypatch.setattr("sys.stdout", namedtuple("out", "encoding")(name))
        found = hub.encoding(machine())
        monkeypatch.undo()
        assert bool(found.wrong) == is_wrong
