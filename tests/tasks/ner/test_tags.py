"""Tags of every scheme are read as seqeval reads them, and written so that its strict mode reads the same."""

from random import Random

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from loralight.tasks.ner.tags import Span, detect, is_tag, spans_of, tag_names, tags_of

TYPES = ["PER", "creative-work", "É"]
SCHEMES = {"IOB1": IOB1, "IOB2": IOB2, "IOBES": IOBES, "BILOU": BILOU}


def random_tags(random: Random, prefixes: str, types: list[str] = TYPES) -> list[str]:
    """Any tags in any order: few sequences are sound."""
    possible = ["O", *(f"{prefix}-{label}" for prefix in prefixes for label in types)]
    return [random.choice(possible) for _ in range(random.randrange(12))]


def random_spans(random: Random, length: int) -> list[Span]:
    spans, start = [], 0
    while start < length:
        end = min(length, start + random.randrange(1, 4))
        if random.random() < 0.6:
            spans.append(Span(start, end, random.choice(TYPES)))
        start = end
    return spans


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES", "ES"])
def test_tags_in_any_order_are_read_as_by_seqeval(prefixes: str) -> None:
    random = Random(0)
    for _ in range(2000):
        tags = random_tags(random, prefixes)
        expected = [(start, end + 1, label) for label, start, end in get_entities(tags)]
        assert [tuple(span) for span in spans_of(tags)] == expected, tags


def test_the_letters_of_bilou_and_bmes_mean_what_those_of_iobes_do() -> None:
    random = Random(0)
    for _ in range(500):
        tags = random_tags(random, "BIES")
        assert spans_of([tag.replace("E-", "L-").replace("S-", "U-") for tag in tags]) == spans_of(tags)
        assert spans_of([tag.replace("I-", "M-") for tag in tags]) == spans_of(tags)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_survive_being_written_and_read(scheme: str) -> None:
    random = Random(0)
    for _ in range(500):
        length = random.randrange(1, 12)
        spans = random_spans(random, length)
        tags = tags_of(spans, length, scheme)
        assert spans_of(tags) == spans
        (strict,) = Entities([tags], SCHEMES[scheme]).entities
        assert [(entity.start, entity.end, entity.tag) for entity in strict] == [tuple(span) for span in spans]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_of_a_data_set_is_found_and_its_faults_counted(scheme: str) -> None:
    spans = [[Span(0, 3, "a"), Span(3, 4, "a")], [Span(1, 2, "b")], [Span(0, 2, "b"), Span(2, 4, "b")]]
    sentences = [tags_of(each, 5, scheme) for each in spans]
    assert detect(sentences) == (scheme, 0)
    fault = {"IOB1": "B-a", "IOB2": "I-a", "IOBES": "I-a", "BILOU": "I-a"}[scheme]
    assert detect([*sentences, ["O", fault, "O"]]) == (scheme, 1)


def test_tags_without_a_b_are_iob1() -> None:
    assert detect([["I-a", "I-a", "O", "I-b"], ["O"]]) == ("IOB1", 0)


def test_plain_tags_are_iob2() -> None:
    assert detect([["O", "O"], []]) == ("IOB2", 0)


def test_the_head_has_an_output_for_o_and_two_for_each_type() -> None:
    assert tag_names(["x", "y"]) == ["O", "B-x", "I-x", "B-y", "I-y"]


@pytest.mark.parametrize("tag", ["O", "B-PER", "I-creative-work", "S-x", "U-x", "L-x", "E-x", "M-x", "B--"])
def test_a_tag_is_o_or_a_letter_with_a_type(tag: str) -> None:
    assert is_tag(tag)


@pytest.mark.parametrize("tag", ["", "B", "B-", "-PER", "X-PER", "PER", "o", "B_PER", "b-PER", None, 3])
def test_anything_else_is_no_tag(tag: object) -> None:
    assert not is_tag(tag)
