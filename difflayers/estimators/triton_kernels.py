"""Gumbel-Softmax, straight-through and ReinMax fused for CUDA, in Triton; the operators of csrc/cpu/choice.cpp.

A program works on a tile of rows and walks their columns in blocks. All passes read their input again instead of
keeping it, as a row may be longer than the registers hold. A bad row (NaN or +inf in it, or nothing but -inf)
comes out as NaN. With TRITON_INTERPRET=1 in the environment the same code runs on the CPU, for the tests.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # elements in flight in a program, 16 to a thread


def gumbel_softmax(
    logits: Tensor, bits: Tensor, temperature: Tensor | None, constant: float, hard: bool
) -> tuple[Tensor, Tensor]:
    """Returns (soft, sample); the sample is empty unless hard."""
    logits, bits = logits.contiguous(), bits.contiguous()
    soft = torch.empty_like(logits)
    sample = torch.empty_like(logits) if hard else logits.new_empty(0)
    _launch(_gumbel_softmax, logits, (logits, bits, soft, sample), temperature, constant, HARD=hard)
    return soft, sample


def gumbel_softmax_backward(gradient: Tensor, soft: Tensor, temperature: Tensor | None, constant: float) -> Tensor:
    """The gradient by the logits, soft * (gradient - <soft, gradient>) / temperature."""
    result = torch.empty_like(soft)
    _launch(_gumbel_softmax_backward, soft, (gradient.contiguous(), soft, result), temperature, constant)
    return result


def choose(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (sample, marked): see `fused._Choose`."""
    logits = logits.contiguous()
    sample, marked = torch.empty_like(logits), torch.empty_like(logits)
    _launch(_choose, logits, (logits, uniform.contiguous(), sample, marked), None, 1.0)
    return sample, marked


def choose_backward(gradient: Tensor, marked: Tensor, temperature: Tensor | None, constant: float, kind: str) -> Tensor:
    """The gradient by the logits; kind "straight_through" or "reinmax"."""
    result = torch.empty_like(marked)
    arguments = (gradient.contiguous(), marked, result)
    _launch(_choose_backward, marked, arguments, temperature, constant, REINMAX=kind == "reinmax")
    return result


def _launch(
    kernel: Any, like: Tensor, tensors: tuple[Tensor, ...], temperature: Tensor | None, constant: float, **flags: bool
) -> None:
    rows, n = like.shape
    block = min(triton.next_power_of_2(n), _TILE)
    tile = _TILE // block
    per_row = temperature is not None
    temperatures = temperature.contiguous() if temperature is not None else like  # something to point at
    device = torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    with device:
        kernel[(triton.cdiv(rows, tile),)](
            *tensors, temperatures, constant, rows, n, PER_ROW=per_row, TILE=tile, BLOCK=block, num_warps=8, **flags
        )


@triton.jit
def _rows_of_program(temperatures, constant, rows, PER_ROW: tl.constexpr, TILE: tl.constexpr):
    # the rows of this program and their temperatures, as columns
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    if PER_ROW:
        temperature = tl.load(temperatures + row, mask=row < rows, other=1.0)
    else:
        temperature = tl.full((TILE, 1), 1.0, tl.float32) * constant
    return row, temperature


