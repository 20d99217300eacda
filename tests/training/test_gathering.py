"""Losses that compare the rows of all processes have the gradient of one process that has all rows."""

from pathlib import Path

import torch

from loralight.training import gather_rows

from ..warm import run_warm

RANKS = '''
"""Three rows on one process and two on the other, then two rows of which the second process's only stands in."""
import multiprocessing
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loralight.training.gathering import gather_rows, training_together

BATCHES = [([[0, 2, 4], [1, 3]], [True, True]), ([[0, 2], [0]], [True, False])]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, rows):
        queries, passages = self.first(rows), gather_rows(self.second(rows))
        scores = self.scale * queries @ passages.rows.T
        return F.cross_entropy(scores, passages.start + torch.arange(len(rows)))


def gradients(net, rank, ranks):
    data = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for shares, counts in BATCHES:
        net.zero_grad()
        if ranks == 1:
            rows = data[[row for share, good in zip(shares, counts) if good for row in share]]
            net(rows).backward()
        else:
            rows, total = data[shares[rank]], sum(len(share) for share, good in zip(shares, counts) if good)
            with training_together(counts=counts[rank]):
                loss = net(rows)
            (loss * len(rows) * counts[rank] * ranks / total).backward()
        found += [parameter.grad.clone() for parameter in net.parameters()]
    return found


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    assert gather_rows(torch.ones(rank + 1, 2)).rows.shape == (rank + 1, 2), "outside of a training step"
    torch.save(gradients(DistributedDataParallel(Net()), rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    folder = sys.argv[1]
    processes = [multiprocessing.get_context("fork").Process(target=work, args=(rank, folder)) for rank in range(2)]
    [process.start() for process in processes]
    [process.join() for process in processes]
    assert all(process.exitcode == 0 for process in processes)
    torch.save(gradients(Net(), 0, 1), f"{folder}/alone.pt")
'''


def test_two_processes_compute_the_gradient_of_one_that_has_all_rows(tmp_path: Path) -> None:
    done = run_warm(["-c", RANKS, str(tmp_path)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone, *several = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", 0, 1))
    assert len(alone) == 8 and all(gradient.abs().sum() > 0 for gradient in alone)
    for found in several:
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)


def test_where_there_is_one_process_the_rows_come_back_as_they_are() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    gathered = gather_rows(rows)
    assert gathered.rows is rows and gathered.start == 0
