"""Documents share rows: each once, none too full, and as few rows as best fit makes."""

from random import Random

import pytest
from datasets import Dataset

from loralight.data.packing import PackedRows, pack


def naive_loads(lengths: list[int], capacity: int) -> list[int]:
    """Best fit decreasing by its definition: each into the fullest row that has room."""
    loads: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, load in enumerate(loads) if load + length <= capacity]
        if fitting:
            loads[max(fitting, key=loads.__getitem__)] += length
        else:
            loads.append(length)
    return sorted(loads)


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_filled_by_best_fit(seed: int) -> None:
    random = Random(seed)
    capacity = random.choice([2, 10, 64, 512])
    lengths = [random.randint(1, capacity) for _ in range(random.choice([1, 3, 200]))]
    rows = pack(lengths, capacity)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert sorted(sum(lengths[document] for document in row) for row in rows) == naive_loads(lengths, capacity)
    assert pack(lengths, capacity) == rows


def test_many_documents_are_packed_in_no_time_and_waste_next_to_nothing() -> None:
    random = Random(0)
    lengths = [min(512, max(2, int(random.lognormvariate(4, 1)))) for _ in range(50_000)]
    rows = pack(lengths, 512)
    assert sum(lengths) / (len(rows) * 512) > 0.999


def test_a_row_joins_its_documents_and_positions_start_over() -> None:
    documents = Dataset.from_dict({"input_ids": [[1, 2], [3], [4, 5, 6]], "targets": [[2, -100], [-100], [5, 6, -100]]})
    rows = PackedRows(documents, [[2, 0], [1]])
    assert len(rows) == 2
    assert rows[0] == {
        "input_ids": [4, 5, 6, 1, 2],
        "targets": [5, 6, -100, 2, -100],
        "position_ids": [0, 1, 2, 0, 1],
    }
    assert rows[1] == {"input_ids": [3], "targets": [-100], "position_ids": [0]}
