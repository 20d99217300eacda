"""What of a text, a completion or a chat is learnt, token by token; what cannot be is an error that names the row."""

import json
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from loralight.data.forms.chats import read_template
from loralight.data.forms.choosing import form_of
from loralight.data.forms.form import Document, Form
from loralight.errors import InputError

from ..tasks.text_generation.conftest import CHATML, MARKED, make_tokenizer

CHAT = [
    {"role": "system", "content": "it is a fine day"},
    {"role": "user", "content": "what is it?"},
    {"role": "assistant", "content": "the fox"},
    {"role": "user", "content": "the dog?"},
    {"role": "assistant", "content": "no, the fox\nit is"},
]
COLUMNS = {
    "text": {"text": "t"},
    "prompt": {"prompt": "p", "completion": "c"},
    "instruction": {"instruction": "i", "output": "o", "input": "n"},
    "chat": {"messages": "m"},
}


def make(form: str, *, template: str | None = CHATML, **arguments: Any) -> Form:
    return form_of(make_tokenizer(template), COLUMNS[form], **arguments)


def encode(form: Form, *values: Any) -> list[Document]:
    """The one document of each row, which is given as one value or a tuple of one for each of the form's columns."""
    rows = documents(form, *values)
    assert all(len(row) <= 1 for row in rows)
    return [row[0] if row else ([], []) for row in rows]


def documents(form: Form, *values: Any) -> list[list[Document]]:
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    columns = {column: [row[at] for row in rows] for at, column in enumerate(form.columns.values())}
    return list(form.encode(columns, [f"train row {number}" for number in range(len(rows))]))


def learnt(form: Form, ids: list[int], marks: list[bool]) -> list[str]:
    """The texts of the runs of tokens that are learnt."""
    runs: list[list[int]] = []
    for at, (token, mark) in enumerate(zip(ids, marks, strict=True)):
        if mark and (not at or not marks[at - 1]):
            runs.append([])
        if mark:
            runs[-1].append(token)
    return [form.tokenizer.decode(run) for run in runs]


def with_opening_mark(tokenizer: PreTrainedTokenizerFast, pattern: str) -> PreTrainedTokenizerFast:
    special = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|endoftext|>")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=[*special.items()])
    return tokenizer


def test_of_a_text_every_token_and_its_end_is_learnt() -> None:
    form = make("text")
    ((ids, marks),) = encode(form, "the quick brown fox")
    assert ids == [*form.tokenizer("the quick brown fox")["input_ids"], form.tokenizer.eos_token_id]
    assert all(marks)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_has_nothing_to_learn(text: str) -> None:
    assert encode(make("text"), "a", text)[1] == ([], [])


@pytest.mark.parametrize("pattern", ["<|im_start|> $A", "<|im_start|> $A <|endoftext|>"])
def test_a_mark_that_opens_texts_is_kept_and_the_end_stands_once(pattern: str) -> None:
    form = form_of(with_opening_mark(make_tokenizer(), pattern), COLUMNS["text"])
    ((ids, _),) = encode(form, "the fox")
    assert form.tokenizer.decode(ids) == "<|im_start|>the fox<|endoftext|>"
    assert form.tokenizer.decode(form.prompt(form.record("the fox"))) == "<|im_start|>the fox"
    pair = form_of(form.tokenizer, COLUMNS["prompt"])
    ((ids, marks),) = encode(pair, ("the", "fox"))
    assert pair.tokenizer.decode(ids) == "<|im_start|>the\nfox<|endoftext|>"
    assert learnt(pair, ids, marks) == ["fox<|endoftext|>"]


@pytest.mark.parametrize("join", ["\n", "", " -> "])
def test_of_a_completion_its_tokens_and_its_end_are_learnt_and_of_its_prompt_none(join: str) -> None:
    form = make("prompt", join=join)
    ((ids, marks),) = encode(form, ("what is it?", "the fox"))
    assert form.tokenizer.decode(ids) == f"what is it?{join}the fox<|endoftext|>"
    assert learnt(form, ids, marks) == ["the fox<|endoftext|>"]
    prompt = form.prompt(form.record("what is it?"))
    assert ids[: len(prompt)] == prompt, "generation starts from the very tokens that training had"


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by prefixes", "by the template's marks"])
def test_of_a_chat_the_assistant_s_turns_and_their_ends_are_learnt(template: str) -> None:
    form = make("chat", template=template)
    ((ids, marks),) = encode(form, CHAT)
    assert ids == form.tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert learnt(form, ids, marks) == ["the fox<|im_end|>", "no, the fox\nit is<|im_end|>"]
    prompt = form.prompt(form.record({"m": CHAT}))
    assert ids[: len(prompt)] == prompt, "generation starts from the very tokens that training had"
    assert marks.index(True, len(prompt)) == len(prompt)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by prefixes", "by the template's marks"])
