"""A trained adapter comes back from its folder alone, and predicts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import loralight
from loralight.adapters import Lora
from loralight.artifacts.export import save_adapter
from loralight.errors import InputError
from loralight.tasks.text_classification import TextClassification

TEXTS = ["a fine film", "dull", "we hated every minute of it, every single one", "what a joy"]


@pytest.fixture(scope="module")
def make(tiny_bert: str) -> Callable[..., Path]:
    """Writes the folder of an adapter for the tiny BERT, as after training."""

    def adapter(folder: Path, **arguments: Any) -> Path:
        own = {"checkpoint": tiny_bert, "labels": ["bad", "good"], "max_length": 16, **arguments}
        lora = {"targets": "all-linear", "rank": 2}
        task = TextClassification(**own, adapter=Lora(**lora))
        task.configure_model()
        for tensor in task.trainable_tensors().values():
            torch.nn.init.normal_(tensor, std=0.5)
        recipe = {
            "task": {"name": "text_classification", "arguments": own},
            "adapter": {"name": "lora", "arguments": lora},
        }
        save_adapter(task, folder, recipe=recipe, metrics={})
        return folder

    return adapter


@pytest.fixture(scope="module")
def adapter(make: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("loaded") / "run" / "adapter")


def probabilities(answers: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([list(answer["probabilities"].values()) for answer in answers])


def test_the_function_stays_a_function_whatever_is_imported(adapter: Path) -> None:
    import loralight.artifacts.loading
    import loralight.commands.predict

    assert loralight.load(adapter).predict(TEXTS) == loralight.load(adapter).predict(TEXTS)


def test_a_run_and_its_adapter_s_folder_are_the_same_to_load(adapter: Path) -> None:
    run = loralight.load(adapter.parent)
    assert run.predict(TEXTS) == loralight.load(str(adapter)).predict(TEXTS)
    assert not run.training


def test_texts_tuples_and_records_are_answered_alike_in_their_order(adapter: Path) -> None:
    task = loralight.load(adapter)
    answers = task.predict(TEXTS)
    assert [answer["text"] for answer in answers] == TEXTS
    assert task.predict([(text,) for text in TEXTS]) == answers
    assert task.predict([{"text": text, "id": 3} for text in TEXTS]) == answers
    # a model so small tells texts apart in the last printed digits alone, where two can meet
    assert len({answer["probabilities"]["good"] for answer in answers}) > 1
    for answer in answers:
        assert answer.keys() == {"text", "label", "probabilities"}
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].__getitem__)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert json.loads(json.dumps(answers)) == answers  # as a line of JSON


def test_pairs_are_taken_as_tuples_and_as_records(make: Callable[..., Path], tmp_path: Path) -> None:
    task = loralight.load(make(tmp_path / "adapter", text_columns=["question", "answer"]))
    answers = task.predict([("is it?", "it is"), ("who?", "me")])
    assert task.predict([{"answer": "it is", "question": "is it?"}, {"question": "who?", "answer": "me"}]) == answers
    assert [answer["answer"] for answer in answers] == ["it is", "me"]


def test_a_label_list_is_predicted_where_a_row_may_have_several(make: Callable[..., Path], tmp_path: Path) -> None:
    answers = loralight.load(make(tmp_path / "adapter", multi_label=True)).predict(TEXTS)
    for answer in answers:
        assert answer["label"] == [name for name, p in answer["probabilities"].items() if p >= 0.5]


def test_no_inputs_give_no_answers(adapter: Path) -> None:
    assert loralight.load(adapter).predict([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_answers_do_not_depend_on_the_batch_size(adapter: Path, batch_size: int) -> None:
    task = loralight.load(adapter)
    one_by_one = [answer for text in TEXTS for answer in task.predict([text])]
    found = task.predict(TEXTS, batch_size=batch_size)
    assert [answer["label"] for answer in found] == [answer["label"] for answer in one_by_one]
    torch.testing.assert_close(probabilities(found), probabilities(one_by_one), rtol=0, atol=5e-6)


def test_a_batch_size_of_none_is_an_error(adapter: Path) -> None:
    with pytest.raises(InputError, match=r"^E-BATCH: batch_size is 0; give at least 1"):
        loralight.load(adapter).predict(TEXTS, batch_size=0)


def test_one_text_that_is_not_in_a_list_is_an_error_and_not_a_list_of_letters(adapter: Path) -> None:
    with pytest.raises(InputError, match=r"^E-INPUT: .*give a list of inputs"):
        loralight.load(adapter).predict("a fine film")


def test_predicting_leaves_a_task_in_the_mode_it_was_in(adapter: Path) -> None:
    task = loralight.load(adapter)
    quiet = task.predict(TEXTS)
    task.train()
    assert task.predict(TEXTS) == quiet  # dropout is off meanwhile
    assert task.training
    with pytest.raises(InputError, match="E-INPUT"):
        task.predict([None])
    assert task.training


def test_the_base_model_may_have_moved(make: Callable[..., Path], tiny_bert: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for file in Path(tiny_bert).iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    folder = make(tmp_path / "adapter", checkpoint=str(old))
    before = loralight.load(folder).predict(TEXTS)
    old.rename(new)
    with pytest.raises(InputError, match=rf"^E-MODEL: .*{old}"):
        loralight.load(folder)
    assert loralight.load(folder, base=str(new)).predict(TEXTS) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": "nowhere"}, "E-RUN: .*nowhere: there is no such folder"),
        ({"folder": "empty"}, "E-ADAPTER: .*empty is no adapter folder of loralight: it has no loralight.json"),
        ({"folder": "file"}, "E-RUN: .*file: there is no such folder"),
        ({"device": "gpu0"}, "E-DEVICES: device=gpu0: "),
        ({"base": "./nowhere"}, "E-MODEL: .*nowhere"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(
    adapter: Path, tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    folder = tmp_path / arguments["folder"] if "folder" in arguments else adapter
    with pytest.raises(InputError, match=f"^{message}"):
        loralight.load(folder, **{key: value for key, value in arguments.items() if key != "folder"})
