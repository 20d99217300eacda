"""Whether a model's output for a row depends on the padding that longer rows of the batch bring."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loralight.logs import logger
from loralight.models.pretrained import num_embeddings

_LENGTHS = (4, 7, 2)


@torch.no_grad()
def depends_on_padding(model: PreTrainedModel, *, padding: int, on_the_left: bool = False) -> bool:
    """Whether three short rows get different outputs in one batch than each alone; if so, the log says so.

    Some models have no mask (FNet), mix neighbours by convolutions or count positions from the padding on. Their
    outputs are then well defined only for batches of rows of one length.

    Args:
        model: built, with logits for each row or each token.
        padding: the token that fills up short rows.
        on_the_left: whether padding comes before a row's tokens.
    """
    rows = [torch.arange(5, 5 + length, device=model.device) % (num_embeddings(model) or 26) for length in _LENGTHS]
    was_training = model.training
    try:
        model.train(False)
        together = _outputs(model, rows, padding, on_the_left)
        alone = [_outputs(model, [row], padding, on_the_left)[0] for row in rows]
    except Exception:  # a model may want other inputs, or longer ones
        return False
    finally:
        model.train(was_training)
    tolerance = max(1e-4, 64 * torch.finfo(alone[0].dtype).eps)
    if all((a - b).abs().max() <= tolerance * b.abs().max() for a, b in zip(together, alone, strict=True)):
        return False
    logger.info(
        "what %s says of a row depends on the padding in its batch: it predicts rows of one length at a time",
        type(model).__name__,
    )
    return True


def each_length(batch: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The rows of each length in a batch, without padding: their places (rows,), and their tensors (rows, tokens).

    Args:
        batch: tensors (batch, tokens); ``attention_mask`` marks the padding.
    """
    mask = batch["attention_mask"].bool()
    lengths = mask.sum(1)
    for length in lengths.unique():  # type: ignore[no-untyped-call]
        rows = (lengths == length).nonzero().squeeze(1)
        yield rows, {name: tensor[rows][mask[rows]].view(len(rows), -1) for name, tensor in batch.items()}


def _outputs(model: PreTrainedModel, rows: list[Tensor], padding: int, on_the_left: bool) -> list[Tensor]:
    longest = max(map(len, rows))
    ids, mask = (torch.full((len(rows), longest), fill, device=model.device) for fill in (padding, 0))
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if on_the_left else slice(0, len(row))
        ids[number, place], mask[number, place] = row, 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    is_by_token = logits.shape[:2] == mask.shape
    return [logits[number][mask[number].bool()] if is_by_token else logits[number] for number in range(len(rows))]
