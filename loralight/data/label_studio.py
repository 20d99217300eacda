"""Exports of Label Studio: JSON with all annotations of each task, and JSON_MIN with a record for each annotation.

https://labelstud.io/guide/export
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset

from loralight.data.compressed import open_lines
from loralight.logs import logger

_HEAD = 1 << 16  # characters in which the first record begins to show its form
_OF_ANNOTATION = ("annotation_id", "annotator")  # fields that every record of JSON_MIN has
_ANSWERS = ("choices", "rating", "text")  # of a task as a whole: what was chosen, rated or written


def read_label_studio(file: str, encoding: str | None = None) -> Dataset | None:
    """A row for each annotation that is not cancelled; None if the file is no such export.

    A row has the fields of its task's data, and for each question a column of its name. This holds places in a text
    (``start``, ``end``, ``labels``), or what was chosen, rated or written: one value, or lists if a row has several.

    Args:
        file: its path.
        encoding: UTF-8 if None.
    """
    with open_lines(file, encoding) as opened:
        head = opened.read(_HEAD)
        if not head.lstrip().startswith("[") or '"annotat' not in head:
            return None
        try:
            records = json.loads(head + opened.read())
        except ValueError:  # told by the reader of any other JSON
            return None
    if all(map(_is_task, records)):
        found = list(_annotated(records))
        without = sum(all(one.get("was_cancelled") for one in task["annotations"]) for task in records)
    elif all(isinstance(one, dict) and set(_OF_ANNOTATION) <= set(one) for one in records):
        found = [one for one in records if one["annotation_id"] is not None]
        without = len(records) - len(found)
    else:
        return None
    left_out = f"; {without} tasks without any are left out" if without else ""
    logger.info("%s: %d annotations of Label Studio%s", file, len(found), left_out)
    return Dataset.from_dict(_columns(found))


def _is_task(one: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("data"), dict):
        return False
    annotations = one.get("annotations")
    return isinstance(annotations, list) and all(map(_is_annotation, annotations))


def _is_annotation(one: Any) -> bool:
    result = one.get("result") if isinstance(one, dict) else None
    return isinstance(result, list) and all(isinstance(part, dict) for part in result)


def _annotated(tasks: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A record for each annotation, in which each question has the list of its answers."""
    for task in tasks:
        for annotation in task["annotations"]:
            answers: dict[str, list[Any]] = {}
            for part in annotation["result"]:
                answers.setdefault(str(part.get("from_name")), []).append(part.get("value"))
            if not annotation.get("was_cancelled"):
                yield {**task["data"], **answers}


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _column([record.get(name) for record in records]) for name in names}


def _column(values: list[Any]) -> list[Any]:
    """A column as it is, or that of a question."""
    if not any(_is_answer(one) for value in values for one in (value if isinstance(value, list) else [value])):
        return values
    answers = [list(_given(value)) for value in values]
    if any(isinstance(one, dict) for found in answers for one in found) or any(len(found) > 1 for found in answers):
        return answers
    return [found[0] if found else None for found in answers]


def _is_answer(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return {"start", "end", "labels"} <= set(value) or any(set(value) == {name} for name in _ANSWERS)


def _given(value: Any) -> Iterator[Any]:
    """What an answer says of a text or of a whole task; not of an area of a picture, nor of a part's choices."""
    if isinstance(value, list):
        for one in value:
            yield from _given(one)
    elif not isinstance(value, dict):
        if value is not None:
            yield value
    elif isinstance(value.get("start"), int) and isinstance(value.get("end"), int):
        if "labels" in value:
            yield {"start": value["start"], "end": value["end"], "labels": value["labels"]}
    else:
        for answer in (value[name] for name in _ANSWERS if name in value):
            yield from answer if isinstance(answer, list) else [answer]
