import errno
import json
import math
import os
import pickle
import random
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from loralight.errors import InputError
from loralight.training.checkpoint import FolderCheckpointIO, newest, write_folder
from loralight.training.optim import by_name, by_position

from ..warm import run_warm

FILES = ("manifest.json", "state.json", "tensors.safetensors")


def checkpoint(step: int = 3, size: int = 500) -> dict[str, Any]:
    """Of the kind that Lightning gives: big enough that each file spans several pages."""
    return {
        "position": {"steps": step, "epoch": 0, "validated": 0},
        "state_dict": {"layer.lora_A": torch.full((size,), float(step)), "layer.lora_B": torch.zeros(2, 3)},
        "optimizer_states": [{"state": {"layer.lora_A": {"step": torch.tensor(1.0), "exp_avg": torch.ones(size)}}}],
        "loops": {"fit_loop": {"history": list(range(size))}},
    }


def save(folder: Path, content: Any) -> Path:
    FolderCheckpointIO().save_checkpoint(content, folder)
    return folder


def load(folder: Path) -> dict[str, Any]:
    return FolderCheckpointIO().load_checkpoint(folder)


def same(first: Any, second: Any) -> bool:
    """Equal, and of the same types, all the way down."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or first != first != second != second


@pytest.mark.parametrize(
    "content",
    [
        checkpoint(),
        {},
        {"none": None, "truth": True, "number": 1, "fraction": 0.1, "text": 'é "\\\n\U0001f600'},
        {"extremes": [math.inf, -math.inf, math.nan, 5e-324, 2**70, -0.0]},
        {"nested": [(1, [2, (3,)]), (), [], {}, {"a": {"b": {"c": ()}}}]},
        {"int keys": {0: "zero", 1: {2: torch.arange(3)}}, "mixed": {0: "a", "0": "b", None: "c", (1, "x"): "d"}},
        {"times": {"fit": timedelta(hours=25, microseconds=7)}, "negative": timedelta(seconds=-1.5)},
        {"marks": {"__tensor__": "x", "__tuple__": [1], "__items__": [], "__seconds__": 1}},
        {"tensors": [torch.tensor(2.5), torch.zeros(0, 3), torch.tensor([True]), torch.tensor([2**60])]},
        {
            "types": [
                torch.ones(3, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.uint8)
            ]
        },
        {"views": (lambda whole: [whole, whole.t(), whole[1:], whole[:, ::2]])(torch.arange(12.0).view(3, 4))},
        {"a.b": torch.zeros(2), "a": {"b": torch.ones(2)}},
        {"keys": {1: torch.zeros(2), "1": torch.ones(2)}},
    ],
    ids=lambda content: next(iter(content), "empty"),
)
def test_what_is_loaded_is_what_was_saved(content: dict[str, Any], tmp_path: Path) -> None:
    assert same(load(save(tmp_path / "step=1", content)), content)


def test_a_parameter_comes_back_as_its_values(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.randn(3))
    found = load(save(tmp_path / "c", {"p": parameter}))["p"]
    assert same(found, parameter.detach())


@pytest.mark.parametrize("thing", [object(), {1, 2}, b"bytes", print, Path(), nn.Linear(1, 1), torch.optim.SGD])
def test_what_is_neither_tensor_nor_plain_data_is_refused_by_its_place(thing: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\.callbacks\.Mine\.1 is a "):
        save(tmp_path / "c", {"callbacks": {"Mine": [0, thing]}})
    assert not list(tmp_path.iterdir())


def test_nothing_is_pickled_or_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for module, name in [(pickle, "dump"), (pickle, "dumps"), (pickle, "load"), (pickle, "loads")]:
        monkeypatch.setattr(module, name, never)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, never)
    load(save(tmp_path / "c", checkpoint()))
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == list(FILES)
    json.loads((tmp_path / "c" / "state.json").read_bytes())
    json.loads((tmp_path / "c" / "manifest.json").read_bytes())
    assert len(load_file(tmp_path / "c" / "tensors.safetensors")) == 4


def flip(content: bytes, at: random.Random) -> bytes:
    position, bit = at.randrange(len(content)), at.randrange(8)
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def cut(content: bytes, at: random.Random) -> bytes:
    return content[: at.randrange(len(content))]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [flip, cut])
def test_every_damaged_file_is_refused_by_name(
    damage: Callable[[bytes, random.Random], bytes], file: str, tmp_path: Path
) -> None:
    damaged = save(tmp_path / "step=3", checkpoint(size=50)) / file
    whole = damaged.read_bytes()
    for seed in range(200):
        damaged.write_bytes(damage(whole, random.Random(seed)))
        with pytest.raises(InputError, match=r"^E-CKPT-HASH: .*step=3"):
            load(damaged.parent)
    damaged.write_bytes(whole)
    load(damaged.parent)


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_that_lacks_a_file_is_refused(file: str, tmp_path: Path) -> None:
    (save(tmp_path / "c", checkpoint()) / file).unlink()
    with pytest.raises(InputError, match=r"^E-CKPT-HASH: "):
        load(tmp_path / "c")


@contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to write more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("again", [False, True], ids=["new", "overwritten"])
@pytest.mark.parametrize("num_bytes", [0, 100, 2500, 5000])
def test_a_disk_that_fills_up_while_saving_leaves_the_checkpoint_before_and_no_trace(
    num_bytes: int, again: bool, tmp_path: Path
) -> None:
    before = save(tmp_path / "step=1", checkpoint(1))
    target = before if again else tmp_path / "step=2"
    large = {**checkpoint(2), "loops": list(range(2000))}  # state.json is the largest of the files
    with (
        no_file_larger_than(num_bytes),
        pytest.raises(InputError, match=r"^E-DISK: .*: File too large"),
    ):
        save(target, large)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step=1"]
    assert same(load(before), checkpoint(1))
    assert same(load(save(target, large)), large), "once there is room, it saves again"


@pytest.mark.parametrize("again", [False, True], ids=["new", "overwritten"])
@pytest.mark.parametrize("call, number", [("fsync", 1), ("fsync", 3), ("fsync", 4), ("replace", 1), ("replace", -1)])
def test_an_error_at_any_call_while_saving_leaves_the_checkpoint_before(
    call: str, number: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number < 0:  # the last: a checkpoint that exists is first moved aside
        number = 2 if again else 1
    before = save(tmp_path / "step=1", checkpoint(1))
    done, real = [], getattr(os, call)

    def failing(*arguments: Any) -> Any:
        done.append(arguments)
        if len(done) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(InputError, match=rf"^E-DISK: {tmp_path} cannot be written: No space left"):
        save(before if again else tmp_path / "step=2", checkpoint(2))
    assert [folder.name for folder in tmp_path.iterdir()] == ["step=1"]
    assert same(load(before), checkpoint(1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_folder_whose_filling_fails_does_not_come_to_be(error: type[BaseException], tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("a half")
        raise error

    with pytest.raises(error):
        write_folder(tmp_path / "adapter", fill)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_replaces_one_of_the_same_name(tmp_path: Path) -> None:
    save(tmp_path / "last", {"position": 1, "old": torch.zeros(3)})
    assert same(load(save(tmp_path / "last", checkpoint(2))), checkpoint(2))
    assert [folder.name for folder in tmp_path.iterdir()] == ["last"]


def test_a_removed_checkpoint_is_gone_and_can_be_removed_again(tmp_path: Path) -> None:
    for _ in range(2):
        FolderCheckpointIO().remove_checkpoint(tmp_path / "c")
        assert not (tmp_path / "c").exists()
        save(tmp_path / "c", checkpoint())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of four steps in two folders."""
    for place, step in [("best", 20), ("last", 100), ("last", 9), ("best", 3)]:
        save(tmp_path / "checkpoints" / place / f"step={step}", checkpoint(step, size=5))
    return tmp_path


