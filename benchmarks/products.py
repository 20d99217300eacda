"""A product with a frozen weight, forward and backward, by oneDNN as it is and packed, beside `F.linear`'s.

python benchmarks/products.py [--rows 1024]

The shapes are those of BERT-base and MiniLM; float32, one thread.
"""

import argparse

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from side_by_side import in_turns, ratio

from loralight.kernels.onednn import Matrix, PackedMatrix

SHAPES = ((768, 768), (3072, 768), (768, 3072), (384, 384), (1536, 384), (384, 1536))


def main() -> None:
    """Print a line for each shape and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    num_rows = parser.parse_args().rows
    torch.set_num_threads(1)
    table = Table("weight", "oneDNN", "packed", title=f"{num_rows} rows, F.linear = 1.00", title_justify="left")
    for out, fan_in in SHAPES:
        stored = torch.randn(out, fan_in)
        for weight, direction in ((stored, "forward"), (stored.T, "backward")):
            x = torch.randn(num_rows, weight.shape[1])
            plain, packed = Matrix(weight), PackedMatrix(weight)
            torch.testing.assert_close(plain.linear(x, None), F.linear(x, weight), rtol=1e-3, atol=1e-3)
            ways = {
                "F.linear": lambda x=x, weight=weight: F.linear(x, weight),
                "oneDNN": lambda x=x, plain=plain: plain.linear(x, None),
                "packed": lambda x=x, packed=packed: packed.linear(x, None),
            }
            seconds = in_turns(ways, rounds=15)
            ratios = (str(ratio(seconds, way, "F.linear")) for way in ("oneDNN", "packed"))
            table.add_row(f"{out} x {fan_in}, {direction}", *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
