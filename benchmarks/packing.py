"""A language model's step on rows that documents share: beside PEFT, whose attention masks what is outside a document.

    python benchmarks/packing.py [--quick]

The demo of text generation: SmolLM2 of 135 million parameters, two rows of up to 512 tokens, float32 on one thread,
LoRA of rank 8 on every linear layer, AdamW included. Both sides get the same packed batches and begin at the same
weights; that their losses and gradients are equal is checked first. Ours also beside itself with a mask.
"""

import argparse
import copy
from collections.abc import Callable
from itertools import islice
from typing import Any

import padding
import torch
from padding import Batches, in_peft, make_task, ours
from peft import LoraConfig, TaskType, get_peft_model
from side_by_side import Ratio, Row, in_turns, peak_memory, ratio, show
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loralight.acceleration import packed_documents as documents
from loralight.adapters import LoraLayer
from loralight.adapters.base import trainable
from loralight.config.build import build_data
from loralight.config.composition import compose, plain
from loralight.models.pretrained import load_model

DEMO = ("task=text_generation", "adapter=lora", "adapter.rank=8", "trainer=cpu", "~callbacks", "~logger")


def make_peer(task: Any) -> nn.Module:
    """PEFT's side, from the same checkpoint with the same weights."""
    names = [name for name, module in task.model.named_modules() if isinstance(module, LoraLayer)]
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules=names)
    model: nn.Module = get_peft_model(load_model(AutoModelForCausalLM, task.checkpoint), lora)
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in trainable(task.model).items():
            theirs[in_peft(name)].copy_(tensor)
    return model


def theirs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of PEFT's model; transformers shifts labels itself."""
    labels = nn.functional.pad(batch["targets"], (1, 0), value=-100)[:, :-1]
    inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
    loss: Tensor = model(**inputs, labels=labels, use_cache=False).loss
    return loss


def steps(model: nn.Module, loss_of: Callable[[Any, Any], Tensor], batches: Batches) -> Callable[[], None]:
    """A call that makes one optimizer step on each batch."""
    return padding.steps(model, loss_of, batches, has_dropout=False)


def our_side(count: int) -> tuple[Any, Batches]:
    """The task, and the first batches of the epoch."""
    config = plain(compose("train", list(DEMO)))
    data = build_data(config)
    batches = list(islice(data.train_dataloader(), count))
    assert all("position_ids" in batch for batch in batches), "documents share rows"
    return make_task(config, data), batches


def with_mask(task: Any) -> Any:
    """Our side, with attention as transformers has it."""
    masked = copy.deepcopy(task)
    documents._attends[masked.model] = False
    return masked


def check(task: Any, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Raise unless both sides have the same loss and gradients."""
    mine, other = ours(task, batch), theirs(model, batch)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    for loss in (mine, other):
        loss.backward()  # type: ignore[no-untyped-call]
    peers = dict(model.named_parameters())
    for name, parameter in trainable(task.model).items():
        found, expected = parameter.grad, peers[in_peft(name)].grad
        assert found is not None and expected is not None
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name


def make_ours(count: int) -> Callable[[], None]:
    """For `peak_memory`."""
    task, batches = our_side(count)
    return steps(task, ours, batches)


def make_theirs(count: int) -> Callable[[], None]:
    """For `peak_memory`."""
    task, batches = our_side(count)
    return steps(make_peer(task), theirs, batches)


def rows(quick: bool) -> list[Row]:
    """Time and peak memory of a step."""
    torch.set_num_threads(1)
    task, batches = our_side(1 if quick else 4)
    model = make_peer(task)
    masked = with_mask(task)
    check(task, model, batches[0])
    assert documents.attends_within_(task.model) and not documents.attends_within_(masked.model)
    ways = {"ours": steps(task, ours, batches), "masked": steps(masked, ours, batches)}
    seconds = in_turns({**ways, "peer": steps(model, theirs, batches)}, rounds=2 if quick else 5)
    memory = peak_memory(make_ours, len(batches)) / peak_memory(make_theirs, len(batches))
    count = sum(int((batch["position_ids"] == 0).sum()) for batch in batches)
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    work = f"SmolLM2 on rows that documents of {tokens / count:.0f} tokens share"
    return [
        Row(work, "PEFT", "time", ratio(seconds, "ours", "peer"), 0.90),
        Row(work, "ours, masked", "time", ratio(seconds, "ours", "masked"), 1.0),
        Row(work, "PEFT", "peak memory", Ratio(memory, memory, memory), 0.55),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    show(rows(parser.parse_args().quick), "packing")


if __name__ == "__main__":
    main()
