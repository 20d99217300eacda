"""The fast path of LoRA on convolutions, equal to the plain formula in `loralight.adapters.layers.lora`.

Every pass forms W + scaling B A anew and convolves the input once. The gradients of A and B are computed through the
few channels of the rank; a gradient of W, which would cost as much as a forward pass, is never formed.

Small maps are different: their products cost no more than the weight's passes through memory, of which W + BA needs
several, and so does a convolution that orders the weight anew in each pass. There the weight and A are multiplied with
the patches of the input.
"""

from collections.abc import Iterator
from itertools import chain, product, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from loralight.kernels.linear import is_on_accelerator
from loralight.kernels.trial import Way, is_faster

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Stride, padding and dilation of a convolution without groups."""

_WORTH_A_TRIAL = 2**14  # elements of a weight


def lora_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scaling: float,
    geometry: Geometry,
    gain: Tensor | None = None,
) -> Tensor:
    """The convolution of x with ``gain (W + scaling B A)``, plus the bias; under autocast in autocast's dtype.

    Of tensors as large as x, only x itself is kept for the backward pass.

    Shapes: x (batch, in, *space), weight (out, in, *kernel), bias and gain (out,), lora_A (rank, in, *kernel), lora_B
    (out, rank, 1, ...).
    """
    device = x.device.type
    given = (weight, bias, lora_A, lora_B, scaling, geometry, gain)
    if not torch.is_autocast_enabled(device):
        if _is_small(x, weight, geometry) and _patches_gain(x, *given):
            return _of_patches(x, *given)
        y: Tensor = _LoraConvolution.apply(x, *given)
        return y
    x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        y = _LoraConvolutionInHalf.apply(x, *given)
        return y


def _is_small(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether an image's convolution on a processor has no more pixels than channels in its output.

    Never without gradients, so that evaluation at step 0 equals the plain model bit for bit.
    """
    if x.ndim != 4 or is_on_accelerator(x) or not torch.is_grad_enabled():
        return False
    return len(x) * _space(x, weight, geometry).numel() <= len(weight)


def _patches_gain(x: Tensor, weight: Tensor, *others: Any) -> bool:
    """Whether the product of patches is faster than the convolution on this processor, by a trial of both.

    Numbers of pixels up to the same power of two share a trial, so that a smaller last batch hardly needs another.
    """
    if weight.numel() < _WORTH_A_TRIAL or x.device.type != "cpu" or x.dtype is not torch.float32:
        return True
    num_pixels = len(x) * _space(x, weight, others[4]).numel()

    def ways() -> tuple[Way, Way]:
        return lambda: _of_patches(x, weight, *others), lambda: _LoraConvolution.apply(x, weight, *others)

    at_most = 1 << (num_pixels - 1).bit_length()
    return is_faster("patches", *weight.shape, *chain(*others[4]), at_most, ways=ways)


def _space(x: Tensor, weight: Tensor, geometry: Geometry) -> torch.Size:
    """Height and width of the output."""
    sizes = zip(x.shape[2:], weight.shape[2:], *geometry, strict=True)
    return torch.Size((size + 2 * pad - gap * (side - 1) - 1) // step + 1 for size, side, step, pad, gap in sizes)


def _of_patches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scaling: float,
    geometry: Geometry,
    gain: Tensor | None,
) -> Tensor:
    y: Tensor = _LoraOfPatches.apply(x, weight, lora_A, lora_B, scaling, geometry)
    if gain is not None:
        y = y * gain if bias is None else torch.addcmul(bias, y, gain)
    elif bias is not None:
        y = y + bias
    return y.view(len(x), *_space(x, weight, geometry), -1).permute(0, 3, 1, 2)


