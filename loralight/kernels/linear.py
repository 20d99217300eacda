"""Fast paths of `loralight.adapters.layers.lora`, each equal to the plain formula there, which is also the fallback.

A LoRA step needs the frozen forward pass, the gradient with respect to the layer's input, and a few products with the
rank as one side. The paths are fast because they choose the order of operands in these (a product of rank 8 can cost a
tenth of the frozen product, or a fortieth), add in place, and keep no second copy of the input.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.weak import TensorWeakRef

from loralight.kernels.onednn import Matrices, multiply

_BITS = 16  # random bits per element that decide whether it is dropped: probabilities are exact to 2**-16
_PROCESSORS = ("cpu", "meta")  # an estimate on shapes takes the path of a processor; other devices are accelerators
_NUM_IN_CACHE = 2**18  # elements that stay in a processor's cache from one operation to the next


def can_be_fused(x: Tensor, weight: Tensor, lora_A: Tensor) -> bool:
    """Whether `lora_convolution` applies: a frozen weight of x's dtype, or in float32 under autocast."""
    if torch.is_autocast_enabled(x.device.type):
        fits = weight.dtype == lora_A.dtype == torch.float32 and x.dtype != torch.float64
    else:
        fits = x.dtype == weight.dtype == lora_A.dtype and x.dtype.itemsize >= 4
    return fits and not weight.requires_grad and is_eager() and x.numel() > 0


def is_eager() -> bool:
    """Whether nothing traces or transforms the computation."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def is_on_accelerator(x: Tensor) -> bool:
    """Whether x is on a GPU or the like, which sums products in float32 and so needs no wider dtype for them."""
    return x.device.type not in _PROCESSORS


def linear_can_be_fused(x: Tensor, weight: Tensor, lora_A: Tensor) -> bool:
    """Whether `lora_linear` applies: a frozen weight, x of its dtype or cast by autocast, and A at least as wide."""
    if torch.is_autocast_enabled(x.device.type):
        fits = torch.float64 not in (x.dtype, weight.dtype, lora_A.dtype)  # autocast does not cast float64
    else:
        fits = x.dtype == weight.dtype and torch.promote_types(x.dtype, lora_A.dtype) == lora_A.dtype
    return fits and not weight.requires_grad and is_eager() and x.numel() > 0


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scaling: float,
    dropout: float,
    matrices: Matrices | None = None,
) -> Tensor:
    """``W x + b + scaling * B A dropout(x)``, under autocast in its dtype; A's and B's gradients are in their own.

    Shapes: x (..., in), weight (out, in), bias (out,), lora_A (rank, in), lora_B (out, rank); the result is (..., out).
    """
    device = x.device.type
    is_autocast = torch.is_autocast_enabled(device)
    if is_on_accelerator(x):
        dtype = torch.get_autocast_dtype(device) if is_autocast else x.dtype
        y: Tensor = _LoraLinearOnAccelerator.apply(x, weight, bias, lora_A, lora_B, scaling, dropout, dtype)
        return y.view(*x.shape[:-1], -1)  # outside: some models write to it in place
    if not is_autocast:
        y = _LoraLinear.apply(x, weight, bias, lora_A, lora_B, scaling, dropout, matrices)
        return y.view(*x.shape[:-1], -1)
    x, bias, lora_A, lora_B = in_autocast(x, bias, lora_A, lora_B)
    with torch.autocast(device, enabled=False):
        return lora_linear(x, weight, bias, lora_A, lora_B, scaling, dropout, matrices)


def in_autocast(x: Tensor, *others: Any) -> tuple[Any, ...]:
    """The tensors in the dtype in which autocast computes products on x's device."""
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (x, *others))