def test_an_answer_without_weight_is_read_and_not_learnt(template: str) -> None:
    form = make("chat", template=template)
    chat = [*CHAT[:2], CHAT[2] | {"weight": 0}, CHAT[3], CHAT[4] | {"weight": 1}]
    ((ids, marks),) = encode(form, chat)
    assert ids == form.tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert learnt(form, ids, marks) == ["no, the fox\nit is<|im_end|>"]


def test_the_token_behind_an_answer_ends_it_though_it_is_not_the_model_s_own() -> None:
    form = make("chat")
    assert form.ends() == {form.tokenizer.convert_tokens_to_ids("<|im_end|>")} != {form.tokenizer.eos_token_id}


def test_a_transcript_is_a_chat() -> None:
    form = make("chat")
    text = "User: what is it?\nand why?\nASSISTANT:  the fox\nUser: the dog?\nassistant: no: the fox"
    chat = [
        {"role": "user", "content": "what is it?\nand why?"},
        {"role": "assistant", "content": "the fox"},
        {"role": "user", "content": "the dog?"},
        {"role": "assistant", "content": "no: the fox"},
    ]
    assert encode(form, text) == encode(form, chat)


def test_fields_that_a_table_fills_with_nothing_are_left_out_of_messages() -> None:
    strict = "{% for m in messages %}{% if m.tool is defined %}TOOL{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    form = make("chat", template=strict)
    ((ids, _),) = encode(form, [{"role": "user", "content": "a", "tool": None}, {"role": "assistant", "content": "b"}])
    assert "TOOL" not in form.tokenizer.decode(ids)


def test_a_chat_may_begin_with_a_turn_of_the_assistant_that_is_not_learnt() -> None:
    form = make("chat")
    greeting = {"role": "assistant", "content": "the quick fox"}
    (first, (ids, marks)) = encode(form, [greeting], [greeting, *CHAT[1:3]])
    assert not any(first[1]) and learnt(form, ids, marks) == ["the fox<|im_end|>"]
    assert form.example({"m": [greeting]}) is None
    assert form.example({"m": [greeting, *CHAT[1:3]]}) == ({"m": [greeting, CHAT[1]]}, "the fox")


@pytest.mark.parametrize("nothing", ["", None])
@pytest.mark.parametrize(("template", "name"), [(CHATML, "chat"), (None, "prompt")])
def test_an_instruction_is_a_chat_where_there_is_a_template_and_else_a_prompt(
    template: str | None, name: str, nothing: str | None
) -> None:
    form, same = make("instruction", template=template), make(name, template=template)
    rows = [("what", "the fox", nothing), ("what", "a", "the dog"), ("what", " ", nothing)]
    plain, with_input, without_answer = encode(form, *rows)
    chat = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "the fox"}]
    assert [plain] == encode(same, chat if name == "chat" else ("what", "the fox")) and without_answer == ([], [])
    example = form.example({"i": "what", "n": "the dog", "o": "a"})
    assert example == ({"i": "what", "n": "the dog"}, "a") and form.example({"i": "what", "o": " "}) is None
    prompt = form.prompt(example[0])
    assert form.shown(example[0]) == "what\n\nthe dog" and prompt == same.prompt(same.record("what\n\nthe dog"))
    assert with_input[0][: len(prompt)] == prompt and form.ends() == same.ends()
    assert form.prompt(form.record("what")) == form.prompt(form.record({"i": "what", "n": nothing, "o": "the fox"}))


def test_what_has_learnt_instructions_as_chats_answers_chats() -> None:
    instructions, chats = make("instruction"), make("chat")
    assert instructions.prompt(instructions.record(CHAT)) == chats.prompt(chats.record(CHAT))
    assert instructions.shown(instructions.record(CHAT)) == chats.shown(chats.record(CHAT))


def test_messages_of_sharegpt_are_those_of_the_usual_form() -> None:
    names = {"user": "human", "assistant": "gpt"}
    shared = [{"from": names.get(one["role"], one["role"]), "value": one["content"]} for one in CHAT]
    form = make("chat")
    assert encode(form, shared) == encode(form, CHAT)
    assert form.record(shared) == form.record(CHAT)


