"""What a run says of its results."""

from typing import Any

import pytest

from loralight.commands.summary import behind_lines

BEHIND = "caution: validation/score is 0.5000, and that of the linear probe 0.6000: adapter=linear_probe gives it"
TRIVIAL = "caution: validation/score is 0.5000, which is no better than the trivial answer's "


@pytest.mark.parametrize(
    ("mode", "score", "probe", "trivial", "starts"),
    [
        ("max", 0.5, 0.4, 0.3, []),
        ("max", 0.5, 0.6, 0.3, [BEHIND]),
        ("max", 0.5, 0.50001, 0.3, []),  # as printed they are alike
        ("max", 0.5, None, 0.5, [TRIVIAL + "0.5000"]),
        ("max", 0.5, 0.6, 0.7, [BEHIND, TRIVIAL + "0.7000"]),
        ("min", 0.5, None, 0.7, []),
        ("min", 0.5, None, 0.3, [TRIVIAL + "0.3000"]),
        ("max", None, 0.6, 0.7, []),  # it is not finite, which the table says
        ("max", 0.5, None, None, []),
    ],
)
def test_a_run_that_a_simpler_answer_beats_says_so(
    mode: str, score: float | None, probe: float | None, trivial: float | None, starts: list[str]
) -> None:
    def scores(value: float | None) -> dict[str, Any]:
        return {} if value is None else {"validation/score": value, "test/score": 1 - value}

    summary = {
        "monitored": "validation/score",
        "mode": mode,
        "metrics": {"validation/score": score},
        "linear_probe": scores(probe),
        "baseline": scores(trivial),
    }
    lines = behind_lines(summary)
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
