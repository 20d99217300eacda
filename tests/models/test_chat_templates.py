"""A chat template that loops, or makes more and more, is stopped; one that does not is as it was."""

import sys
import threading

import pytest
from jinja2 import TemplateError

from loralight.data.forms.chats import Chat
from loralight.errors import InputError
from loralight.models import chat_templates
from loralight.models.chat_templates import EndlessError, bounded, check_template

from ..tasks.text_generation.conftest import CHATML, MARKED, make_tokenizer

CHAT = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "a fine day"}]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "loops in loops": LOOPS,
    "a loop that keeps nothing": LOOPS.replace(" %}{% endfor", " if b < 0 %}{% endfor", 1),
    "long filters": "{% for a in range(99999) %}{{ range(99999)|map('string')|join|length }}{% endfor %}",
    "a macro that asks for itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "within the assistant's turn": f"{{% generation %}}{LOOPS}{{% endgeneration %}}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(name: str) -> None:
    with pytest.raises(EndlessError, match="it goes on for more than"), bounded(seconds=0.2):
        make_tokenizer(ENDLESS[name]).apply_chat_template(CHAT, tokenize=False)


def test_threads_are_stopped_each_by_itself() -> None:
    found: list[str] = []

    def work() -> None:
        with pytest.raises(EndlessError), bounded(seconds=0.2):
            make_tokenizer(ENDLESS["loops in loops"]).apply_chat_template(CHAT, tokenize=False)
        found.append("stopped")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    with bounded():
        text = make_tokenizer(CHATML).apply_chat_template(CHAT, tokenize=False)
    for thread in threads:
        thread.join()
    assert found == ["stopped"] * 2
    assert text == make_tokenizer(CHATML).apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_an_honest_template_writes_what_it_did_and_leaves_no_trace(template: str) -> None:
    before = sys.gettrace()
    plain = make_tokenizer(template).apply_chat_template(CHAT * 100, tokenize=False)
    with bounded():
        assert make_tokenizer(template).apply_chat_template(CHAT * 100, tokenize=False) == plain
    assert sys.gettrace() is before


@pytest.mark.parametrize("template", ["{{ 9 ** 9 ** 9 }}", "{% if (2)**(10) %}{% endif %}", "x" * 2**21])
def test_what_would_take_for_ever_at_once_is_refused_unread(template: str) -> None:
    with pytest.raises(TemplateError):
        check_template(template)
    with pytest.raises(InputError, match=r"^E-CHAT: the chat template: "):
        Chat(make_tokenizer(template), {"messages": "messages"}, template=None)


@pytest.mark.parametrize(
    "template",
    ["{{ 'a' * 9999999 * 9999999 }}", "{{ 1 // 0 }}", "{{ range(9999999) }}", "{{ a.b.c }}", "{% for %"],
)
def test_whatever_a_template_raises_is_one_message(template: str) -> None:
    chat = Chat(make_tokenizer(CHATML), {"messages": "messages"}, template=template)
    with pytest.raises(InputError, match=r"^E-CHAT: .*the chat template refuses this chat: "):
        chat.prompt({"messages": CHAT[:1]})


def test_a_template_that_takes_more_and_more_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "_GIGABYTE", chat_templates._GIGABYTE // 16)
    doubling = "{% set all = namespace(x='a') %}{% for n in range(60) %}{% set all.x = all.x ~ all.x %}{% endfor %}"
    with pytest.raises(EndlessError, match="it takes more and more memory"), bounded(seconds=60):
        make_tokenizer(doubling).apply_chat_template(CHAT, tokenize=False)