def test_parts_of_text_are_one_content() -> None:
    form = make("chat")
    parts = [{**CHAT[1], "content": [{"type": "text", "text": "what "}, {"type": "text", "text": "is it?"}]}, CHAT[2]]
    assert encode(form, parts) == encode(form, CHAT[1:3])


WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>"
    "{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
]
ARGUMENTS = {"zone": "utc", "unit": None}


def calling(arguments: Any, **empty: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": arguments}, **empty}
    return [
        {"role": "user", "content": "when is it?", **empty},
        {"role": "assistant", "content": None, "tool_calls": [call], **empty},
        {"role": "tool", "tool_call_id": "1", "content": "noon", **empty},
        {"role": "assistant", "content": "it is noon", "tool_calls": [], **empty},
    ]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["tools as a list", "tools as a text"])
def test_calls_of_tools_are_learnt_as_the_template_writes_them(tools: Any) -> None:
    form = form_of(make_tokenizer(WITH_TOOLS), {"messages": "m", "tools": "t"})
    ((ids, marks),) = encode(form, (calling(json.dumps(ARGUMENTS), weight=None), tools))
    plain = [{**message, "content": message["content"] or ""} for message in calling(ARGUMENTS)]
    assert ids == form.tokenizer.apply_chat_template(plain, tools=TOOLS, return_dict=False)
    called = json.dumps({"name": "now", "arguments": ARGUMENTS})
    assert learnt(form, ids, marks) == [f"{called}<|im_end|>", "it is noon<|im_end|>"]
    record, answer = form.example({"m": calling(json.dumps(ARGUMENTS)), "t": tools})
    assert answer == "it is noon" and record["t"] == TOOLS
    assert form.shown(record).splitlines()[1] == f"assistant: {json.dumps({'name': 'now', 'arguments': ARGUMENTS})}"
    prompt = form.prompt(record)
    assert ids[: len(prompt)] == prompt, "generation starts from the very tokens that training had"
    assert encode(form, (CHAT, None)) == encode(make("chat", template=WITH_TOOLS), CHAT)


def test_a_template_without_tools_is_told_of_and_one_without_their_calls_refused() -> None:
    form = form_of(make_tokenizer(CHATML), {"messages": "m", "tools": "t"})
    assert (
        form.notes() == ["the chat template does not write tools: column 't' is left out"] and not make("chat").notes()
    )
    assert encode(form, (CHAT, TOOLS)) == encode(make("chat"), CHAT)
    with pytest.raises(InputError, match=r"^E-CHAT: train row 0: the chat template leaves out calls of tools"):
        encode(form, (calling("{}"), TOOLS))


@pytest.mark.parametrize("tools", ["now", "[" * 100_000, 3, {"name": "now"}, ["now"]])
def test_tools_that_are_no_schemas_are_an_error(tools: Any) -> None:
    form = form_of(make_tokenizer(WITH_TOOLS), {"messages": "m", "tools": "t"})
    with pytest.raises(InputError, match=r"^E-CHAT: train row 0, column 't'.* is no list of tools' JSON schemas"):
        encode(form, (CHAT, tools))


