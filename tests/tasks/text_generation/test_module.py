"""The loss is that of transformers, documents do not see one another, and what is trained writes and is exported."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import sacrebleu
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import loralight
from loralight.acceleration import FusedRMSNorms
from loralight.adapters import FullFineTuning, Lora, merge
from loralight.adapters.base import trainable
from loralight.errors import InputError
from loralight.kernels import linear as kernels
from loralight.kernels.rms_norm import FusedRMSNorm, is_rms_norm
from loralight.reports.answers import read_answers
from loralight.reports.runs import read_run
from loralight.tasks.text_generation import TextGeneration
from loralight.tasks.text_generation.data import IGNORED

from .conftest import FAMILIES, WORDS

DOCUMENTS = [[5, 9, 17, 30, 8, 77], [40, 41, 42], [9, 9, 200, 3, 4], [120, 121, 122, 123], [66, 7]]
ROWS = [[0, 1], [2], [3, 4, 1]]
NONE = {("Gemma2", "sdpa")}  # whose capped attention has no such implementation


def make(checkpoint: str, *, adapter: Any = None, **arguments: Any) -> TextGeneration:
    """A task with its model built, whose adapter does something already."""
    torch.manual_seed(0)
    adapter = adapter or Lora(targets="all-linear", rank=4)
    task = TextGeneration(checkpoint=checkpoint, adapter=adapter, **{"columns": {"text": "text"}, **arguments})
    task.configure_model()
    for name, parameter in trainable(task.model).items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.2)
    task.eval()
    return task


def batch_of(rows: list[list[int]], *, learnt: Callable[[int], bool] = lambda at: True) -> dict[str, Tensor]:
    """Packed rows of `DOCUMENTS`, padded on the right; ``learnt`` says which positions of a document are."""
    made: dict[str, list[list[int]]] = {"input_ids": [], "targets": [], "position_ids": []}
    longest = max(sum(len(DOCUMENTS[document]) for document in row) for row in rows)
    for row in rows:
        ids, targets, positions = list[int](), list[int](), list[int]()
        for document in row:
            tokens = DOCUMENTS[document]
            ids += tokens
            targets += [token if learnt(at) else IGNORED for at, token in enumerate(tokens[1:])] + [IGNORED]
            positions += range(len(tokens))
        rest = longest - len(ids)
        made["input_ids"].append(ids + [0] * rest)
        made["targets"].append(targets + [IGNORED] * rest)
        made["position_ids"].append(positions + [positions[-1] + 1 + at for at in range(rest)])
    return {name: torch.tensor(values) for name, values in made.items()}


def loss_of_transformers(model: PreTrainedModel, document: list[int]) -> Tensor:
    """Summed over the tokens of one document, by the model's own loss."""
    ids = torch.tensor([document])
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss * (len(document) - 1)