def test_the_newest_checkpoint_is_that_of_the_most_steps_wherever_it_lies(run: Path) -> None:
    assert newest(run) == run / "checkpoints/last/step=100"


def test_of_checkpoints_of_one_step_that_of_the_later_epoch_or_validation_is_newer(tmp_path: Path) -> None:
    for epoch, validated in [(1, 0), (0, 10), (0, 0)]:  # the newest is written first: a copied folder has other times
        place = {"steps": 10, "epoch": epoch, "validated": validated}
        save(tmp_path / "checkpoints/last" / f"{9 - epoch - validated}", checkpoint(size=5) | {"position": place})
    assert newest(tmp_path).name == "8"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [flip, cut])
def test_broken_checkpoints_are_passed_over_and_each_is_told_of(
    damage: Callable[[bytes, random.Random], bytes], file: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for broken, expected in [("last/step=100", "best/step=20"), ("best/step=20", "last/step=9")]:
        damaged = run / "checkpoints" / broken / file
        damaged.write_bytes(damage(damaged.read_bytes(), random.Random(1)))
        caplog.clear()
        assert newest(run) == run / "checkpoints" / expected
        assert f"passed over: E-CKPT-HASH: {damaged.parent}" in caplog.text
    assert len(caplog.records) == 2


def test_a_checkpoint_without_a_manifest_is_told_of(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "checkpoints/last/step=100/manifest.json").unlink()
    assert newest(run) == run / "checkpoints/best/step=20"
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "step=100" in caplog.text


def test_a_checkpoint_that_does_not_say_where_the_run_stood_is_told_of(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(run / "checkpoints/last/step=200", {"global_step": 200})
    assert newest(run) == run / "checkpoints/last/step=100"
    assert "step=200 does not say where the run stood" in caplog.text


def test_what_a_kill_left_behind_is_passed_over(run: Path) -> None:
    last = run / "checkpoints" / "last"
    (last / "step=100").rename(last / ".step=200.17")
    assert newest(run) == run / "checkpoints/best/step=20"


@pytest.mark.parametrize("content", ["[]", "{}", '{"position": null}', '{"position": {"steps": "x"}}', "no json"])
def test_a_state_that_tells_no_step_does_not_hide_the_others(content: str, run: Path) -> None:
    (run / "checkpoints/last/step=100/state.json").write_text(content)
    assert newest(run) == run / "checkpoints/best/step=20"


def test_a_run_without_a_whole_checkpoint_says_what_is_broken(run: Path, tmp_path: Path) -> None:
    for manifest in run.glob("checkpoints/*/*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(InputError, match=r"^E-CKPT-NONE: .*step=20 is not a whole checkpoint.*step=3 is.*and 1 more$"):
        newest(run)
    with pytest.raises(InputError, match=r"^E-CKPT-NONE: .*has no checkpoint to go on from$"):
        newest(tmp_path / "other")


def test_the_optimizer_is_saved_and_loaded_by_the_names_of_parameters(tmp_path: Path) -> None:
    def optimizer(*names: str) -> torch.optim.Optimizer:
        made = torch.optim.AdamW([(name, nn.Parameter(torch.zeros(2))) for name in names])
        made.register_load_state_dict_pre_hook(by_position)
        return made

    trained = optimizer("first", "second")
    for value, parameter in enumerate(trained.param_groups[0]["params"], start=1):
        parameter.grad = torch.full((2,), float(value))
    trained.step()
    loaded = load(save(tmp_path / "c", {"optimizer_states": [by_name(trained.state_dict())]}))["optimizer_states"][0]
    assert set(loaded["state"]) == {"first", "second"}
    turned = optimizer("second", "first")
    turned.load_state_dict(loaded)
    averages = [turned.state[parameter]["exp_avg"] for parameter in turned.param_groups[0]["params"]]
    torch.testing.assert_close(averages, [torch.full((2,), 0.2), torch.full((2,), 0.1)])
    assert {key: turned.param_groups[0][key] for key in trained.param_groups[0] if "param" not in key} == {
        key: value for key, value in trained.param_groups[0].items() if "param" not in key
    }


KILLING = """
import itertools, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from loralight.training.checkpoint import FolderCheckpointIO, newest

run, num_kills, io = Path(sys.argv[1]), int(sys.argv[2]), FolderCheckpointIO()
last, at = run / "checkpoints" / "last", random.Random(0)
os.fsync = lambda _: None  # what is written outlives a killed process: with no waiting, more kills meet a write

def content(step):
    place = {"steps": step, "epoch": 0, "validated": 0}
    return {"position": place, "state_dict": {"w": torch.full((100_000,), float(step))}, "loops": [step] * 1000}

def train(step, done):
    for step in itertools.count(step + 1):
        io.save_checkpoint(content(step), last / f"step={step}")
        os.write(done, step.to_bytes(8))

io.save_checkpoint(content(0), last / "step=0")
reached = 0
for _ in range(num_kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        train(reached, write)
    os.close(write)
    promised = os.read(read, 8)
    time.sleep(at.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    promised = (promised + os.read(read, 1 << 20))[-8:]
    os.close(read)
    whole = {folder: io.load_checkpoint(folder) for folder in last.glob("[!.]*")}  # each that can be seen
    found = whole[newest(run)]
    step = found["position"]["steps"]
    assert step >= int.from_bytes(promised) and step > reached, (step, promised, reached)
    assert torch.equal(found["state_dict"]["w"], content(step)["state_dict"]["w"]) and found["loops"] == [step] * 1000
    reached = step
    for folder in last.iterdir():
        if folder != newest(run):
            shutil.rmtree(folder)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is killed is forked")
@pytest.mark.parametrize("num_kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_of_saving_loses_no_checkpoint_that_was_finished(num_kills: int, tmp_path: Path) -> None:
    ended = run_warm(["-c", KILLING, str(tmp_path), str(num_kills)], cwd=tmp_path, timeout=200)
    assert ended.returncode == 0, ended.stderr


def test_what_is_written_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        save_file({"x": torch.ones(2)}, folder / "x.safetensors")
        os.chmod(folder / "x.safetensors", 0o600)  # as some versions of safetensors do

    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "made", fill)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "made").iterdir()} == {0o640}
