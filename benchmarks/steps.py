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
from side_by_side import Ratio, Row, in_turns, peak_memory, ratio, show
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from loralight.acceleration.frozen_linear import multiply_by_onednn_, prepack_
from loralight.acceleration.gradient_checkpointing import recompute_
from loralight.acceleration.selective_recompute import selective_recompute
from loralight.adapters import Lora, inject
from loralight.adapters.base import trainable
from loralight.kernels import token_scores

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
    (prepack_ if prepack else multiply_by_onednn_)(model)
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


def as_trained(loss: Callable[[nn.Module], Tensor]) -> Callable[[nn.Module], Tensor]:
    """A loss in the context that loralight's training has by default."""

    def in_context(model: nn.Module) -> Tensor:
        with selective_recompute(model):
            return loss(model)

    return in_context


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
        for part in models["full"].modules():
            if isinstance(part, nn.Embedding):  # of a few layers of a model it would be the greatest part
                part.requires_grad_(False)
    losses = {"loralight": as_trained(loss), "packed": as_trained(loss)}
    steps = {name: step_of(model, losses.get(name, loss)) for name, model in models.items()}
    seconds = in_turns(steps, rounds=rounds)
    rows = [
        Row(work, "PEFT", "time", ratio(seconds, "loralight", "PEFT"), goals["plain"]),
        Row(f"{work}, prepacked", "PEFT", "time", ratio(seconds, "packed", "PEFT"), goals["packed"]),
    ]
    if "full" in goals:
        full = ratio(seconds, "packed", "full")
        rows.append(Row(f"{work}, prepacked", "full fine-tuning", "time", full, goals["full"]))
    return rows


def tokens_of(num_rows: int, length: int) -> Tensor:
    """Token ids of SmolLM2's vocabulary."""
    torch.manual_seed(1)
    return torch.randint(0, 49152, (num_rows, length))


def loss_of_transformers(model: nn.Module, *, ids: Tensor) -> Tensor:
    """The model's own loss of the next tokens."""
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def loss_by_parts(model: Any, *, ids: Tensor) -> Tensor:
    """The same as the task text_generation computes it."""
    states = model.model(ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    return token_scores(states, ids[:, 1:].flatten(), model.lm_head.weight, None).losses.mean()


def whole_step(side: str, num_layers: int) -> Step:
    """A step of a language model with its loss, by one of both sides, perhaps with gradient checkpointing."""
    torch.manual_seed(0)
    model, ids, names = smollm2(num_layers), tokens_of(2, 256), DECODER["all"]
    if side.startswith("PEFT"):
        return step_of(disturbed(adapted_by_peft(model, names)), partial(loss_of_transformers, ids=ids))
    disturbed(adapted_by_us(model, names, prepack="prepacked" in side))
    loss = partial(loss_by_parts, ids=ids)
    if "checkpointing" not in side:
        return step_of(model, as_trained(loss))
    recompute_(model, [])
    return step_of(model, loss)


def whole_rows(rounds: int, num_layers: int) -> list[Row]:
    """Rows for a whole step of a language model."""
    sides = ["PEFT", "loralight", "loralight, prepacked"]
    steps = {side: whole_step(side, num_layers) for side in sides}
    losses = [step() for step in steps.values()]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-5, atol=0)
    seconds = in_turns(steps, rounds=rounds)
    work = f"SmolLM2 of {num_layers} layers with its loss, all linear"
    found = [Row(f"{work}{side[9:]}", "PEFT", "time", ratio(seconds, side, "PEFT"), 0.90) for side in sides[1:]]
    del steps
    peer = peak_memory(whole_step, "PEFT", 30)  # of fewer layers, the loss would be the most of it
    for side, goal in (("", 0.55), (", checkpointing", 0.10)):
        share = peak_memory(whole_step, f"loralight{side}", 30) / peer
        work = f"SmolLM2 of 30 layers with its loss, all linear{side}"
        found.append(Row(work, "PEFT", "peak memory", Ratio(share, share, share), goal))
    return found


def rows(quick: bool) -> list[Row]:
    """Every measurement."""
    rounds = 3 if quick else 9
    words = torch.randint(1000, 30000, (16, 128))
    tokens = tokens_of(4, 256)
    everything = {"plain": 0.78, "packed": 0.78}
    layers = 1 if quick else 3
    encoder, decoder = partial(bert, layers), partial(smollm2, 2 * layers)
    some = {"plain": 0.88, "packed": 0.88}
    return [
        *step_rows("BERT-base, all linear", encoder, ENCODER["all"], words, rounds, {**everything, "full": 0.66}),
        *step_rows("BERT-base, query and value", encoder, ENCODER["query and value"], words, rounds, some),
        *step_rows("SmolLM2, all linear", decoder, DECODER["all"], tokens, rounds, everything),
        *whole_rows(rounds, 4 if quick else 30),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    torch.set_num_threads(1)
    show(rows(parser.parse_args().quick), "One training step")


if __name__ == "__main__":
    main()