def gradients(task: TextGeneration) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainable(task.model).items() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "attention"),
    [(family, attention) for family in FAMILIES for attention in ("sdpa", "eager") if (family, attention) not in NONE],
)
def test_packed_documents_have_the_loss_and_gradients_that_each_has_alone(
    language_model: Callable[..., str], family: str, attention: str
) -> None:
    task = make(language_model(family))
    task.model.set_attn_implementation(attention)
    step = task.step(batch_of(ROWS))
    step.loss.backward()  # type: ignore[no-untyped-call]
    together = gradients(task)
    task.zero_grad()
    documents = [DOCUMENTS[document] for row in ROWS for document in row]
    count = sum(len(document) - 1 for document in documents)
    alone = sum((loss_of_transformers(task.model, document) for document in documents), torch.zeros(())) / count
    alone.backward()  # type: ignore[no-untyped-call]
    assert len(step.targets) == count
    torch.testing.assert_close(step.loss, alone, rtol=1e-5, atol=1e-5)
    assert together.keys() == trainable(task.model).keys()
    for name, expected in gradients(task).items():
        torch.testing.assert_close(together[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_model_s_own_at_the_positions_that_are_learnt(
    language_model: Callable[..., str], family: str
) -> None:
    task = make(language_model(family))
    batch = batch_of(ROWS, learnt=lambda at: at % 2 == 1)
    learnt = batch["targets"] != IGNORED
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        expected = task.model(**inputs, use_cache=False).logits[learnt]
        step = task.step(batch)
    losses = torch.nn.functional.cross_entropy(expected, batch["targets"][learnt], reduction="none")
    torch.testing.assert_close(step.predictions, losses)
    assert step.targets.tolist() == (expected.argmax(-1) == batch["targets"][learnt]).tolist()
    assert 0 < learnt.sum() < sum(map(len, DOCUMENTS))


@pytest.mark.parametrize("family", ["Llama", "Granite", "Gemma2"])
def test_norms_are_one_kernel_on_a_gpu_in_training_alone(
    language_model: Callable[..., str], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_PROCESSORS", ())  # a GPU's way, computed here
    task = make(language_model(family), accelerations={"rms_norm": FusedRMSNorms()})
    found = {}
    for mode in (False, True):
        task.train(mode).zero_grad()
        step = task.step(batch_of(ROWS))
        step.loss.backward()  # type: ignore[no-untyped-call]
        found[mode] = {"loss": step.loss.detach(), **gradients(task)}
    for name, expected in found[False].items():
        torch.testing.assert_close(found[True][name], expected, rtol=1e-4, atol=1e-5)
    norms = [module for module in task.model.modules() if is_rms_norm(module)]
    is_plain = family != "Gemma2"  # which multiplies with its weight and 1
    assert {isinstance(norm, FusedRMSNorm) for norm in norms} == {is_plain}
    assert not any(isinstance(module, FusedRMSNorm) for module in task.eval().modules())


def test_a_batch_without_anything_to_learn_has_no_loss_and_harmless_gradients(tiny_llama: str) -> None:
    task = make(tiny_llama)
    step = task.step(batch_of(ROWS, learnt=lambda at: False))
    step.loss.backward()  # type: ignore[no-untyped-call]
    assert float(step.loss.detach()) == 0 and len(step.targets) == 0
    found = gradients(task)
    assert found.keys() == trainable(task.model).keys()
    assert not any(gradient.any() for gradient in found.values())


def test_a_model_that_lets_packed_documents_see_one_another_is_an_error(language_model: Callable[..., str]) -> None:
    sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    task = make(language_model("Bloom", **sizes))
    with pytest.raises(InputError, match=r"^E-PACKED: BloomForCausalLM lets documents .* set data\.packed=false"):
        task.step(batch_of(ROWS))
    batch = batch_of([[0], [2], [4]])
    del batch["position_ids"]
    step = task.step(batch)
    expected = sum(loss_of_transformers(task.model, DOCUMENTS[document]).item() for document in (0, 2, 4))
    assert step.loss.item() * len(step.targets) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adapter", [Lora(targets="all-linear", rank=2), FullFineTuning()])
@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_a_tied_weight_stays_tied_through_training_saving_and_loading(
    language_model: Callable[..., str], family: str, adapter: Any, tmp_path: Path
) -> None:
    def is_tied(task: Any) -> bool:
        model = task.model
        return model.get_input_embeddings().weight is model.get_output_embeddings().weight

    task = make(language_model(family), adapter=adapter).train()
    assert is_tied(task)
    optimizer = torch.optim.AdamW(trainable(task.model).values(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        task.step(batch_of(ROWS)).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    task.save(tmp_path / "adapter")
    loaded = loralight.load(tmp_path / "adapter", device="cpu")
    assert is_tied(task) and is_tied(loaded) and is_tied(type("Copy", (), {"model": copy.deepcopy(task.model)}))
    task.eval()
    with torch.no_grad():
        assert torch.equal(loaded.step(batch_of(ROWS)).loss, task.step(batch_of(ROWS)).loss)
    merge(task.model)
    assert is_tied(task)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_was_trained_and_computes_the_same(
    language_model: Callable[..., str], family: str, tmp_path: Path
) -> None:
    checkpoint = language_model(family)
    task = make(checkpoint)
    task.save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), str(tmp_path / "adapter"))
    assert isinstance(theirs, peft.PeftModelForCausalLM)
    ids = torch.tensor([DOCUMENTS[0]])
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(ids).logits, task.model(ids).logits, rtol=1e-5, atol=1e-5)


def test_predictions_say_what_was_given_what_follows_and_why_it_ends(tiny_llama: str) -> None:
    task = make(tiny_llama, columns={"prompt": "frage", "completion": "antwort"}, join=" ")
    given = ["what is it?", {"frage": "the dog?", "antwort": "yes", "id": 3}, "the quick brown fox"]
    answers = task.predict(given, max_new_tokens=8)
    assert [answer["frage"] for answer in answers] == ["what is it?", "the dog?", "the quick brown fox"]
    assert all(answer.keys() == {"frage", "completion", "finish"} for answer in answers)
    ids = task.tokenizer("what is it? ", return_tensors="pt")
    written = task.model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
    assert answers[0]["completion"] == task.tokenizer.decode(
        written[ids["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert answers == task.predict(given, batch_size=1, max_new_tokens=8)
    assert json.loads(json.dumps(answers)) == answers


def test_a_chat_is_answered_until_the_assistant_s_turn_ends(tiny_llama: str) -> None:
    task = make(tiny_llama, columns={"messages": "messages"})
    messages = [{"role": "user", "content": "what is it?"}]
    found = task.predict(["what is it?", messages, {"messages": messages}], max_new_tokens=8)
    assert found[0] == found[1] == found[2] and found[0]["messages"] == messages
    end = task.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in task._writer().ends and task.tokenizer.eos_token_id in task._writer().ends
    assert "".join(task.stream("what is it?", max_new_tokens=8)) == found[0]["completion"]


def test_text_metrics_of_plain_texts_are_an_error(tiny_llama: str) -> None:
    with pytest.raises(InputError, match=r"^E-METRIC: task\.text_metrics=\['bleu'\] compares answers"):
        make(tiny_llama, text_metrics=["bleu"])


@pytest.mark.parametrize(
    ("name", "count"),
    [("samples", -1), ("sample_tokens", 0), ("text_metrics_rows", 0), ("text_metrics_tokens", -3)],
)
def test_samples_and_answers_of_no_size_are_an_error(tiny_llama: str, name: str, count: int) -> None:
    with pytest.raises(InputError, match=rf"^E-SAMPLES: task\.{name}={count}: give [01] or more"):
        make(tiny_llama, **{name: count})


@pytest.fixture
def small_run(language_model: Callable[..., str], tmp_path: Path) -> list[str]:
    """Overrides for a run of seconds on prompts with completions, some prompts with several."""
    for split, count in {"train": 60, "validation": 12, "test": 12}.items():
        rows = [{"prompt": WORDS[n % 8], "completion": f"{WORDS[n % 8 + 1]} {WORDS[n % 5]}"} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        *("task=text_generation", "data=text_generation", "data.path=.", "data.batch_size=4", "trainer=cpu"),
        *(f"model.checkpoint='{language_model('GPT2')}'", "model.max_length=32", "optimizer.lr=0.02"),
        *("trainer.max_epochs=2", "task.sample_tokens=6", "hydra.run.dir=run"),
    ]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("warm_ranks")
def test_sharded_weights_write_and_score_what_whole_ones_do(
    small_run: list[str], tiny_llama: str, in_process: Callable[..., int], tmp_path: Path
) -> None:
    line = [*small_run[:-1], f"model.checkpoint='{tiny_llama}'", "trainer.max_epochs=1", "data.packed=null"]
    line += ["task.text_metrics=[chrf]", "task.text_metrics_tokens=6"]
    assert in_process("train", *line, "hydra.run.dir=one") == 0
    several = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]
    assert in_process("train", *line, *several, "hydra.run.dir=two") == 0
    one, two = (json.loads((tmp_path / name / "summary.json").read_text())["metrics"] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-3) and one["validation/chrf"] > 0
    assert not (tmp_path / "two" / "samples.jsonl").exists()


def test_a_run_says_what_the_model_wrote_and_scored_before_and_after(
    small_run: list[str],
    language_model: Callable[..., str],
    in_process: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = ["task.text_metrics=[bleu,rouge,chrf]", "task.text_metrics_tokens=6"]
    assert in_process("train", *small_run, *metrics) == 0
    printed = capsys.readouterr().out
    assert "samples, before training and after" in printed
    assert "validation, before training and after" in printed
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, lines[1]["step"], 2 * lines[1]["step"]]
    assert all(len(line["samples"]) == 3 for line in lines)

    # the first line is of the pretrained model, the last of the trained one, as transformers and sacreBLEU see them
    base = TextGeneration(
        checkpoint=language_model("GPT2"),
        columns={"prompt": "prompt", "completion": "completion"},
        adapter=Lora(targets="all-linear"),
    )
    base.configure_model()
    base.eval()
    trained = loralight.load(tmp_path / "run", device="cpu")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    references = [[row["completion"] for row in rows if row["prompt"] == prompt] for prompt in prompts]
    streams = [[found[at] if at < len(found) else None for found in references] for at in range(2)]
    for task, scores in ((base, lines[0]["scores"]), (trained, summary["metrics"])):
        scores = {name.removeprefix("validation/"): value for name, value in scores.items()}
        texts = [answer["completion"].strip() for answer in task.predict(prompts, max_new_tokens=6)]
        assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score, abs=1e-3)
        loss, count = 0.0, 0
        for row in rows:
            prompt, answer = (task.tokenizer(text)["input_ids"] for text in (f"{row['prompt']}\n", row["completion"]))
            ids = torch.tensor([[*prompt, *answer, task.tokenizer.eos_token_id]])
            labels = ids.clone()
            labels[0, : len(prompt)] = -100
            with torch.no_grad():
                loss += float(task.model(input_ids=ids, labels=labels).loss) * (len(answer) + 1)
            count += len(answer) + 1
        assert scores["perplexity"] == pytest.approx(torch.tensor(loss / count).exp().item(), rel=1e-4)
    assert summary["metrics"]["validation/perplexity"] < lines[0]["scores"]["perplexity"] / 2
    written = [answer["completion"] for answer in base.predict(prompts[:3], max_new_tokens=6)]
    assert [sample["written"] for sample in lines[0]["samples"]] == written
    kept = read_answers(read_run(tmp_path / "run"))  # of the final weights, for reports
    assert kept is not None and [row.input for row in kept.rows.values()] == prompts[:3]
    last = [answer["completion"] for answer in trained.predict(prompts[:3], max_new_tokens=6)]
    assert (kept.kind, [row.given for row in kept.rows.values()]) == ("text", last)
    assert {"test/bleu", "test/rougeL", "test/chrf"} <= summary["metrics"].keys()


def test_samples_change_nothing_and_can_be_left_out(
    small_run: list[str], in_process: Callable[..., int], tmp_path: Path
) -> None:
    results = []
    for samples in (0, 2):
        assert in_process("train", *small_run, f"task.samples={samples}", f"hydra.run.dir=run{samples}") == 0
        results.append(json.loads((tmp_path / f"run{samples}" / "summary.json").read_text())["metrics"])
    assert results[0] == results[1]
    assert not (tmp_path / "run0" / "samples.jsonl").exists()
    assert len(lines_of(tmp_path / "run2")) == 3


def test_a_resumed_run_keeps_what_was_written_before_training(
    small_run: list[str], in_process: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *small_run, "trainer.max_epochs=1") == 0
    before = lines_of(tmp_path / "run")
    log = tmp_path / "run" / "train.log"
    assert "before training: measures the pretrained model" in log.read_text().partition("epoch 1/1")[0]
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
    after = lines_of(tmp_path / "run")
    assert after[:2] == before and len(after) == 3
    assert capsys.readouterr().out.count("samples, before training and after") == 2


def test_the_command_line_predicts_with_options_and_streams(
    small_run: list[str], in_process: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *small_run, "trainer.max_epochs=1", "task.samples=0") == 0
    (tmp_path / "in.txt").write_text("the\nquick\n")
    options = ["options.max_new_tokens=5", "options.temperature=0.7", "options.stop=['fox']"]
    capsys.readouterr()
    assert in_process("predict", "run=run", "input=in.txt", *options) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["the", "quick"]
    assert in_process("predict", "run=run", "input=in.txt", "stream=true", *options) == 0
    assert capsys.readouterr().out == "".join(f"{answer['completion']}\n" for answer in answers)
    assert in_process("predict", "run=run", "input=in.txt", "options.temprature=1") == 2
    assert "Did you mean 'temperature'?" in capsys.readouterr().err
    assert in_process("evaluate", "run=run", "data.path=.", "split=validation") == 0
