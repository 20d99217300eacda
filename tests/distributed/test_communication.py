"""What two processes exchange in a step is the gradients of what learns, by the profiler's count of the messages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..training.test_task import built
from .test_launchers import codes, run, torchrun

COUNT = '''
import json
from pathlib import Path
from lightning import Callback
from torch.profiler import ProfilerActivity, profile

class Count(Callback):
    """Counts the elements in each message of gloo in the fourth step; Lightning sends one between batches."""

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step == 3 and batch_idx % trainer.accumulate_grad_batches == 0:
            self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self.profile.__enter__()

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == 4 and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.profile.__exit__(None, None, None)
            seen = [(e.name, e.input_shapes) for e in self.profile.events() if e.name.startswith("gloo:")]
            messages = [(name, shapes[0][0] if shapes else 0) for name, shapes in seen]
            learns = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
            folder = Path(trainer.default_root_dir)
            (folder / f"sent.{trainer.global_rank}.json").write_text(json.dumps([messages, learns]))
'''


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_exchanges_the_gradients_of_what_learns_and_nothing_of_what_is_frozen(
    accumulated: int, tiny_run: list[str], tmp_path: Path
) -> None:
    (tmp_path / "made_count/conf").mkdir(parents=True)
    (tmp_path / "made_count/__init__.py").write_text(COUNT)
    kept = [word for word in tiny_run if not word.startswith(("trainer", "data.batch_size"))]
    own = ["trainer=ddp_cpu", "trainer.max_steps=5", "trainer.num_sanity_val_steps=0", "probe=false"]
    own += [f"data.global_batch_size={4 * accumulated}", f"trainer.accumulate_grad_batches={accumulated}"]
    own += ["+callbacks.count._target_=made_count.Count", "hydra.run.dir=run"]
    done = run(tmp_path, ["train", "--plugin-dir", "made_count", *kept, *own], torchrun)
    assert codes(done) == [0, 0], done[0].stderr[-3000:]
    counted = [json.loads((tmp_path / f"run/sent.{rank}.json").read_text()) for rank in range(2)]
    assert counted[0] == counted[1]
    messages, learns = counted[0]
    assert {tuple(message) for message in messages if message[0] != "gloo:all_reduce"} <= {("gloo:broadcast", 1)}
    added = [size for name, size in messages if name == "gloo:all_reduce"]
    assert added.count(3) == accumulated  # of each batch the loss, its items, and whether to stop
    assert sum(added) - 3 * accumulated == learns
    lines = [line for line in (tmp_path / "run/train.log").read_text().splitlines() if "communication:" in line]
    assert len(lines) == 1 and f"({4 * learns} bytes in" in lines[0] and "as much as what learns" in lines[0]
    assert not any("communication:" in each for each in (tmp_path / "run/train.rank1.log").read_text().splitlines())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("frozen", {"head.0"}), ("statistics", {"head.0", "body.1"}), ("affine", {"head.0", "body.1"})],
)
def test_the_buffers_that_are_sent_are_those_that_learn(policy: Any, expected: set[str]) -> None:
    task = built(batch_norm=policy)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sent = {id(buffer) for buffer in DistributedDataParallel(task).modules_buffers}
    finally:
        dist.destroy_process_group()
    of_norms = {name for name, buffer in task.model.named_buffers() if id(buffer) in sent}
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert len(sent) == len(of_norms) and of_norms == {f"{norm}.{name}" for norm in expected for name in names}
