"""Texts become words, and the places of entities words of theirs; nothing is lost on the way."""

import json
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from datasets import Dataset

from loralight.data.origin import Origin
from loralight.data.splits import read_file
from loralight.errors import InputError
from loralight.tasks.ner.sentences import Sentences, read_spans, split_words
from loralight.tasks.ner.tags import Span

ORIGIN = Origin(split="train", source="rows.jsonl")


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in split_words(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("She's at 25mg/day.", ["She", "'", "s", "at", "25", "mg", "/", "day", "."]),
        ("j.smith_7@mail.example", ["j", ".", "smith", "_", "7", "@", "mail", ".", "example"]),
        ("  Zoë\u00a0Żółć\n(née)\t", ["Zoë", "Żółć", "(", "née", ")"]),
        ("e\u0301te\u0301 हिन्दी नहीं\u200cतो", ["e\u0301te\u0301", "हिन्दी", "नहीं\u200cतो"]),
        ("iPhone手机 東京タワー", ["iPhone", "手", "机", "東", "京", "タ", "ワ", "ー"]),
        ("ok 😀👍!", ["ok", "😀", "👍", "!"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_words_are_runs_of_letters_or_digits_and_other_signs_one_by_one(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_all_of_a_text_but_its_white_space_is_in_some_word() -> None:
    random = Random(0)
    for _ in range(300):
        text = "".join(
            chr(random.choice([32, 10, *range(33, 0x500), *range(0x4E00, 0x4E20), 0x1F600])) for _ in range(40)
        )
        places = split_words(text)
        assert all(start < end for start, end in places)
        assert all(end <= start for (_, end), (start, _) in pairwise(places))
        assert "".join(words_of(text)).split() == ["".join(text.split())]


def read(text: str, *entities: tuple[int, int, str]) -> Sentences:
    marked = [{"start": start, "end": end, "label": label} for start, end, label in entities]
    return read_spans(Dataset.from_list([{"text": text, "entities": marked}]), "text", "entities", ORIGIN)


def test_an_entity_is_the_words_at_its_place_in_whatever_order_they_are_given() -> None:
    found = read("Bob Lee went to New York.", (16, 24, "place"), (0, 7, "person"))
    assert found.words == [["Bob", "Lee", "went", "to", "New", "York", "."]]
    assert [tuple(span) for span in found.spans[0]] == [(0, 2, "person"), (4, 6, "place")]
    assert found.notes == []


def test_white_space_at_the_ends_of_an_entity_is_left_out() -> None:
    found = read(" Bob  went", (0, 6, "person"))
    assert (found.words, found.spans) == ([["Bob", "went"]], [[(0, 1, "person")]])


def test_a_word_is_divided_where_an_entity_begins_or_ends_inside_and_this_is_said() -> None:
    found = read("In Helsingissä, 서울에서", (3, 11, "place"), (16, 18, "place"))
    assert found.words == [["In", "Helsingi", "ssä", ",", "서울", "에서"]]
    assert [tuple(span) for span in found.spans[0]] == [(1, 2, "place"), (4, 5, "place")]
    (note,) = found.notes
    assert note.startswith("train: in 1 rows an entity begins or ends inside a word, first in rows.jsonl: train row 0;")


def test_entities_may_touch() -> None:
    found = read("AnnaBob", (0, 4, "person"), (4, 7, "person"))
    assert [tuple(span) for span in found.spans[0]] == [(0, 1, "person"), (1, 2, "person")]


def test_random_places_come_back_as_the_text_there() -> None:
    random = Random(0)
    for _ in range(100):
        text = "".join(random.choice("ab1. -é") for _ in range(30))
        borders = sorted(random.sample(range(31), 6))
        places = [(a, b, "x") for a, b in zip(borders[::2], borders[1::2], strict=True) if text[a:b].strip()]
        found = read(text, *places)
        letters = ["".join(found.words[0][span.start : span.end]) for span in found.spans[0]]
        assert letters == ["".join(text[start:end].split()) for start, end, _ in places]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 99, "x"), r"x from 0 to 99 is nothing in a text of 8 characters"),
        ((-3, 3, "x"), r"x from -3 to 3 is nothing"),
        ((3, 3, "x"), r"x from 3 to 3 is nothing"),
        ((5, 2, "x"), r"x from 5 to 2 is nothing"),
        ((3, 4, "x"), r"x from 3 to 4 is nothing"),
        ((0, 3, " "), r"\{.*\} is no entity; give start and end"),
    ],
)
def test_a_place_that_is_none_is_an_error(place: tuple[int, int, str], message: str) -> None:
    with pytest.raises(InputError, match=rf"^E-NER-SPAN: .+: train row 0, column 'entities': {message}"):
        read("Bob went", place)


@pytest.mark.parametrize(
    "entities",
    [
        [[4, 12, "place"], [0, 3, "person"]],  # doccano's JSONL, spaCy
        [
            {"id": 7, "label": "person", "start_offset": 0, "end_offset": 3},  # doccano with relations
            {"id": 8, "label": "place", "start_offset": 4, "end_offset": 12},
        ],
        [
            {"start": 0, "end": 3, "text": "Bob", "labels": ["person"]},  # Label Studio's JSON_MIN
            {"start": 4, "end": 12, "text": "New York", "labels": ["place"]},
        ],
        {"start": [0, 4], "end": [3, 12], "label": ["person", "place"]},  # a Sequence of `datasets`
    ],
)
def test_entities_are_read_as_the_tools_that_mark_them_write_them(entities: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "Bob New York", "entities": entities}))
    read = read_spans(read_file(str(tmp_path / "rows.jsonl")), "text", "entities", ORIGIN)
    assert read.words == [["Bob", "New", "York"]] and read.spans == [[Span(0, 1, "person"), Span(1, 3, "place")]]


def test_entities_that_overlap_are_an_error_that_shows_both() -> None:
    with pytest.raises(InputError, match=r"^E-NER-SPAN: .*: place from 4 to 8 \('York'\) overlaps 'New York'"):
        read("New York", (0, 8, "place"), (4, 8, "place"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5, "entities": []}, r"E-TEXT: .+: train row 0, column 'text': 5 is not a text"),
        ({"text": None, "entities": []}, r"E-TEXT: .+: train row 0, column 'text': None is not a text"),
        (
            {"text": "Bob", "entities": None},
            r"E-NER-SPAN: .+: train row 0, column 'entities': None is no list of entities",
        ),
        ({"text": "Bob", "entities": ["Bob"]}, r"E-NER-SPAN: .*'Bob' is no entity; give start and end"),
        ({"text": "Bob", "entities": [["0", "3", "person"]]}, r"E-NER-SPAN: .* is no entity"),
        ({"text": "Bob", "entities": [{"start": 0, "end": 3, "labels": ["a", "b"]}]}, r"E-NER-SPAN: .* is no entity"),
        ({"text": "Bob", "entities": [{"start": 0, "end": 3}]}, r"E-NER-SPAN: .* is no entity"),
        ({"text": "Bob", "entities": [{"start": 0.0, "end": 3.5, "label": "x"}]}, r"E-NER-SPAN: .* is no entity"),
    ],
)
def test_a_row_of_other_things_is_an_error(row: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        read_spans(Dataset.from_list([row]), "text", "entities", ORIGIN)
