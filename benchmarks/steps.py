"""One training step with LoRA on linear layers, beside PEFT's and beside full fine-tuning, AdamW's step included.

    python benchmarks/steps.py [--quick]

Weights are random, which costs what trained ones do; float32, one thread, rank 8, no dropout.
"""

import argparse
import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from side_by_side import Row, in_turns, ratio, show
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.adapters.prepack import prepack_

Step = Callable[[], Tensor]

ENCODER = {"all": ["query", "key", "value", "dense"], "query and value": ["query", "value"]}
DECODER = {"all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}


def bert(num_layers: int = 3) -> nn.Module:
    """BERT-base's shape, with some of its 12 layers."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertModel(BertConfig(num_hidden_layers=num_layers, **quiet), add_pooling_layer=False)


def smollm2(num_layers: int = 30) -> nn.Module:
    """SmolLM2-135M's shape."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=num_layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    )


def adapted_by_peft(model: nn.Module, names: list[str]) -> nn.Module:
    """The model with PEFT's layers in it."""
    get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names))
    return model


def adapted_by_us(model: nn.Module, names: list[str], *, prepack: bool) -> nn.Module:
    """The model with loralight's layers in it."""
    inject(model, Lora(targets=[f"*.{name}" for name in names], rank=8, alpha=16))
    if prepack:
        prepack_(model)
    return model


def disturbed(model: nn.Module) -> nn.Module:
    """The model with factors away from zero, the same whoever made them, in training mode."""
    torch.manual_seed(2)
    for parameter in trainable(model).values():
        parameter.data.normal_(std=0.02)
    return model.train()


def step_of(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Step:
    """One step of AdamW."""
    learning = list(trainable(model).values())
    optimizer = torch.optim.AdamW(learning, lr=1e-5)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def states_loss(model: nn.Module, *, ids: Tensor) -> Tensor:
    """A loss that costs nothing beside the layers."""
    base: Any = getattr(model, "model", model)
    return base(ids).last_hidden_state.square().mean()


def check(models: Mapping[str, nn.Module], loss: Callable[[nn.Module], Tensor]) -> None:
    """That both sides are in training mode, and compute the same loss and gradients."""
    found = []
    for model in models.values():
        assert all(part.training for part in model.modules())
        value = loss(model)
        gradients = torch.autograd.grad(value, list(trainable(model).values()))
        found.append(torch.cat([value.detach().view(1), *(gradient.flatten() for gradient in gradients)]))
    first, *others = found
    for other in others:
        torch.testing.assert_close(other[0], first[0], rtol=1e-5, atol=0)
        assert (other - first).norm() <= 1e-4 * first.norm()


def sides(make: Callable[[], nn.Module], names: list[str]) -> dict[str, nn.Module]:
    """PEFT's, ours and ours packed, of one base."""
    torch.manual_seed(0)
    base = make()
    return {
        "PEFT": disturbed(adapted_by_peft(copy.deepcopy(base), names)),
        "loralight": disturbed(adapted_by_us(copy.deepcopy(base), names, prepack=False)),
        "packed": disturbed(adapted_by_us(copy.deepcopy(base), names, prepack=True)),
    }


def step_rows(
    work: str, make: Callable[[], nn.Module], names: list[str], ids: Tensor, rounds: int, goals: dict[str, float]
) -> list[Row]:
    """Rows for one model and one choice of layers."""
    models, loss = sides(make, names), partial(states_loss, ids=ids)
    check(models, loss)
    if "full" in goals:
        models["full"] = make().train()
    seconds = in_turns({name: step_of(model, loss) for name, model in models.items()}, rounds=rounds)
    rows = [
        Row(work, "PEFT", "time", ratio(seconds, "loralight", "PEFT"), goals["plain"]),
        Row(f"{work}, prepacked", "PEFT", "time", ratio(seconds, "packed", "PEFT"), goals["packed"]),
    ]
    if "full" in goals:
        full = ratio(seconds, "packed", "full")
        rows.append(Row(f"{work}, prepacked", "full fine-tuning", "time", full, goals["full"]))
    return rows


def rows(quick: bool) -> list[Row]:
    """Every measurement."""
    rounds = 3 if quick else 9
    words = torch.randint(1000, 30000, (16, 128))
    tokens = torch.randint(0, 49152, (4, 256))
    everything = {"plain": 0.87, "packed": 0.78, "full": 0.66}
    layers = 1 if quick else 3
    encoder, decoder = partial(bert, layers), partial(smollm2, 2 * layers)
    some = {"plain": 0.98, "packed": 0.88}
    return [
        *step_rows("BERT-base, all linear", encoder, ENCODER["all"], words, rounds, everything),
        *step_rows("BERT-base, query and value", encoder, ENCODER["query and value"], words, rounds, some),
        *step_rows("SmolLM2, all linear", decoder, DECODER["all"], tokens, rounds, everything),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    torch.set_num_threads(1)
    show(rows(parser.parse_args().quick), "One training step")


if __name__ == "__main__":
    main()