@triton.jit
def _gumbel(bits):
    # as _random.gumbel_of; 1 - u is rounded, and the quotient makes up for it (Kahan's log1p)
    u = ((bits & 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10
    u = tl.minimum(u, 0.99999994)
    rest = 1.0 - u
    exact = rest == 1.0
    exponential = tl.where(exact, u, tl.log(rest) * (u / tl.where(exact, 1.0, rest - 1.0)))
    return -tl.log(exponential)


@triton.jit
def _gumbel_softmax(logits, bits, soft, sample, temperatures, constant, rows, n, PER_ROW: tl.constexpr,
                    TILE: tl.constexpr, BLOCK: tl.constexpr, HARD: tl.constexpr):  # fmt: skip
    row, temperature = _rows_of_program(temperatures, constant, rows, PER_ROW, TILE)
    largest = tl.full((TILE, 1), float("-inf"), tl.float32)
    total = tl.zeros((TILE, 1), tl.float32)
    index = tl.zeros((TILE, 1), tl.int32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        at = row * n + column
        key = tl.load(logits + at, mask=inside, other=float("-inf"))
        key += _gumbel(tl.load(bits + at, mask=inside, other=1))
        here = tl.max(key, 1, keep_dims=True)
        index = tl.where(here > largest, start + tl.argmax(key, 1, keep_dims=True).to(tl.int32), index)
        larger = tl.maximum(here, largest)
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # nothing but -inf so far
        total = total * tl.exp((largest - shift) / temperature)
        total += tl.sum(tl.exp((key - shift) / temperature), 1, keep_dims=True)
        largest = larger
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        at = row * n + column
        key = tl.load(logits + at, mask=inside, other=float("-inf"))
        key += _gumbel(tl.load(bits + at, mask=inside, other=1))
        weight = tl.exp((key - largest) / temperature) / total  # NaN in a bad row, throughout: total is NaN or 0
        tl.store(soft + at, weight, mask=inside)
        if HARD:
            chosen = tl.where(column == index, 1.0, 0.0)
            tl.store(sample + at, tl.where(total > 0, chosen, float("nan")), mask=inside)


@triton.jit
def _gumbel_softmax_backward(gradient, soft, result, temperatures, constant, rows, n, PER_ROW: tl.constexpr,
                             TILE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, temperature = _rows_of_program(temperatures, constant, rows, PER_ROW, TILE)
    mean = tl.zeros((TILE, 1), tl.float32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        at = row * n + column
        weight = tl.load(soft + at, mask=inside, other=0.0)
        mean += tl.sum(weight * tl.load(gradient + at, mask=inside, other=0.0), 1, keep_dims=True)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        at = row * n + column
        weight = tl.load(soft + at, mask=inside, other=0.0)
        centred = tl.load(gradient + at, mask=inside, other=0.0) - mean
        tl.store(result + at, weight * centred / temperature, mask=inside)


@triton.jit
def _choose(logits, uniform, sample, marked, temperatures, constant, rows, n, PER_ROW: tl.constexpr,
            TILE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, _ = _rows_of_program(temperatures, constant, rows, PER_ROW, TILE)
    largest = tl.full((TILE, 1), float("-inf"), tl.float32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        value = tl.load(logits + row * n + column, mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(value, 1, keep_dims=True))
    total = tl.zeros((TILE, 1), tl.float64)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        value = tl.load(logits + row * n + column, mask=inside, other=float("-inf"))
        total += tl.sum(tl.exp(value - largest).to(tl.float64), 1, keep_dims=True)
    threshold = tl.load(uniform + row, mask=row < rows, other=0.0) * total
    passed = tl.zeros((TILE, 1), tl.float64)
    index = tl.full((TILE, 1), 2147483647, tl.int32)
    last = tl.zeros((TILE, 1), tl.int32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        value = tl.load(logits + row * n + column, mask=inside, other=float("-inf"))
        weight = tl.exp(value - largest).to(tl.float64)
        possible = weight > 0  # a class of probability 0 is never chosen
        reached = possible & (passed + tl.cumsum(weight, 1) > threshold)
        index = tl.minimum(index, tl.min(tl.where(reached, column, 2147483647), 1, keep_dims=True))
        last = tl.maximum(last, tl.max(tl.where(possible, column, 0), 1, keep_dims=True))
        passed += tl.sum(weight, 1, keep_dims=True)
    index = tl.minimum(index, last)  # where rounding kept the sum below the threshold
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        at = row * n + column
        distance = tl.abs(largest - tl.load(logits + at, mask=inside, other=float("-inf")))
        chosen = column == index
        tl.store(marked + at, tl.where(chosen, distance, -distance), mask=inside)
        tl.store(sample + at, tl.where(total > 0, tl.where(chosen, 1.0, 0.0), float("nan")), mask=inside)


@triton.jit
def _choose_backward(gradient, marked, result, temperatures, constant, rows, n, PER_ROW: tl.constexpr,
                     TILE: tl.constexpr, BLOCK: tl.constexpr, REINMAX: tl.constexpr):  # fmt: skip
    row, temperature = _rows_of_program(temperatures, constant, rows, PER_ROW, TILE)
    total = tl.zeros((TILE, 1), tl.float32)
    product = tl.zeros((TILE, 1), tl.float32)
    tempered_total = tl.zeros((TILE, 1), tl.float32)
    tempered_product = tl.zeros((TILE, 1), tl.float32)
    at_choice = tl.zeros((TILE, 1), tl.float32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        at = row * n + column
        value = tl.load(marked + at, mask=inside, other=float("-inf"))
        g = tl.load(gradient + at, mask=inside, other=0.0)
        tempered = tl.exp(-tl.abs(value) / temperature)
        tempered_total += tl.sum(tempered, 1, keep_dims=True)
        tempered_product += tl.sum(tempered * g, 1, keep_dims=True)
        if REINMAX:
            weight = tl.exp(-tl.abs(value))
            total += tl.sum(weight, 1, keep_dims=True)
            product += tl.sum(weight * g, 1, keep_dims=True)
            chosen = value.to(tl.int32, bitcast=True) >= 0
            at_choice += tl.sum(tl.where(chosen, g, 0.0), 1, keep_dims=True)
    tempered_mean = tempered_product / tempered_total
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < n)
        at = row * n + column
        value = tl.load(marked + at, mask=inside, other=float("-inf"))
        g = tl.load(gradient + at, mask=inside, other=0.0)
        tempered = tl.exp(-tl.abs(value) / temperature) / tempered_total
        if REINMAX:
            chosen = value.to(tl.int32, bitcast=True) >= 0
            middle = 0.5 * (tempered + tl.where(chosen, 1.0, 0.0))
            at_middle = 0.5 * (tempered_mean + at_choice)
            weight = tl.exp(-tl.abs(value)) / total
            of_logits = 2.0 * middle * (g - at_middle) - 0.5 * weight * (g - product / total)
        else:
            of_logits = tempered * (g - tempered_mean) / temperature
        tl.store(result + at, of_logits, mask=inside)


OPERATORS: Any = SimpleNamespace(
    gumbel_softmax=gumbel_softmax,
    gumbel_softmax_backward=gumbel_softmax_backward,
    choose=choose,
    choose_backward=choose_backward,
)
