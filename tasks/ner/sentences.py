"""Words and entities of a data set's rows, from columns of words and tags or from texts with character spans."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset
from tokenizers import Regex, pre_tokenizers

from loralight.data import Origin, missing_hint
from loralight.errors import InputError

from .tags import Span, check_tag, detect, spans_of

# Letters with their marks and joiners, or digits, or one other sign; in scripts without spaces each sign is a word
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_WORD = pre_tokenizers.Split(
    Regex(rf"{_UNSPACED}\p{{M}}*|[\p{{L}}\p{{M}}\u200c\u200d&&[^{_UNSPACED[1:-1]}]]+|\p{{N}}+|\S"),
    behavior="removed",
    invert=True,
)


_FIELDS = (  # of an entity; the first ones are loralight's, the others doccano's and Label Studio's
    ("start", "start_offset"),
    ("end", "end_offset"),
    ("label", "labels"),
)


_WORD_A_ROW = ". If each row is a word, say which column tells the sentences apart: data.columns.sentence=<name>"


class Sentences(NamedTuple):
    """Sentences as words, their entities by word, and notes on how they were read."""

    words: list[list[str]]
    spans: list[list[Span]]
    notes: list[str]


def split_words(text: str) -> list[tuple[int, int]]:
    """The start and end of each word in a text: runs of letters or of digits, and each other sign by itself."""
    return [place for _, place in _WORD.pre_tokenize_str(text)]


def read_tagged(rows: Dataset, words: str, tags: str, origin: Origin, names: Sequence[str] | None) -> Sentences:
    """Sentences from a column of words and a column of tags.

    Args:
        words: a column of lists of words.
        tags: a column of lists of tags, as text, ClassLabels or numbers.
        origin: origin of the rows.
        names: names of integer tags.

    Raises:
        InputError: a row has not as many tags as words (``E-NER-ALIGN``), a word is empty (``E-NER-EMPTY-WORD``), or
            a tag is not valid (``E-NER-TAG``).
    """
    sentences, tag_lists = [], []
    known = tags_in_order(rows, tags) or names
    for row, (of_words, of_tags) in enumerate(zip(rows[words], rows[tags], strict=True)):
        where = origin.row(row)
        if not isinstance(of_words, list) or not isinstance(of_tags, list) or len(of_words) != len(of_tags):
            raise InputError(
                "E-NER-ALIGN",
                f"{where}: {_count(of_words, 'words')} in {words!r}, {_count(of_tags, 'tags')} in {tags!r}; give a "
                f"list of words, and a tag for each{_WORD_A_ROW if isinstance(of_words, str) else ''}",
            )
        for place, word in enumerate(of_words):
            if not isinstance(word, str) or not word.strip():
                raise InputError(
                    "E-NER-EMPTY-WORD", f"{where}, column {words!r}: word {place} is {word!r}; take it out, and its tag"
                )
        sentences.append(of_words)
        tag_lists.append([_tag(tag, known, f"{where}, column {tags!r}", place) for place, tag in enumerate(of_tags)])
    scheme, faults = detect(tag_lists)
    notes = [] if scheme == "IOB2" else [f"{origin.split}: its tags are {scheme}, and read as such"]
    if faults:
        notes.append(
            f"{origin.split}: the tags of {faults} rows are not sound {scheme}; there, an entity begins where the type "
            "changes"
        )
    return Sentences(sentences, [spans_of(found) for found in tag_lists], notes)


def tags_in_order(rows: Dataset, tags: str) -> list[str] | None:
    """The names of tags, if their column has ClassLabels; else None."""
    feature = getattr(rows.features[tags], "feature", None)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _tag(value: Any, names: Sequence[str] | None, where: str, word: int) -> str:
    if type(value) is int and names is not None and 0 <= value < len(names):
        value = names[value]
    elif type(value) is int:
        known = (
            f"there are 0..{len(names) - 1} ({', '.join(names)})"
            if names
            else "give the names of all in order, as data.tag_names='[O, B-person, ...]' or in a file labels.json "
            "beside the data; or a column of tags as text, as data.columns.tags"
        )
        raise InputError("E-NER-TAG", f"{where}: the tag of word {word} is the number {value}; {known}")
    return check_tag(value, where, word)


def _count(values: Any, things: str) -> str:
    return f"{len(values)} {things}" if isinstance(values, list) else f"{values!r} for {things}"


def read_spans(rows: Dataset, text: str, entities: str, origin: Origin) -> Sentences:
    """Sentences from a column of texts and a column of entities: places in characters and a label, see `_entity`.

    If an entity begins or ends inside a word, the word is divided there, so that no entity is lost.

    Raises:
        InputError: a value is not a text (``E-TEXT``), or an entity does not lie in its text (``E-NER-SPAN``).
    """
    sentences, span_lists, divided = [], [], []
    for row, (given, marked) in enumerate(zip(rows[text], rows[entities], strict=True)):
        where = origin.row(row)
        if not isinstance(given, str):
            raise InputError("E-TEXT", f"{where}, column {text!r}: {given!r} is not a text{missing_hint(given, text)}")
        places = list(_places(given, marked, f"{where}, column {entities!r}"))
        words = split_words(given)
        cuts = {border for start, end, _ in places for border in (start, end)}
        pieces = [piece for word in words for piece in _divide(word, cuts)]
        if len(pieces) > len(words):
            divided.append(row)
        sentences.append([given[start:end] for start, end in pieces])
        span_lists.append([_span(place, pieces) for place in places])
    notes = []
    if divided:
        notes.append(
            f"{origin.split}: in {len(divided)} rows an entity begins or ends inside a word, first in "
            f"{origin.row(divided[0])}; the word is divided there, but prediction knows whole words only"
        )
    return Sentences(sentences, span_lists, notes)


def _places(text: str, marked: Any, where: str) -> Iterator[tuple[int, int, str]]:
    """The places of entities in order, without white space at their ends."""
    if isinstance(marked, Mapping):  # one list for each field
        marked = [dict(zip(marked, values, strict=True)) for values in zip(*marked.values(), strict=True)]
    if not isinstance(marked, list):
        raise InputError("E-NER-SPAN", f"{where}: {marked!r} is no list of entities; give [] where there is none")
    found = [_entity(one) for one in marked]
    if None in found:
        raise InputError(
            "E-NER-SPAN",
            f"{where}: {marked[found.index(None)]!r} is no entity; give start and end (in characters) and a label",
        )
    last, last_text = 0, ""
    for start, end, label in sorted(one for one in found if one is not None):
        shown = f"{where}: {label} from {start} to {end}"
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise InputError("E-NER-SPAN", f"{shown} is nothing in a text of {len(text)} characters")
        inner = text[start:end].strip()
        start += text[start:end].index(inner)
        if start < last:
            raise InputError("E-NER-SPAN", f"{shown} ({inner!r}) overlaps {last_text!r}; a word can be of one entity")
        last, last_text = start + len(inner), inner
        yield start, last, label


def is_marked(value: Any) -> bool:
    """Whether a row's value is a list of entities that is not empty."""
    return isinstance(value, list) and bool(value) and None not in map(_entity, value)


def _entity(one: Any) -> tuple[int, int, str] | None:
    """Start, end and label of an entity; None if this is none.

    It is a list of these, as doccano and spaCy have it, or has a field for each, in the names of several tools.
    """
    if isinstance(one, Mapping):
        one = [next((one[name] for name in names if one.get(name) is not None), None) for names in _FIELDS]
    if not isinstance(one, list) or len(one) != len(_FIELDS):
        return None
    start, end, label = one
    if isinstance(label, list) and len(label) == 1:
        (label,) = label
    are_places = all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end))
    return (start, end, label.strip()) if are_places and isinstance(label, str) and label.strip() else None


def _divide(word: tuple[int, int], cuts: set[int]) -> Iterator[tuple[int, int]]:
    start, end = word
    for border in sorted(cut for cut in cuts if start < cut < end):
        yield start, border
        start = border
    yield start, end


def _span(place: tuple[int, int, str], words: Sequence[tuple[int, int]]) -> Span:
    start, end, label = place
    inside = [number for number, word in enumerate(words) if start <= word[0] and word[1] <= end]
    return Span(inside[0], inside[-1] + 1, label)