class _LoraOfPatches(Function):
    """``(W + scaling B A) x`` as a product with the patches of x, which the backward pass takes out of x anew.

    The result is (pixels, out).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, geometry: Geometry
    ) -> Tensor:
        patches = _patches(x, weight, geometry)
        low = _by_pixels(lora_A) @ patches.T  # (rank, pixels)
        y = patches @ _by_pixels(weight).T
        ctx.save_for_backward(x, weight, lora_A, lora_B, low)
        ctx.scaling, ctx.geometry = scaling, geometry
        return y.addmm_(low.T, lora_B.flatten(1).T, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_A, lora_B, low = ctx.saved_tensors
        g_low = lora_B.flatten(1).T @ gradient.T  # (rank, pixels)
        g_B = (low @ gradient).T.mul_(ctx.scaling).view(lora_B.shape)
        g_x = g_A = None
        if ctx.needs_input_grad[0]:
            g_patches = gradient @ _by_pixels(weight)
            g_patches.addmm_(g_low.T, _by_pixels(lora_A), alpha=ctx.scaling)
            g_x = _unpatched(g_patches, x, weight, ctx.geometry)
        if ctx.needs_input_grad[2]:
            out, channels, *kernel = lora_A.shape
            g_A = (g_low @ _patches(x, weight, ctx.geometry)).mul_(ctx.scaling)
            g_A = g_A.view(out, *kernel, channels).permute(0, 3, 1, 2)
        return g_x, None, g_A, g_B, None, None


def _by_pixels(weight: Tensor) -> Tensor:
    """(out, in, height, width) as (out, height * width * in); without a copy if its channels are last in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _patches(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """What the kernel sees of x for each pixel of the output, (pixels, height * width * in)."""
    _, (top, left), _ = geometry
    image = x.permute(0, 2, 3, 1)
    if top or left:
        image = F.pad(image, (0, 0, left, left, top, top))
    return _windows(image, weight, _space(x, weight, geometry), geometry).flatten(3).flatten(0, 2)


def _unpatched(patches: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The sum of patches in the places of x from which `_patches` takes them; its channels are last in memory."""
    _, (top, left), _ = geometry
    count, channels, height, width = x.shape
    image = patches.new_zeros(count, height + 2 * top, width + 2 * left, channels)
    windows = _windows(image, weight, _space(x, weight, geometry), geometry)
    patches = patches.view(windows.shape)
    for row, column in product(*map(range, weight.shape[2:])):
        windows[:, :, :, row, column] += patches[:, :, :, row, column]
    return image[:, top : top + height, left : left + width].permute(0, 3, 1, 2)


def _windows(image: Tensor, weight: Tensor, space: torch.Size, geometry: Geometry) -> Tensor:
    """A view of a padded image, (batch, height, width, in), as (batch, *space, kernel's height, its width, in)."""
    stride, _, dilation = geometry
    batch, rows, columns, channels = image.stride()
    shape = (len(image), *space, *weight.shape[2:], image.shape[-1])
    steps = (rows * stride[0], columns * stride[1], rows * dilation[0], columns * dilation[1])
    return image.as_strided(shape, (batch, *steps, channels))


class _LoraConvolution(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        geometry: Geometry,
        gain: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, lora_A, lora_B, gain)
        ctx.scaling, ctx.geometry = scaling, geometry
        made = [
            _convolve(x, _whole(some, lora_A, up, scaling, factor, like=x), shift, geometry)
            for some, up, factor, shift in _by_outputs(x, weight, lora_B, gain, bias)
        ]
        return made[0] if len(made) == 1 else torch.cat(made, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_A, lora_B, gain = ctx.saved_tensors
        g_x = g_A = None
        if ctx.needs_input_grad[0]:
            for some, up, factor, g in _by_outputs(x, weight, lora_B, gain, gradient.transpose(0, 1)):
                whole = _whole(some, lora_A, up, ctx.scaling, factor, like=x)  # rebuilt: cheaper than kept
                g_some = _backward(g.transpose(0, 1), x, whole, ctx.geometry, 0)
                g_x = g_some if g_x is None else g_x.add_(g_some)
                del whole
        scale = ctx.scaling if gain is None else gain.view(-1, *(1,) * (lora_B.ndim - 1)) * ctx.scaling
        g_B, g_low = _up_backward(gradient, _down(x, lora_A, ctx.geometry), lora_B * scale)
        if ctx.needs_input_grad[3]:
            g_A = _down_backward(g_low, x, lora_A, ctx.geometry)
        g_bias = gradient.sum((0, *range(2, gradient.ndim))) if ctx.needs_input_grad[2] else None
        return g_x, None, g_bias, g_A, g_B.mul_(scale), None, None, None


class _LoraConvolutionInHalf(Function):
    """The same for x in half precision and weights in float32; W + BA in half precision would round the update away.

    So there are two convolutions, whose outputs are added in one pass, and the gain goes into the weights of both.
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
        geometry: Geometry,
        gain: Tensor | None,
    ) -> Tensor:
        down, up = lora_A.to(x.dtype), _by_gain(lora_B * scaling, gain).to(x.dtype)
        low = _down(x, down, geometry)
        y = _convolve(x, _as_input(_by_gain(weight, gain), x), None if bias is None else bias.to(x.dtype), geometry)
        if _has_rows(y):
            _rows(y).addmm_(_columns(low).T, up.flatten(1).T)
        else:
            y += _convolve(low, up, None, _point(low))
        ctx.save_for_backward(x, weight, down, up, low, gain)
        ctx.scaling, ctx.geometry = scaling, geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, low, gain = ctx.saved_tensors
        g_B, g_low = _up_backward(gradient, low, up)
        g_x = g_A = None
        if ctx.needs_input_grad[0]:
            g_x = _backward(gradient, x, _as_input(_by_gain(weight, gain), x), ctx.geometry, 0)
            if _is_product(g_x, down, ctx.geometry):
                _rows(g_x).addmm_(_columns(g_low).T, down.flatten(1))
            else:
                g_x += _backward(g_low, x, down, ctx.geometry, 0)
        if ctx.needs_input_grad[3]:
            g_A = _down_backward(g_low, x, down, ctx.geometry).to(weight.dtype)
        g_bias = gradient.sum((0, *range(2, gradient.ndim))).to(weight.dtype) if ctx.needs_input_grad[2] else None
        g_B = _by_gain(g_B.to(weight.dtype), gain).mul_(ctx.scaling)
        return g_x, None, g_bias, g_A, g_B, None, None, None


def _by_gain(weight: Tensor, gain: Tensor | None) -> Tensor:
    return weight if gain is None else weight * gain.view(-1, *(1,) * (weight.ndim - 1))


def _as_input(weight: Tensor, x: Tensor) -> Tensor:
    """A weight in the dtype of x, and with its channels last in memory if those of x are."""
    layout = torch.channels_last if _has_rows(x) else torch.contiguous_format
    return weight.to(x.dtype, memory_format=layout)


def _by_outputs(x: Tensor, weight: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The weight and others, (out, ...) each, for half of the outputs at a time if the weight is larger than x.

    It is larger in the last layers of a network, where W + BA and oneDNN's copy of it would set the peak of memory.
    """
    num_parts = 2 if weight.numel() > x.numel() and len(weight) > 1 else 1
    return zip(*(repeat(None) if one is None else one.chunk(num_parts) for one in (weight, *others)), strict=False)


def _whole(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, gain: Tensor | None, *, like: Tensor
) -> Tensor:
    """``gain (W + scaling B A)``, with channels last in memory if those of ``like`` are, which saves a copy."""
    last = _has_rows(like) and weight.shape[2:].numel() > 1
    if last:
        lora_A = lora_A.permute(0, 2, 3, 1)
        flat = weight.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).flatten(1)
        flat.addmm_(lora_B.flatten(1), lora_A.flatten(1), alpha=scaling)
    else:
        flat = torch.addmm(weight.flatten(1), lora_B.flatten(1), lora_A.flatten(1), alpha=scaling)
    if gain is not None:
        flat.mul_(gain[:, None])
    return flat.view(-1, *lora_A.shape[1:]).permute(0, 3, 1, 2) if last else flat.view(weight.shape)


def _down(x: Tensor, lora_A: Tensor, geometry: Geometry) -> Tensor:
    """The convolution with A, (batch, rank, *space)."""
    if not _is_product(x, lora_A, geometry):
        return _convolve(x, lora_A, None, geometry)
    return _as_map(lora_A.flatten(1) @ _rows(x).T, x)


def _down_backward(g_low: Tensor, x: Tensor, lora_A: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of A."""
    if not _is_product(x, lora_A, geometry):
        return _backward(g_low, x, lora_A, geometry, 1)
    return (_columns(g_low) @ _rows(x)).view(lora_A.shape)


def _up_backward(gradient: Tensor, low: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of B and of its input.

    Where pixels are rows these are plain products, with operands in an order that takes a quarter of a convolution.
    """
    if _has_rows(gradient):
        g_B = (_columns(low) @ _rows(gradient)).T.view(lora_B.shape)
        return g_B, _as_map(lora_B.flatten(1).T @ _rows(gradient).T, gradient)
    return _backward(gradient, low, lora_B, _point(low), 1), _backward(gradient, low, lora_B, _point(low), 0)


def _point(low: Tensor) -> Geometry:
    """The geometry of a convolution of one pixel at a time."""
    stride, padding, dilation = (tuple(value for _ in low.shape[2:]) for value in (1, 0, 1))
    return stride, padding, dilation


def _is_product(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether a convolution of one pixel at a time is a product of the rows of x with the weight."""
    stride, padding, _ = geometry
    return _has_rows(x) and set(weight.shape[2:]) | set(stride) == {1} and set(padding) == {0}


def _has_rows(x: Tensor) -> bool:
    """Whether the channels are last in memory; False for maps of one pixel, where both layouts are the same."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """(batch, channels, height, width) with the channels last in memory as (pixels, channels), without a copy."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _columns(low: Tensor) -> Tensor:
    """(batch, rank, height, width) as (rank, pixels)."""
    return low.transpose(0, 1).flatten(1)


def _as_map(columns: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_columns`, with the batch and space of ``like``."""
    return columns.view(-1, like.shape[0], *like.shape[2:]).transpose(0, 1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation = geometry
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, (0,) * len(stride), 1)


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Any, which: int) -> Tensor:
    """The gradient with respect to x (``which`` 0) or to the weight (1)."""
    stride, padding, dilation = geometry
    wanted = [number == which for number in range(3)]
    gradients: Any = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, (0,) * len(stride), 1, wanted
    )
    found: Tensor = gradients[which]
    return found
