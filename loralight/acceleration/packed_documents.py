"""Language models that attend within each document of a row, instead of masking the other documents.

With a mask, attention compares all tokens of a packed row, though most lie in other documents. Here the tokens of all
rows go through the model in one line, document after document. Only attention has to know of the documents, as in an
encoder without padding (`loralight.acceleration.unpadding`).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import sdpa_mask

from loralight.acceleration.ragged import Ragged
from loralight.acceleration.unpadding import attend_by_row
from loralight.errors import InputError
from loralight.logs import logger
from loralight.models.attention import Attention
from loralight.models.pretrained import num_embeddings
from loralight.models.shards import is_sharded

_attends: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # by model, once tried
_apart: WeakSet[nn.Module] = WeakSet()  # the models that keep documents apart
_ATTENDED: ContextVar[Ragged | None] = ContextVar("documents_attended_to", default=None)


class Line:
    """The tokens of packed rows in one line, documents from long to short.

    Args:
        position_ids: (rows, tokens), which begin with 0 in each document.

    Attributes:
        places: where each token of the line lies in the rows, flattened: (tokens,).
    """

    def __init__(self, position_ids: Tensor) -> None:
        starts = (position_ids == 0).flatten().nonzero().squeeze(1)
        lengths = starts.diff(append=starts.new_tensor([position_ids.numel()]))
        counts = torch.arange(int(lengths.max()), device=starts.device)
        self._documents = Ragged(counts < lengths.unsqueeze(1), is_causal=True)
        rectangle = starts.unsqueeze(1) + counts  # (documents, longest)
        self.places = rectangle.flatten()[self._documents.places]

    def line_up(self, rows: Tensor) -> Tensor:
        """From (rows, tokens) to (1, all tokens)."""
        return rows.flatten().index_select(0, self.places).unsqueeze(0)

    @contextmanager
    def attended(self) -> Iterator[None]:
        """A context in which a model that `attends_within_` is given this line."""
        token = _ATTENDED.set(self._documents)
        try:
            yield
        finally:
            _ATTENDED.reset(token)


def line_of(model: PreTrainedModel, position_ids: Tensor) -> Line | None:
    """The documents of packed rows in a line, if ``model`` attends within each; None if it takes the rows themselves.

    A model whose weights are sharded over processes is not tried, as only some of them may have packed rows.

    Args:
        model: a causal language model.
        position_ids: (rows, tokens), which begin with 0 in each document.

    Raises:
        InputError: documents that share a row would see one another, or it is not known (``E-PACKED``).
    """
    if is_sharded(model) and model not in _apart:
        raise InputError(
            "E-PACKED",
            "data.packed=true: whether documents that share a row see one another is tried before weights are sharded "
            "(trainer=fsdp), with data.packed=null alone; give that, or data.packed=false",
        )
    _check_apart(model)
    is_compiled = model._compiled_call_impl is not None  # then it takes rows
    is_untried = is_sharded(model) and model not in _attends
    return None if is_compiled or is_untried or not attends_within_(model) else Line(position_ids)


def _check_apart(model: PreTrainedModel) -> None:
    if not keeps_apart(model):
        raise InputError(
            "E-PACKED",
            f"{type(model).__name__} lets documents that share a row see one another; set data.packed=false",
        )


@torch.no_grad()
def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether a document's logits are independent of the rest of its row; a model that passes is tried only once."""
    if model in _apart:
        return True
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]], device=model.device)
    ids %= num_embeddings(model) or 8
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]], device=model.device)
    with _evaluated(model):
        alone = model(input_ids=ids[:, 4:], use_cache=False).logits
        try:
            together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 4:]
        except (InputError, TypeError, ValueError, RuntimeError, LookupError):  # it takes no positions that restart
            return False
    if not torch.allclose(together.float(), alone.float(), rtol=0.01, atol=0.01 * float(alone.float().abs().max())):
        return False
    _apart.add(model)
    return True


def attends_within_(model: PreTrainedModel) -> bool:
    """Have ``model`` attend within documents where it is given a `Line`, if its outputs stay the same; tried once.

    Returns:
        Whether it does; if not, the reason is logged and the model is unchanged.
    """
    if model not in _attends:
        reason = _why_not(model)
        _attends[model] = reason is None
        if reason is not None:
            logger.info("%s compares documents that share a row: %s", type(model).__name__, reason)
    return _attends[model] and _ATTENTION.is_of(model)


def _why_not(model: PreTrainedModel) -> str | None:
    if not _ATTENTION.is_of(model) and (taken := _ATTENTION.why_not(model)):  # models may share a config
        return taken
    expected = _logits_of_two_documents(model, in_line=False)
    _ATTENTION.take_place_in_(model)
    try:
        difference = (_logits_of_two_documents(model, in_line=True) - expected).abs().max()
        if difference <= (0.03 if expected.dtype.itemsize < 4 else 1e-3) * expected.abs().max():
            return None
        reason = "its outputs would differ"
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
    _ATTENTION.leave_(model)
    return reason


@torch.no_grad()
def _logits_of_two_documents(model: PreTrainedModel, *, in_line: bool) -> Tensor:
    """Logits (tokens, vocabulary) in evaluation mode, in the order of the line."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]], device=model.device)
    ids = torch.arange(5, 13, device=model.device).unsqueeze(0) % (num_embeddings(model) or 13)
    line = Line(positions)
    with _evaluated(model):
        if in_line:
            ids, positions = line.line_up(ids), line.line_up(positions)
        with line.attended() if in_line else nullcontext():
            logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits.squeeze(0)
        return logits if in_line else logits.index_select(0, line.places)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


def _mask(*, mask_function: Any, local_size: int | None = None, **settings: Any) -> Any:
    """The documents of a line, passed in place of the mask; without a line, the mask of `sdpa`."""
    documents = None if torch.compiler.is_compiling() else _ATTENDED.get()
    if documents is None:
        return sdpa_mask(mask_function=mask_function, local_size=local_size, **settings)
    if local_size is None:  # a token looks back to the beginning
        return documents
    places = torch.arange(sum(documents.lengths), device=documents.firsts.device)
    return documents.attending(mask_function, places, len(places))


_ATTENTION = Attention("documents", attend_by_row, _mask)
