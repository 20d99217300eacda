"""Texts are continued as transformers would, in any company, to the right end, and drawn with the right odds."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from loralight.adapters import Lora
from loralight.errors import InputError
from loralight.tasks.text_generation import TextGeneration
from loralight.tasks.text_generation.generation import Decoding, Writer

from .conftest import FAMILIES

PROMPTS = ["the quick brown fox", "what", "it is a fine day! what is it? it is"]


def decoding(**options: Any) -> Decoding:
    plain = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    return Decoding(**{**plain, "stop": (), "seed": 0, **options})


@pytest.fixture
def writer(tiny_llama: str) -> Writer:
    return make(tiny_llama)


def make(folder: str) -> Writer:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return Writer(model.eval(), AutoTokenizer.from_pretrained(folder), ())


def ids(writer: Writer, texts: list[str]) -> list[list[int]]:
    return [writer.tokenizer(text)["input_ids"] for text in texts]


@torch.no_grad()
def step_by_step(writer: Writer, prompt: list[int], count: int, penalty: float = 1.0) -> str:
    """The likeliest continuation by its definition: no cache, no batch, no ``generate``."""
    text = list(prompt)
    for _ in range(count):
        scores = writer.model(torch.tensor([text])).logits[0, -1]
        seen = torch.tensor(sorted(set(text)))
        scores[seen] = torch.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        text.append(int(scores.argmax()))
        if text[-1] in writer.ends:
            text.pop()
            break
    return str(writer.tokenizer.decode(text[len(prompt) :]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_continuation_is_written_in_any_company(language_model: Callable[..., str], family: str) -> None:
    writer = make(language_model(family))
    prompts = ids(writer, PROMPTS)
    together = [text for text, _ in writer.write(prompts, decoding())]
    assert together == [writer.write([prompt], decoding())[0][0] for prompt in prompts]
    assert together == [step_by_step(writer, prompt, 12) for prompt in prompts]


def test_repetition_is_penalised_without_looking_at_padding(writer: Writer) -> None:
    prompts = ids(writer, PROMPTS)
    found = [text for text, _ in writer.write(prompts, decoding(repetition_penalty=1.8))]
    assert found == [step_by_step(writer, prompt, 12, penalty=1.8) for prompt in prompts]
    assert found != [text for text, _ in writer.write(prompts, decoding())]


def test_draws_are_reproducible_and_do_not_depend_on_the_company(writer: Writer) -> None:
    prompts = ids(writer, PROMPTS)
    hot = decoding(temperature=2.0, seed=3)
    state = torch.get_rng_state()
    together = writer.write(prompts, hot)
    assert torch.equal(torch.get_rng_state(), state), "training's randomness is left alone"
    assert together == [writer.write([prompt], hot)[0] for prompt in prompts]
    assert together == writer.write(prompts, hot)
    assert together != writer.write(prompts, decoding(temperature=2.0, seed=4))


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 0.6, 0), (2.0, 1.0, 5)])
@torch.no_grad()
def test_tokens_are_drawn_with_the_probabilities_that_the_options_say(
    writer: Writer, temperature: float, top_p: float, top_k: int
) -> None:
    (prompt,) = ids(writer, PROMPTS[:1])
    options = decoding(max_new_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k)
    logits = writer.model(torch.tensor([prompt])).logits[:, -1]
    wanted = (logits[0] / temperature).softmax(-1)
    if top_k:
        wanted[wanted.argsort(descending=True)[top_k:]] = 0
    order = wanted.argsort(descending=True)
    kept = int((wanted[order].cumsum(0) < top_p).sum()) + 1  # the fewest that have top_p together
    wanted[order[kept:]] = 0
    wanted = wanted / wanted.sum()
    count = 4000
    drawn = Counter[int]()
    for seed in range(count):
        drawn[int(replace(options, seed=seed).processors([prompt])(torch.tensor([prompt]), logits).argmax())] += 1
    found = torch.tensor([drawn[token] / count for token in range(len(wanted))])
    assert float((found - wanted).abs().sum()) / 2 < 0.07  # total variation distance
    assert not found[wanted == 0].any()


def test_the_end_of_text_ends_it(writer: Writer) -> None:
    prompts = ids(writer, PROMPTS[:1])
    ((whole, finish),) = writer.write(prompts, decoding())
    assert finish == "length"
    tokens = ids_of_transformers(writer, prompts[0])
    third = tokens[2]
    first = tokens.index(third)
    ended = Writer(writer.model, writer.tokenizer, [third])
    text, finish = ended.write(prompts, decoding())[0]
    assert finish == "stop" and text == writer.tokenizer.decode(tokens[:first]) and whole.startswith(text)


def ids_of_transformers(writer: Writer, prompt: list[int]) -> list[int]:
    made = writer.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    return [int(token) for token in made[0, len(prompt) :]]


@pytest.mark.parametrize("start", [1, 3, 6])
def test_a_stop_text_ends_it_and_is_left_out(writer: Writer, start: int) -> None:
    prompts = ids(writer, PROMPTS)
    wholes = writer.write(prompts, decoding())
    phrase = wholes[0][0][start : start + 2]
    found = writer.write(prompts, decoding(stop=["not there", phrase]))
    assert found == [(text[: text.index(phrase)], "stop") if phrase in text else (text, why) for text, why in wholes]
    assert found != wholes


def test_an_answer_stays_within_the_model_s_positions(language_model: Callable[..., str]) -> None:
    writer = make(language_model("GPT2"))
    writer.model.generation_config.suppress_tokens = writer.ends  # random weights differ by transformers' version
    prompts = [[5] * 120, [6] * 3, [7] * 127]
    texts = writer.write(prompts, decoding(max_new_tokens=20))
    assert [finish for _, finish in texts] == ["length"] * 3
    for prompt, room, text in zip(prompts, (8, 20, 1), texts, strict=True):
        assert writer.write([prompt], decoding(max_new_tokens=room)) == [text]
    with pytest.raises(InputError, match=r"^E-SEQ-LEN: the prompt .* has 128 tokens; the model takes 128"):
        writer.write([[5] * 128], decoding())


def test_a_prompt_without_tokens_is_an_error(writer: Writer) -> None:
    with pytest.raises(InputError, match=r"^E-INPUT: there is nothing to continue"):
        writer.write([[]], decoding())


def test_the_model_s_own_taste_in_sampling_is_no_matter(writer: Writer) -> None:
    prompts = ids(writer, PROMPTS)
    expected = writer.write(prompts, decoding())
    writer.model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=2.0, max_length=5, eos_token_id=writer.ends
    )
    assert writer.write(prompts, decoding()) == expected


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5}, {"stop": ["\n"]}, {"repetition_penalty": 1.5}])
def test_a_stream_is_what_is_written_in_pieces(writer: Writer, options: dict[str, Any]) -> None:
    for prompt in ids(writer, PROMPTS):
        ((text, _),) = writer.write([prompt], decoding(**options))
        assert "".join(writer.stream(prompt, decoding(**options))) == text


def test_a_stream_never_shows_the_beginning_of_a_stop_text(writer: Writer) -> None:
    (prompt,) = ids(writer, PROMPTS[:1])
    ((whole, _),) = writer.write([prompt], decoding())
    phrase = whole[4:9]
    pieces = list(writer.stream(prompt, decoding(stop=[phrase])))
    assert "".join(pieces) == whole[: whole.index(phrase)] and all(pieces)


@pytest.mark.parametrize("size", [1, 4, 9, 1000])
def test_what_opens_each_answer_is_left_out_of_a_text_and_of_its_stream(writer: Writer, size: int) -> None:
    (prompt,) = ids(writer, PROMPTS[:1])
    ((whole, _),) = writer.write([prompt], decoding())
    for opening, rest in ((whole[:size], whole[size:]), (whole[: size - 1] + "?", whole)):
        writer.opening = opening
        assert writer.write([prompt], decoding())[0][0] == rest == "".join(writer.stream(prompt, decoding()))


def test_a_stream_that_nobody_listens_to_ends(writer: Writer) -> None:
    (prompt,) = ids(writer, PROMPTS[:1])
    stream = writer.stream(prompt, decoding(max_new_tokens=100))
    next(stream)
    stream.close()  # would wait for a hundred tokens, or for ever
    assert "".join(writer.stream(prompt, decoding())) == writer.write([prompt], decoding())[0][0]


def test_a_failure_while_streaming_reaches_the_listener(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(writer.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(writer.stream([5, 6], decoding()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, r"options\.max_new_tokens is 0; give at least 1"),
        ({"temperature": -1.0}, r"options\.temperature is -1\.0; give 0 or more"),
        ({"temperature": float("nan")}, r"options\.temperature is nan"),
        ({"top_p": 0.0}, r"options\.top_p is 0\.0; give a probability above 0"),
        ({"top_p": 1.5}, r"options\.top_p is 1\.5"),
        ({"top_k": -1}, r"options\.top_k is -1"),
        ({"repetition_penalty": 0.0}, r"options\.repetition_penalty is 0\.0"),
        ({"stop": ["", "a"]}, r"options\.stop is \['', 'a'\]; give a list of texts, none of them empty"),
        ({"stop": "ab"}, r"options\.stop is 'ab'; give a list of texts"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^E-OPTION: {message}"):
        decoding(**options)


RWKV = {"attention_hidden_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}


@pytest.mark.parametrize(("family", "changes"), [("Rwkv", RWKV), ("GPT2", {})])
def test_a_text_is_continued_the_same_in_any_company(
    family: str, changes: dict[str, Any], language_model: Callable[..., str]
) -> None:
    task = TextGeneration(checkpoint=language_model(family, **changes), adapter=Lora(targets="all-linear", rank=2))
    task.configure_model()
    prompts = ["the quick", "what is it? it is a fine", "dog"]
    alone = [task.predict([prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert task.predict(prompts, max_new_tokens=6) == alone
