"""General texts, as the base model reads them: a few of a file's, spread over it."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loralight.data.inputs import read_inputs
from loralight.errors import InputError
from loralight.models.pretrained import load_tokenizer, longest_input, tokenise
from loralight.resources import resolve
from loralight.training.forgetting.own_head import checkpoint_of
from loralight.training.forgetting.probe import check_count
from loralight.training.task import AdapterTask


class Texts:
    """Texts of a file; each is read alone, so that none depends on another's length.

    Args:
        source: a file with a text a line, or with a column ``text``.
        rows: most texts that are read.
        max_length: tokens of a text that are read.

    Raises:
        InputError: there is no such file, or a number is too low (``E-FORGETTING``).
    """

    def __init__(self, source: str, *, rows: int, max_length: int) -> None:
        check_count("rows", rows)
        check_count("max_length", max_length, least=2)
        if not Path(resolve(source)).is_file():
            raise InputError("E-FORGETTING", f"forgetting.texts={source}: there is no such file")
        self.source, self.rows, self.max_length = source, rows, max_length

    def token_ids(self, task: AdapterTask) -> tuple[list[Tensor], PreTrainedTokenizerBase]:
        """The tokens of each text, (1, tokens), on the model's device, and the tokenizer.

        Raises:
            InputError: there is no text of at least two tokens (``E-FORGETTING``).
        """
        checkpoint = checkpoint_of(task)
        tokenizer = load_tokenizer(checkpoint)
        length = min(self.max_length, longest_input(checkpoint, tokenizer, self.max_length))
        texts = self._texts()
        ids = [tokenise(tokenizer, text, truncation=True, max_length=length)["input_ids"] for text in texts]
        device = next(task.model.parameters()).device
        found = [torch.tensor([one], device=device) for one in ids if len(one) > 1]
        if not found:
            raise InputError("E-FORGETTING", f"forgetting.texts={self.source} has no text of two tokens or more")
        return found, tokenizer

    def _texts(self) -> list[str]:
        inputs = read_inputs(resolve(self.source))
        some = inputs[:: max(1, len(inputs) // self.rows)][: self.rows]
        texts = [one.get("text") if isinstance(one, dict) else one for one in some]
        if wrong := next((one for one, text in zip(some, texts, strict=True) if not isinstance(text, str)), None):
            raise InputError(
                "E-FORGETTING",
                f"forgetting.texts={self.source}: {str(wrong)[:200]} has no text; give a text a line, or a column text",
            )
        return [str(text) for text in texts]
