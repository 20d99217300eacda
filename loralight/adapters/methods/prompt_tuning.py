"""Prompt tuning: Lester et al., 2021, https://arxiv.org/abs/2104.08691."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.adapters.base import Adapter, Added
from loralight.adapters.disabled import Switchable, is_off
from loralight.errors import InputError
from loralight.models.text_models import check_num_tokens, looks_ahead, random_tokens, text_base


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Adapter):
    """Learned embeddings that the model reads in addition to those of the text.

    Decoders read them before the text. Encoders read them after the text's first token, whose state classifiers read.

    Args:
        num_tokens: number of embeddings; beyond 20 the paper finds little gain. They take room from the text.
        lr_ratio: ratio of the embeddings' learning rate to a head's. PEFT's examples train the embeddings at 0.03 with
            AdamW (the paper at 0.3 with Adafactor), a rate at which a head would be unstable.
        lr: learning rate per step.
    """

    num_tokens: int = 20
    lr_ratio: float = 30.0
    lr: float = 1e-3

    starts_at_base: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_num_tokens(self.num_tokens)
        if not 0 < self.lr_ratio < math.inf:
            raise InputError("E-LR-RATIO", f"adapter.lr_ratio is {self.lr_ratio!r}; give a positive number, such as 30")

    def apply_(self, model: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        base = text_base(model, "prompt_tuning")
        if "inputs_embeds" not in inspect.signature(base.forward).parameters:
            raise InputError(
                "E-TEXT-MODEL",
                f"{type(base).__name__} takes no embeddings in place of tokens; choose another adapter than "
                "prompt_tuning",
            )
        base.add_module("prompt", Prompt(base, self.num_tokens, at=int(looks_ahead(base))))
        return {"(prompt)": [next(name for name, module in model.named_modules() if isinstance(module, Prompt))]}

    def lr_factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        return {module.embeddings: self.lr_ratio for module in model.modules() if isinstance(module, Prompt)}

    def undecayed(self, model: nn.Module) -> set[nn.Parameter]:
        return {module.embeddings for module in model.modules() if isinstance(module, Prompt)}  # as words have none

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        prompt = next(module for module in model.modules() if isinstance(module, Prompt))
        if prompt.at or not isinstance(model, PreTrainedModel) or not model.can_generate():
            return None  # PEFT puts it before an encoder's first token
        config = model.config.get_text_config()
        return {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",  # without a task type, PEFT's model silently ignores the prompt
            "num_virtual_tokens": self.num_tokens,
            "prompt_tuning_init": "RANDOM",
            "token_dim": prompt.embeddings.shape[1],
            "num_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_transformer_submodules": 1,
        }

    def peft_names(self, model: nn.Module) -> dict[str, str]:
        if self.peft_config(model) is None:
            return {}
        names = [name for name, module in model.named_modules() if isinstance(module, Prompt)]
        return {f"{name}.embeddings": "prompt_embeddings" for name in names}


class Prompt(Added, Switchable):
    """Soft tokens that ``base`` reads with every text; its outputs do not contain their states.

    The text's masks, positions and types are extended on the way in, and states are cut on the way out, so
    that a task's code sees the shapes that it knows. In generation the soft tokens stay in the cache.

    Args:
        base: the model; the embeddings are initialised from random words, as the paper advises.
        num_tokens: number of soft tokens.
        at: number of the text's tokens before the soft tokens, 0 or 1.
    """

    def __init__(self, base: PreTrainedModel, num_tokens: int, *, at: int) -> None:
        super().__init__()
        words = base.get_input_embeddings()(random_tokens(base, num_tokens))[0]
        self.embeddings = nn.Parameter(words.detach().to(torch.promote_types(words.dtype, torch.float32), copy=True))
        self.at = at
        base.register_forward_pre_hook(self._insert, with_kwargs=True)
        base.register_forward_hook(self._cut, with_kwargs=True)

    def _insert(self, base: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_off(self):
            return None
        names = list(inspect.signature(base.forward).parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        cache = given.get("past_key_values")
        is_begun = cache is not None and cache.get_seq_length() > 0
        mask, positions, count = given.get("attention_mask"), given.get("position_ids"), len(self.embeddings)
        given.pop("cache_position", None)  # transformers 5.3 counts the text alone; without it the model asks the cache
        if not is_begun:
            self._check(base, given)
            if given.get("inputs_embeds") is None:
                given["inputs_embeds"] = base.get_input_embeddings()(given.pop("input_ids"))
            words = given["inputs_embeds"]
            given["inputs_embeds"] = self._between(words, self.embeddings.to(words.dtype).expand(len(words), -1, -1))
            if (types := given.get("token_type_ids")) is not None:
                given["token_type_ids"] = self._between(types, types[:, :1].expand(-1, count))
        if mask is not None:
            given["attention_mask"] = self._between(mask, mask.new_ones(len(mask), count))
        if positions is not None:
            given["position_ids"] = positions + count if is_begun else self._with_positions(positions)
        return (), given

    def _between(self, of_text: Tensor, of_prompt: Tensor) -> Tensor:
        return torch.cat([of_text[:, : self.at], of_prompt, of_text[:, self.at :]], dim=1)

    def _with_positions(self, positions: Tensor) -> Tensor:
        count = len(self.embeddings)
        own = torch.arange(self.at, self.at + count, device=positions.device).expand(len(positions), -1)
        return torch.cat([positions[:, : self.at], own, positions[:, self.at :] + count], dim=1)

    def _check(self, base: PreTrainedModel, given: dict[str, Any]) -> None:
        """Refuse inputs that the model would compute wrongly or could not compute."""
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is not None and mask.ndim != 2:
            raise InputError("E-PROMPT", "prompt_tuning takes attention masks of (batch, tokens) alone")
        if positions is not None and (_starts_over(positions) if mask is None else _starts_over(positions, mask)):
            raise InputError(
                "E-PACKED",
                "a soft prompt stands before one text, but documents share a row: set data.packed=false, or choose "
                "another adapter, such as prefix_tuning",
            )
        read = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        length, longest = read.shape[1] + len(self.embeddings), getattr(base.config, "max_position_embeddings", None)
        if longest is not None and length > longest:
            raise InputError(
                "E-SEQ-LEN",
                f"a text of {read.shape[1]} tokens and {len(self.embeddings)} of the prompt are more than the model's "
                f"{longest}: lower model.max_length or adapter.num_tokens",
            )

    def _cut(self, base: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if is_off(self) or kwargs.get("inputs_embeds") is None:  # the cache has the prompt
            return output
        count = len(self.embeddings)

        def of_text(states: Tensor) -> Tensor:
            return torch.cat([states[:, : self.at], states[:, self.at + count :]], dim=1)

        output["last_hidden_state"] = of_text(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(of_text(states) for states in output["hidden_states"])
        return output


def _starts_over(positions: Tensor, mask: Tensor | None = None) -> bool:
    """Whether positions decrease within a row, as where a second document begins; a GPU waits for the answer."""
    falls = positions.diff(dim=1) < 0
    if mask is not None:
        falls &= (mask[:, 1:] * mask[:, :-1]).bool()
    return bool(falls.any())