def keep_mask(like: Tensor, probability: float) -> tuple[Tensor, float]:
    """Which elements dropout keeps, 1 or 0 in a byte, and the factor of the kept elements.

    `F.dropout` draws a float for each element and costs half of a frozen product of 768 x 768 on a CPU; drawing 16 bits
    of an integer costs a sixth of that. Multiplying by the mask, in `parts`, costs a fifth of `masked_fill`.
    """
    levels = 2**_BITS
    dropped = round(probability * levels)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)
    return (bits >= dropped - levels // 2).view(torch.uint8), levels / (levels - dropped)


def parts(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of each tensor, a few rows at a time, so that they fit a processor's cache; all rows on other devices.

    Results between the functions then stay in the cache. Shapes: (rows, ...) each; the first is the widest.
    """
    first = rows[0]
    many = max(1, _NUM_IN_CACHE * len(first) // first.numel()) if first.device.type == "cpu" else len(first)
    return zip(*(torch.split(tensor, many) for tensor in rows), strict=True)


class _LoraLinear(Function):
    """The low-rank products are in the dtype of A and B, which may be wider than x's; W may be of another than x's.

    The result is (tokens, out).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        dropout: float,
        matrices: Matrices | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
        y = multiply(rows, weight, bias, matrices and matrices.weight)
        mask, keep = keep_mask(rows, dropout) if dropout else (None, 1.0)
        if mask is None:
            low = lora_A @ rows.to(lora_A.dtype).T  # (rank, tokens)
        else:
            low = torch.cat([lora_A @ (some * drawn).to(lora_A.dtype).T for some, drawn in parts(rows, mask)], 1)
        _add_product_(y, low.T, lora_B.T, scaling * keep)
        of_A = rows if ctx.needs_input_grad[3] else None  # a frozen A (LoRA-FA) needs no input kept
        ctx.save_for_backward(of_A, weight, lora_A, lora_B, low, mask)  # W uncast: a cast is cheap, its copy is not
        ctx.scaling, ctx.shape, ctx.matrices = scaling * keep, x.shape, matrices
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, lora_A, lora_B, low, mask = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])  # (tokens, out)
        wide = g.to(lora_A.dtype)
        g_low = lora_B.T @ wide.T  # (rank, tokens)
        g_B = (low @ wide).T.mul_(ctx.scaling)
        g_A = g_x = None
        if rows is not None and mask is None:
            g_A = (g_low @ rows.to(lora_A.dtype)).mul_(ctx.scaling)
        elif rows is not None:
            g_A = torch.zeros_like(lora_A)
            for some, drawn, g_some in parts(rows, mask, g_low.T):
                g_A.addmm_(g_some.T, (some * drawn).to(lora_A.dtype), alpha=ctx.scaling)
        if ctx.needs_input_grad[0]:
            g_x = multiply(g, weight.T, None, ctx.matrices and ctx.matrices.transposed)
            if mask is None:
                _add_product_(g_x, g_low.T, lora_A, ctx.scaling)
            else:
                for some, drawn, g_some in parts(g_x, mask, g_low.T):
                    some.add_((g_some @ lora_A).mul_(drawn), alpha=ctx.scaling)
            g_x = g_x.view(ctx.shape)
        g_bias = g.sum(0) if ctx.needs_input_grad[2] else None
        return g_x, None, g_bias, g_A, g_B, None, None, None


def _add_product_(y: Tensor, left: Tensor, right: Tensor, scaling: float) -> None:
    if y.dtype == left.dtype:
        y.addmm_(left, right, alpha=scaling)
    else:  # rounded once, as a whole
        y.add_((left @ right).mul_(scaling).to(y.dtype))


# for each thread: a tensor, its version, and its cast
_LAST_CAST: ContextVar[tuple[TensorWeakRef, int, TensorWeakRef] | None] = ContextVar("last_cast", default=None)


def cast_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``: layers that read x one after the other and keep it share one cast, as Q, K and V do."""
    if x.dtype == dtype:
        return x
    last = _LAST_CAST.get()
    if last is not None and last[0]() is x and last[1] == x._version:
        before: Tensor | None = last[2]()
        if before is not None and before.dtype == dtype:
            return before
    cast = x.to(dtype)
    _LAST_CAST.set((TensorWeakRef(x), x._version, TensorWeakRef(cast)))
    return cast


class _LoraLinearOnAccelerator(Function):
    """The same on a GPU, where passes over memory and launches are expensive, and products cheap.

    The low-rank term is written first, and the frozen product accumulates onto it: one pass fewer than
    the other way round. All products are computed in one dtype, x's own or autocast's, and summed in float32, as GPUs
    do; A and B may still learn in float32. Casts are made here, where autograd does not record them.
    The result is (tokens, out).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = cast_once(x, dtype).reshape(-1, x.shape[-1])  # (tokens, in)
        mask, keep = keep_mask(rows, dropout) if dropout else (None, 1.0)
        down, up = lora_A.to(dtype), lora_B.to(dtype)
        low = _scaled_product(rows if mask is None else rows * mask, down.T, scaling * keep)  # (tokens, rank)
        y = F.linear(low, up, None if bias is None else bias.to(dtype))
        y.addmm_(rows, weight.to(dtype).T)
        of_A = rows if ctx.needs_input_grad[3] else None
        ctx.save_for_backward(of_A, weight, down, up, low, mask)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling * keep, x.shape, (x.dtype, lora_A.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, low, mask = ctx.saved_tensors
        of_x, of_factors = ctx.dtypes
        g = gradient.reshape(-1, gradient.shape[-1])  # (tokens, out)
        g_low = _scaled_product(g, up, ctx.scaling)  # (tokens, rank)
        g_B = (g.T @ low).to(of_factors)
        g_A = g_x = None
        if rows is not None:
            g_A = (g_low.T @ (rows if mask is None else rows * mask)).to(of_factors)
        if ctx.needs_input_grad[0]:
            g_x = g_low @ down
            if mask is not None:
                g_x.mul_(mask)
            g_x = g_x.addmm_(g, weight.to(g.dtype)).view(ctx.shape).to(of_x)
        g_bias = g.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return g_x, None, g_bias, g_A, g_B, None, None, None


def _scaled_product(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    return torch.addmm(left.new_empty(1), left, right, beta=0, alpha=scaling)  # beta=0: not read
