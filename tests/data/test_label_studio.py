import json
from pathlib import Path
from typing import Any

import pytest

from loralight.data.label_studio import read_label_studio
from loralight.data.splits import load_splits, read_file
from loralight.errors import InputError

TEXTS = ["Ann Lee sings in Rome", "Nothing here", "Skipped", "Never seen", "Bob went"]


def answer(question: str, **value: Any) -> dict[str, Any]:
    return {"id": "x", "from_name": question, "to_name": "text", "type": "any", "value": value}


def place(start: int, end: int, text: str, label: str) -> dict[str, Any]:
    return answer("label", start=start, end=end, text=text, labels=[label])


ANNOTATIONS = [
    [
        [
            place(0, 7, "Ann Lee", "person"),
            place(17, 21, "Rome", "place"),
            answer("mood", choices=["good"]),
            answer("topics", choices=["music", "city"]),
            answer("comment", text=["fine"]),
            answer("stars", rating=4),
        ]
    ],
    [[answer("mood", choices=["bad"]), answer("topics", choices=["none"]), answer("stars", rating=2)]],
    [None],  # cancelled
    [],
    [[place(0, 3, "Bob", "person"), answer("mood", choices=["good"])], [answer("mood", choices=["bad"])]],
]
TASKS = [
    {
        "id": number,
        "annotations": [{"id": 1, "was_cancelled": found is None, "result": found or []} for found in annotations],
        "drafts": [],
        "predictions": [],
        "data": {"text": text},
    }
    for number, (text, annotations) in enumerate(zip(TEXTS, ANNOTATIONS, strict=True))
]

# these tasks in the format JSON_MIN as label-studio-converter 0.0.59 writes it, without ids and times
ROME = [
    {"start": 0, "end": 7, "text": "Ann Lee", "labels": ["person"]},
    {"start": 17, "end": 21, "text": "Rome", "labels": ["place"]},
]
MINIMAL: list[dict[str, Any]] = [
    {
        "text": "Ann Lee sings in Rome",
        "label": ROME,
        "mood": "good",
        "topics": {"choices": ["music", "city"]},
        "comment": "fine",
        "stars": [{"rating": 4}],
    },
    {"text": "Nothing here", "mood": "bad", "topics": "none", "stars": [{"rating": 2}]},
    {"text": "Never seen"},
    {
        "text": "Bob went",
        "label": [{"start": 0, "end": 3, "text": "Bob", "labels": ["person"]}],
        "mood": "good",
    },
    {"text": "Bob went", "mood": "bad"},
]
for one in MINIMAL:
    one |= {"annotator": 1, "annotation_id": 1} if len(one) > 1 else {"annotator": None, "annotation_id": None}

FORMS = {"JSON": TASKS, "JSON_MIN": MINIMAL}


@pytest.mark.parametrize("form", FORMS)
def test_each_annotation_is_a_row(tmp_path: Path, form: str) -> None:
    file = tmp_path / "export.json"
    file.write_text(json.dumps(FORMS[form], indent=2))
    rows = read_file(str(file))
    assert list(rows["text"]) == ["Ann Lee sings in Rome", "Nothing here", "Bob went", "Bob went"]
    assert [[(one["start"], one["end"], one["labels"]) for one in found] for found in rows["label"]] == [
        [(0, 7, ["person"]), (17, 21, ["place"])],
        [],
        [(0, 3, ["person"])],
        [],
    ]
    assert list(rows["mood"]) == ["good", "bad", "good", "bad"]
    assert list(rows["topics"]) == [["music", "city"], ["none"], [], []]
    assert list(rows["stars"]) == [4, 2, None, None]
    assert list(rows["comment"]) == ["fine", None, None, None]


def test_areas_of_pictures_are_no_answers(tmp_path: Path) -> None:
    area = {"x": 1.5, "y": 2, "width": 10, "height": 10, "rectanglelabels": ["cat"]}
    result = [answer("box", **area), answer("kind", choices=["indoors"])]
    task = {"data": {"image": "/data/upload/1/cat.jpg"}, "annotations": [{"result": result}]}
    (file := tmp_path / "export.json").write_text(json.dumps([task]))
    assert list(read_file(str(file))["kind"]) == ["indoors"]


def test_fields_of_the_data_stay_as_they_are(tmp_path: Path) -> None:
    turns = [{"author": "Ann", "text": "Hello"}, {"author": "Bob", "text": "Good day"}]
    task = {
        "data": {"turns": turns, "words": ["a", "b"]},
        "annotations": [{"result": [answer("mood", choices=["good"])]}],
    }
    (file := tmp_path / "export.json").write_text(json.dumps([task]))
    assert read_file(str(file)).to_list() == [{"turns": turns, "words": ["a", "b"], "mood": "good"}]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a", "annotations": 1}]',
        '[{"data": {"text": "a"}, "annotations": [{"label": "b"}]}]',
        '{"text": "a", "annotations": []}\n{"text": "b", "annotations": []}',
        '[{"text": "a", "annotator": "Ann"}]',
        '[{"data": {"text": "a"}, "annotations": [1]}]',
        '[{"data": {"text": "a"}, "annotations": [{"result": ["b"]}]}]',
        '[{"text": "a", "annotations": [',
    ],
)
def test_another_file_is_left_to_its_reader(tmp_path: Path, content: str) -> None:
    (file := tmp_path / "rows.json").write_text(content)
    assert read_label_studio(str(file)) is None


def test_answers_of_several_kinds_are_one_error(tmp_path: Path) -> None:
    tasks = [{"data": {"text": text}, "annotations": [{"result": []}]} for text in ("a", 1)]
    (file := tmp_path / "export.json").write_text(json.dumps(tasks))
    with pytest.raises(InputError, match=r"export\.json: cannot be read"):
        load_splits(path=str(file))