FORGETFUL = "{% for m in messages %}{% if loop.last %}{{ m.role }}{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + m.role + ' here') }}"
    "{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
)
# reasoning is asked for, and left out of all answers, as DeepSeek-R1's template has it
DROPPED = """{% for m in messages %}
{%- set said = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}
{{- '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""
FAULTS: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "a text is missing": ("text", {}, None, "E-TEXT: train row 1, column 't': None is not a text"),
    "a number for a text": ("text", {}, 3.5, r"E-TEXT: train row 1, column 't': 3\.5 is not a text"),
    "a prompt is missing": ("prompt", {}, (None, "a"), "E-TEXT: train row 1, column 'p': None is not a text"),
    "messages for a prompt": (
        "prompt",
        {},
        ([{"role": "user", "content": "a"}], "a"),
        r"E-TEXT: train row 1, column 'p': \[.* is not a text\. Messages go into one column \(data\.columns\.mess",
    ),
    "a completion is missing": ("prompt", {}, ("a", None), "E-TEXT: train row 1, column 'c': None is not a text"),
    "an instruction is missing": ("instruction", {}, (None, "a", ""), "E-TEXT: train row 1, column 'i': None is not"),
    "an answer that is no text": ("instruction", {}, ("a", 3, ""), "E-TEXT: train row 1, column 'o': 3 is not a text"),
    "an empty completion": ("prompt", {}, ("a", " "), "E-TEXT: train row 1, column 'c': the completion is empty"),
    "no messages": ("chat", {}, [], r"E-CHAT: train row 1, column 'm': '\[\]' is no list of messages"),
    "a text for a chat": ("chat", {}, "what is it?", "E-CHAT: train row 1, column 'm': 'what is it"),
    "a message without a role": (
        "chat",
        {},
        [{"speaker": "human", "text": "a"}],
        r"E-CHAT: train row 1, column 'm': .*'speaker'.*: a message has texts as role and content",
    ),
    "a message of ShareGPT's form that is no text": (
        "chat",
        {},
        [{"from": ["human"], "value": "a"}],
        r"E-CHAT: train row 1, column 'm': .*human.*: a message has texts as role and content",
    ),
    "calls of tools that are no list": (
        "chat",
        {},
        [{"role": "assistant", "content": None, "tool_calls": 3}],
        r"E-CHAT: train row 1, column 'm': .*: a message has texts as role and content",
    ),
    "no turn of the assistant": (
        "chat",
        {},
        [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}],
        "E-CHAT: train row 1: no turn of the assistant, only of: human, gpt",
    ),
    "a template that does not begin with what it asks by": (
        "chat",
        {"template": FORGETFUL},
        CHAT,
        "E-CHAT: train row 0: the chat template asks for an answer by 'user.*', which it leaves out",
    ),
    "a template that asks for reasoning and writes it in another way": (
        "chat",
        {"template": DROPPED.replace("m.content.split('</think>')[-1]", "'(' + m.content + ')</think>'")},
        [CHAT[1], {"role": "assistant", "content": "the fox"}],
        "E-CHAT: train row 0: the chat template asks for an answer by '<think>.*', which it leaves out",
    ),
    "a role that the template does not know": (
        "chat",
        {"template": STRICT},
        CHAT,
        "E-CHAT: train row 1: the chat template refuses this chat: no system here",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_cannot_be_learnt_from_is_one_clear_error(fault: str) -> None:
    name, arguments, value, message = FAULTS[fault]
    fine = {
        "text": "a",
        "prompt": ("a", "b"),
        "instruction": ("a", "b", None),
        "chat": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
    with pytest.raises(InputError, match=f"^{message}"):
        encode(make(name, **arguments), fine[name], value)


# marks of reasoning stand in answers to the last question alone, as models that reason write them
REASONING = """{% set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set thought, said = m.content.split('</think>') if '</think>' in m.content else ('', m.content) %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}
{{- '<think>\\n' + thought.removeprefix('<think>') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def test_of_a_template_that_drops_earlier_reasoning_each_answer_is_learnt_as_it_is_asked_for() -> None:
    form = make("chat", template=REASONING)
    chat = [CHAT[1], {"role": "assistant", "content": "<think>a dog?</think>the fox"}, *CHAT[3:]]
    (first, second), (alone,) = documents(form, chat, chat[:2])
    assert first == alone and learnt(form, *first) == ["<think>\na dog?\n</think>\n\nthe fox<|im_end|>"]
    assert learnt(form, *second) == ["<think>\n\n</think>\n\nno, the fox\nit is<|im_end|>"]
    for (ids, marks), turn in ((first, 1), (second, 3)):
        prompt = form.prompt(form.record({"m": chat[: turn + 1]}))
        assert ids[: len(prompt)] == prompt and marks.index(True) == len(prompt)
    assert "a dog" not in form.tokenizer.decode(second[0])


def test_where_it_drops_nothing_but_the_marks_a_chat_is_one_document() -> None:
    form = make("chat", template=REASONING)
    ((ids, marks),) = encode(form, CHAT)
    assert ids == form.tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert learnt(form, ids, marks) == ["the fox<|im_end|>", "<think>\n\n</think>\n\nno, the fox\nit is<|im_end|>"]


def test_reasoning_that_a_template_asks_for_and_drops_is_learnt_after_what_asks_for_it() -> None:
    form = make("chat", template=DROPPED)
    chat = [CHAT[1], {"role": "assistant", "content": "<think>\na dog?\n</think>\n\n<b>the fox"}, *CHAT[3:]]
    ((first, second),) = documents(form, chat)
    assert learnt(form, *first) == ["a dog?\n</think>\n\n<b>the fox<|im_end|>"]
    assert learnt(form, *second) == ["\n</think>\n\nno, the fox\nit is<|im_end|>"]
    for (ids, marks), turn in ((first, 1), (second, 3)):
        prompt = form.prompt(form.record({"m": chat[: turn + 1]}))
        assert ids[: len(prompt)] == prompt and marks.index(True) == len(prompt)
    assert "a dog" not in form.tokenizer.decode(second[0])
    assert form.opening() == "\n</think>\n\n"
    assert form.ends() == {form.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_special_mark_before_answers_does_not_end_them() -> None:
    channel = CHATML.replace(
        "}}\n{{ message['content']",
        "}}\n{% if message['role'] == 'assistant' %}<|im_start|>final<|im_start|>{% endif %}{{ message['content']",
    )
    form = make("chat", template=channel)
    assert form.ends() == {form.tokenizer.convert_tokens_to_ids("<|im_end|>")} and form.opening() == "final"
    ((ids, marks),) = encode(form, CHAT[1:3])
    assert learnt(form, ids, marks) == ["<|im_start|>final<|im_start|>the fox<|im_end|>"]


def test_an_answer_may_begin_within_a_token_that_asks_for_it() -> None:
    thinking = CHATML.replace("\n{{ message['content']", "{{ '\n' * loop.index0 }}{{ message['content']")
    tokenizer = make_tokenizer(thinking)
    tokenizer.add_tokens(["\n\n"])
    form = form_of(tokenizer, COLUMNS["chat"])
    chat = [{"role": "system", "content": "a"}, CHAT[1], CHAT[2]]
    ((ids, marks),) = encode(form, chat)
    assert learnt(form, ids, marks) == ["\n\nthe fox<|im_end|>"]


def test_what_a_template_puts_before_answers_belongs_to_none() -> None:
    assert make("chat", template=REASONING).opening() == "<think>\n\n</think>\n\n"
    assert [make("chat", template=one).opening() for one in (CHATML, MARKED, FORGETFUL)] == ["", "", ""]
    assert [make(one).opening() for one in ("text", "prompt", "instruction")] == ["", "", ""]


def test_a_tokenizer_without_a_chat_template_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(InputError, match=r"^E-CHAT: .*has no chat template.*set data\.chat_template"):
        make("chat", template=None)
    form = form_of(make_tokenizer(None), COLUMNS["chat"], template=CHATML)
    assert encode(form, CHAT) == encode(make("chat"), CHAT)


def test_a_tokenizer_without_an_end_of_text_is_an_error() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"^E-TOKENIZER: .*no end-of-text token"):
        form_of(tokenizer, COLUMNS["text"])


def test_a_template_may_be_a_file(tmp_path: Any) -> None:
    (tmp_path / "chat.jinja").write_text(CHATML)
    assert read_template(str(tmp_path / "chat.jinja")) == read_template(CHATML) == CHATML
    with pytest.raises(InputError, match=r"^E-CHAT: data\.chat_template=no\.jinja: no template, and not a file"):
        read_template("no.jinja")


GIVEN: dict[str, list[tuple[Any, Any]]] = {
    "text": [("a b", {"t": "a b"}), ({"t": "a b", "id": 3}, {"t": "a b"})],
    "prompt": [("a b", {"p": "a b"}), ({"p": "a b", "c": "an answer"}, {"p": "a b"})],
    "chat": [
        ("a b", {"m": [{"role": "user", "content": "a b"}]}),
        ([{"role": "user", "content": "a b"}], {"m": [{"role": "user", "content": "a b"}]}),
        ({"m": CHAT}, {"m": CHAT[:-1]}),
        ({"m": CHAT, "tools": TOOLS}, {"m": CHAT[:-1]}),  # the run knows no such column
        ({"m": "User: a\nAssistant: b"}, {"m": [{"role": "user", "content": "a"}]}),
    ],
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_to_predict_becomes_a_record(name: str) -> None:
    form = make(name)
    for given, record in GIVEN[name]:
        assert form.record(given) == record


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("given", [3, None, {"other": "a"}, {"t": 3, "p": 3, "m": 3}, [{"role": "assistant"}]])
def test_what_is_no_input_is_an_error_that_shows_it(name: str, given: Any) -> None:
    with pytest.raises(InputError, match=r"^E-INPUT"):
        make(name).record(given)


def test_an_example_is_how_a_row_begins_and_how_it_goes_on() -> None:
    text = "the quick brown fox jumps over the lazy dog"
    record, rest = make("text").example({"t": text})
    assert record["t"] + rest == text and record["t"] == "the quick brown fox"
    assert make("prompt").example({"p": "a", "c": "b"}) == ({"p": "a"}, "b")
    assert make("chat").example({"m": CHAT}) == ({"m": CHAT[:-1]}, "no, the fox\nit is")
