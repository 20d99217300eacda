"""The file of a run's answers: a line of JSON that describes it, and one for each row. It needs no torch to be read."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "predictions.jsonl"
OF_VALIDATION = "validation_predictions.jsonl"
"""Beside `FILE` if that is of test rows: answers without inputs, by which a study tells rates apart."""
MOST_BYTES = 4 * 2**20
"""Of the file; inputs may take half of it."""
MOST_OF_THUMBNAIL = 6000
"""Bytes of a JPEG; it is written in base64."""
_OF_INPUT = {"input", "thumbnail"}


def write(file: Path, head: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of answers as a whole; if it would be too large, inputs are left out, and then rows."""
    written = [_json(head)]
    size, of_inputs = len(written[0]), 0
    for line in lines:
        text = _json(line)
        if _OF_INPUT & line.keys() and of_inputs + len(text) > MOST_BYTES // 2:
            line = {key: value for key, value in line.items() if key not in _OF_INPUT}
            text = _json(line)
        of_inputs += len(text) if _OF_INPUT & line.keys() else 0
        if size + len(text) <= MOST_BYTES:
            written.append(text)
            size += len(text)
    building = file.with_name(f".{file.name}")
    building.write_bytes(b"".join(written))
    os.replace(building, file)


def _json(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace")
