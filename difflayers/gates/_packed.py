"""Packed sequences while a model is traced: as if all sequences were of full length.

How many rows a packed sequence has depends on values, which a trace does not know. Channels do not depend on it: for
the trace, the data are those of the padded tensor, `[time * batch, channels]`, with one entry of `batch_sizes` a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

__all__ = ["as_padded"]


class _Padded:
    """torch._VF for torch.nn.utils.rnn, with these two functions in place of its own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch._VF, name)

    @staticmethod
    def _pack_padded_sequence(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        x = x.transpose(0, 1) if batch_first else x
        return x.flatten(0, 1), lengths.new_ones(x.shape[0])

    @staticmethod
    def _pad_packed_sequence(
        data: Tensor, batch_sizes: Tensor, batch_first: bool, padding: float, total: int
    ) -> tuple[Tensor, Tensor]:
        x = _unpacked(data, batch_sizes)
        if total > x.shape[0]:
            x = F.pad(x, [0, 0] * (x.dim() - 1) + [0, total - x.shape[0]], value=padding)
        return (x.transpose(0, 1) if batch_first else x), batch_sizes.new_ones(x.shape[1])


def _unpacked(data: Tensor, batch_sizes: Tensor) -> Tensor:
    steps = batch_sizes.shape[0]
    return data.reshape(steps, data.shape[0] // max(1, steps), *data.shape[1:])


def _on_padded(forward: Any) -> Any:
    """A recurrent layer's forward that takes packed sequences for padded ones."""

    def run(self: nn.RNNBase, input: Any, hx: Any = None) -> Any:
        if not isinstance(input, rnn.PackedSequence):
            return forward(self, input, hx)
        x = _unpacked(input.data, input.batch_sizes)
        y, state = forward(self, x.transpose(0, 1) if self.batch_first else x, hx)
        y = (y.transpose(0, 1) if self.batch_first else y).flatten(0, 1)
        return rnn.PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices), state

    return run


@contextmanager
def as_padded(model: nn.Module) -> Iterator[None]:
    """Within, what packs in this model pads."""
    kinds: set[Any] = {
        kind for module in model.modules() for kind in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, kind)
    }
    if not kinds:
        yield
        return
    before = {kind: kind.forward for kind in kinds}
    known: Any = rnn
    library = known._VF
    try:
        known._VF = _Padded()
        for kind in kinds:
            kind.forward = _on_padded(before[kind])
        yield
    finally:
        known._VF = library
        for kind in kinds:
            kind.forward = before[kind]
