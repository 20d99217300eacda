"""Tags of words that encode entities: IOB1, IOB2, IOBES and BILOU are all read, and IOB2 is written.

Schemes: Ramshaw & Marcus, 1995, https://arxiv.org/abs/cmp-lg/9505040 (IOB1); Tjong Kim Sang & Veenstra, 1999,
https://arxiv.org/abs/cs/9907006 (IOB2); Ratinov & Roth, 2009, https://aclanthology.org/W09-1119 (BILOU).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from loralight.errors import InputError

OUTSIDE = "O"
_FIRST, _LAST = "BSU", "ELSU"  # tags that begin or end an entity; S and U do both
_PREFIXES = "BIESLUM"  # M, the middle, is some schemes' I
_SCHEMES = {"IOB2": "BIIB", "IOB1": "IIII", "IOBES": "BIES", "BILOU": "BILU"}  # of a first, middle, last, only word


class Span(NamedTuple):
    """An entity of the type ``label`` from the word ``start`` to the word before ``end``."""

    start: int
    end: int
    label: str


def is_tag(text: object) -> bool:
    """Whether ``text`` is ``O``, or a tag such as ``B-person``."""
    return isinstance(text, str) and (text == OUTSIDE or (text[:1] in _PREFIXES and text[1:2] == "-" and len(text) > 2))


def check_tag(text: object, where: str, word: int | str) -> str:
    """The tag without spaces around it; raises ``E-NER-TAG`` with its place if ``text`` is not a tag."""
    tag = text.strip() if isinstance(text, str) else text
    if not is_tag(tag):
        raise InputError(
            "E-NER-TAG",
            f"{where}: {text!r}, of word {word}, is no tag; a tag is O, or one of B I E S L U with a hyphen and a "
            "type, such as B-person",
        )
    return str(tag)


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities in a sentence's tags, whatever their scheme; tags of no scheme are read as conlleval reads them.

    An entity begins at a tag that begins one, or where the type differs from that of the word before.
    """
    spans: list[Span] = []
    before = OUTSIDE
    for position, tag in enumerate(tags):
        if tag != OUTSIDE:
            if tag[0] in _FIRST or tag[1:] != before[1:] or before[0] in _LAST:
                spans.append(Span(position, position + 1, tag[2:]))
            else:
                spans[-1] = spans[-1]._replace(end=position + 1)
        before = tag
    return spans


def tags_of(spans: Iterable[Span], length: int, scheme: str = "IOB2") -> list[str]:
    """The tags of a sentence of ``length`` words, in which spans do not overlap."""
    first, middle, last, only = tuple(_SCHEMES[scheme])
    tags = [OUTSIDE] * length
    before = Span(0, 0, "")
    for span in sorted(spans):
        inner = middle * (span.end - span.start - 2)
        letters = only if span.end - span.start == 1 else first + inner + last
        if scheme == "IOB1" and (before.end, before.label) == (span.start, span.label):
            letters = "B" + letters[1:]  # the only mark between two neighbouring entities
        tags[span.start : span.end] = [f"{letter}-{span.label}" for letter in letters]
        before = span
    return tags


def detect(sentences: Sequence[Sequence[str]]) -> tuple[str, int]:
    """The scheme that most sentences follow, and the number of sentences that do not."""
    spans = [spans_of(tags) for tags in sentences]
    faults: dict[str, int] = {}
    for scheme in _SCHEMES:
        faults[scheme] = sum(
            tags_of(found, len(tags), scheme) != list(tags) for found, tags in zip(spans, sentences, strict=True)
        )
        if not faults[scheme]:
            break
    best = min(faults, key=faults.__getitem__)
    return best, faults[best]


def tag_names(types: Iterable[str]) -> list[str]:
    """The IOB2 tags of entity types, in the order of a head's outputs: O, B-a, I-a, B-b, I-b, ..."""
    return [OUTSIDE, *(f"{prefix}-{label}" for label in types for prefix in "BI")]
