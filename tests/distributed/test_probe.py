"""The linear probe of a run of two processes: fitted in the first, the same in both."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .test_launchers import codes, run, torchrun

SPY = '''
import json, os
from pathlib import Path
from lightning import Callback
from loralight.training import probe

class Spy(Callback):
    """Counts the fits of a process, and notes where the head starts."""

    def __init__(self):
        self.fits, fit = 0, probe.fit

        def counted(*given, **named):
            self.fits += 1
            return fit(*given, **named)

        probe.fit = counted

    def on_train_start(self, trainer, task):
        head = probe.linear_head(task)
        said = {"fits": self.fits, "weight": head.weight.tolist(), "bias": head.bias.tolist()}
        (Path(trainer.default_root_dir) / f"probe.{trainer.global_rank}.json").write_text(json.dumps(said))
'''
SPYING = ["+callbacks.spy._target_=made_spy.Spy"]


@pytest.fixture
def line(tiny_run: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "made_spy/conf").mkdir(parents=True)
    (tmp_path / "made_spy/__init__.py").write_text(SPY)
    kept = [word for word in tiny_run if not word.startswith("trainer=")]
    return ["train", "--plugin-dir", "made_spy", *kept, "trainer.max_steps=1", "task.pooling=mean"]


def test_it_is_fitted_once_and_the_head_starts_there_in_both(
    line: list[str], in_process: Callable[..., int], tmp_path: Path
) -> None:
    line += ["task.head_start=probe"]
    done = run(tmp_path, [*line, "trainer=ddp_cpu", "hydra.run.dir=two", *SPYING], torchrun)
    assert codes(done) == [0, 0], done[0].stderr[-3000:]
    assert in_process(*line, "trainer=cpu", "hydra.run.dir=one") == 0
    first, second = (json.loads((tmp_path / f"two/probe.{rank}.json").read_text()) for rank in range(2))
    assert (first.pop("fits"), second.pop("fits")) == (1, 0)
    assert first == second and any(first["bias"])
    scores = [json.loads((tmp_path / f"{name}/summary.json").read_text())["linear_probe"] for name in ("one", "two")]
    assert scores[1] == pytest.approx(scores[0], abs=1e-6) and scores[0]


def test_why_there_is_none_is_told_by_all(line: list[str], tmp_path: Path) -> None:
    (tmp_path / "alike.csv").write_text("text,label\na,good\na,bad\na,good\na,bad\n")
    alike = ["data.path=null", "data.train=alike.csv", "data.validation=alike.csv"]
    done = run(tmp_path, [*line, *alike, "trainer=ddp_cpu", "hydra.run.dir=two"], torchrun)
    assert codes(done) == [0, 0], done[0].stderr[-3000:]
    for log in ("train.log", "train.rank1.log"):
        assert "no linear probe: all training rows are alike to the model" in (tmp_path / "two" / log).read_text()
