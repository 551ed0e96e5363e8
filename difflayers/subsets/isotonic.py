"""Projections of rows onto permutahedra: the closed form given the blocks, the search for the blocks, the kernels.

A projection is found in two steps. Pool-adjacent-violators finds the order of the scores and the blocks of the
isotonic regression, which are discrete and have no gradient; given these, the result is a closed form of the scores
and the temperature, in differentiable PyTorch and so right to all orders. The kernels (csrc/isotonic.h, which has the
formulas) do both steps at once, and the first derivative; everything else goes through the closed form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ops
from .._autograd import differentiable
from .._choice import Temperature
from .._random import transformed


def project(x: Tensor, temperature: Temperature, task: str, entropic: bool, k: int = 0) -> tuple[Tensor, Tensor]:
    """The projection and the order of the scores.

    Args:
        x: [B, n], float32 or float64.
        temperature: a number, or [B, 1] in the dtype of x.
        task: "rank", "sort", or "topk" with its k.
        entropic: Kullback-Leibler instead of Euclidean.

    Returns:
        The result [B, n]: ranks or membership in the order of x, or the sorted values, ascending; and the
        order [B, n], integers: descending, for "sort" ascending, equal scores in their order in x.
    """
    constant, each = (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
    if not _ops.has_kernel("permutahedron", x.device):
        order, starts = find_blocks(x.detach(), temperature, task, entropic, k)
    elif not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    ):
        fixed = None if each is None else each.detach()
        _, order, starts = _ops.permutahedron(x.detach(), fixed, constant, task, entropic, k)
    else:
        result, order, _ = _fused(x, each, constant, task, entropic, k)
        return result, order
    return closed_form(x, temperature, order, starts, task, entropic, k), order


def closed_form(
    x: Tensor, temperature: Temperature, order: Tensor, starts: Tensor, task: str, entropic: bool, k: int
) -> Tensor:
    """The projection [B, n] given the order and, for each sorted position, the position where its block starts."""
    order, starts = order.long(), starts.long()
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # in which w - mean(w) is exact
    s = x.to(wide).gather(1, order)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(wide)

    def total(v: Tensor) -> Tensor:  # over each block, at each of its positions
        return torch.zeros_like(v).scatter_add(1, starts, v).gather(1, starts)

    def mean(v: Tensor) -> Tensor:
        return total(v) / total(torch.ones_like(v))

    def leading(v: Tensor) -> Tensor:  # the first of each block
        return v.gather(1, starts).detach()

    w = _weights(task, x.shape[1], k, s)
    if task == "topk":
        s = torch.where(s > -torch.inf, s, 0.0)  # masked: each a block of its own with the weight 0
    first = leading(s)  # relative to it nothing cancels
    if task == "sort":
        if entropic:
            a = (w - leading(w)) / temperature
            result = first + total(a.exp()).log() - total((first - s).exp()).log() - a
        else:
            result = first + mean(s - first) - (w - mean(w)) / temperature
        return result.to(x.dtype)
    if entropic:
        e = ((s - first) / temperature).exp()
        result = e * total(w) / total(e)
    else:
        result = mean(w) + (s - first - mean(s - first)) / temperature
        if task == "topk":
            result = result + (result.clamp(0.0, 1.0) - result).detach()  # rounding
    return torch.zeros_like(result).scatter(1, order, result).to(x.dtype)


def _weights(task: str, n: int, k: int, like: Tensor) -> Tensor:
    """w in the shape of `like` [B, n]."""
    index = torch.arange(n, dtype=like.dtype, device=like.device)
    return ((index < k).to(like.dtype) if task == "topk" else n - index).expand_as(like)


def find_blocks(x: Tensor, temperature: Temperature, task: str, entropic: bool, k: int) -> tuple[Tensor, Tensor]:
    """The order and the blocks, where there is no kernel.

    All neighbouring blocks that violate the order are pooled at once, over and over, until none does: O(n) each time,
    and n - 1 times at worst. Under torch.compile and torch.func, which cannot look, it is n - 1 times always.
    """
    rows, n = x.shape
    order = torch.argsort(x, dim=1, descending=task != "sort", stable=True)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    s = x.to(wide).gather(1, order)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(wide)
    w = _weights(task, n, k, s)
    alone = (s == -torch.inf) if task == "topk" else torch.zeros_like(s, dtype=torch.bool)
    s = torch.where(alone, 0.0, -s if task == "sort" else s)
    # a, whose mean must fall by more than that of b from block to block
    a, b = (w / temperature, s) if task == "sort" else (s / temperature, w)
    index = torch.arange(n, device=x.device).expand(rows, n)
    starts = index

    def total(v: Tensor) -> Tensor:
        return torch.zeros_like(v).scatter_add(1, starts, v).gather(1, starts)

    def drop(v: Tensor, logarithmic: bool) -> Tensor:  # of a block's mean or log-sum-exp, to the next position's
        first = v.gather(1, starts)
        more = total((v - first).exp()).log() if logarithmic else total(v - first) / total(torch.ones_like(v))
        return first[:, :-1] - first[:, 1:] + (more[:, :-1] - more[:, 1:])

    for _ in range(n - 1):
        if entropic and task != "sort":
            logs = total(w).log()
            of_b = (logs[:, :-1] - logs[:, 1:]).nan_to_num(nan=torch.inf)  # no weights in either: pooled
        else:
            of_b = drop(b, entropic)
        ordered = ~(drop(a, entropic) <= of_b)  # so that NaN pools nothing
        head = torch.cat([torch.ones_like(alone[:, :1]), ordered], 1)
        head = (head | alone) & (starts == index)  # only between blocks
        found = torch.where(head, index, 0).cummax(1).values
        if not transformed() and x.device.type != "meta" and bool((found == starts).all()):
            break
        starts = found
    return order, starts


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, each, constant, task, entropic, k = inputs
    result, order, starts = output
    # only one kind of gradient reads the result; the others need not keep it alive
    ctx.save_for_backward(x, each, result if entropic and task != "sort" else x, order, starts)
    ctx.settings = constant, task, entropic, k
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradient: Tensor | None, *of_integers: None) -> Any:
    x, each, result, order, starts = ctx.saved_tensors
    nothing = (None,) * 4  # constant, task, entropic, k
    if gradient is None:
        return (None, None, *nothing)
    constant, task, entropic, k = ctx.settings
    of_x, of_temperature = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # create_graph=True: the gradient will itself be differentiated
        wanted = [t for t, want in ((x, of_x), (each, of_temperature)) if want]
        y = closed_form(x, constant if each is None else each, order, starts, task, entropic, k)
        found = list(torch.autograd.grad(y, wanted, gradient, create_graph=True))
        return (found.pop(0) if of_x else None, found.pop(0) if of_temperature else None, *nothing)
    by_x, by_temperature = _ops.permutahedron_backward(
        gradient, x, each, result, order, starts, constant, task, entropic, of_temperature
    )
    return (by_x if of_x else None, by_temperature if of_temperature else None, *nothing)


if _ops.COMPILED:
    _fused = differentiable(_ops.permutahedron, setup_context=_keep, backward=_differentiate)
