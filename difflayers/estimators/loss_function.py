"""A user's loss as a function of a sample: called, its shape checked, and evaluated at many samples at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UnsupportedOperationError


def evaluated_together(function: str, loss_fn: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    """loss_fn at samples [S, ...] by torch.func.vmap -> [S, ...]; randomness inside loss_fn differs between samples."""
    try:
        return torch.func.vmap(loss_fn, randomness="different")(samples)
    except (RuntimeError, ValueError) as error:
        # functorch has no exception of its own; an error of the loss itself passes through unchanged
        if "vmap" not in str(error) and "atching rule" not in str(error):
            raise
        raise UnsupportedOperationError(
            f"{function}: argument 'loss_fn' must allow torch.func.vmap where several samples are evaluated together, "
            f"got {type(error).__name__} from it (shown above); pass chunk=1 to evaluate them one by one"
        ) from error


class LossFunction:
    """loss_fn for logits of one shape.

    Attributes:
        lead: the logits' batch dimensions: their shape without `dim`.
    """

    def __init__(self, function: str, loss_fn: Callable[[Tensor], Tensor], logits: Tensor, dim: int) -> None:
        """Checks that loss_fn can be called; dim is negative."""
        if not callable(loss_fn):
            raise TypeError(
                f"{function}: argument 'loss_fn' must be a function of a sample in the shape of the logits, "
                f"got {type(loss_fn).__name__}"
            )
        self.function, self.loss_fn = function, loss_fn
        shape = list(logits.shape)
        del shape[dim]
        self.lead = torch.Size(shape)

    def __call__(self, sample: Tensor) -> Tensor:
        """The loss at one sample, its shape checked."""
        return self._checked(self.loss_fn(sample), 0)

    def together(self, samples: Tensor, chunk: int) -> Tensor:
        """The losses [S, ...] at samples [S, ...], S at most chunk; chunk = 1 calls loss_fn plainly."""
        if chunk == 1:
            return torch.stack([self(sample) for sample in samples])
        return self._checked(evaluated_together(self.function, self.loss_fn, samples), 1)

    def _checked(self, loss: object, extra: int) -> Tensor:
        where = f"{self.function}: argument 'loss_fn' must return"
        if not isinstance(loss, Tensor) or not loss.is_floating_point():
            got = str(loss.dtype).removeprefix("torch.") if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"{where} a floating-point tensor, got {got}")
        shape = loss.shape[extra:]
        if shape != self.lead[: len(shape)]:
            raise ValueError(
                f"{where} a scalar or one loss for each of the leading batch dimensions of the logits, "
                f"a leading part of {tuple(self.lead)}, got shape {tuple(shape)}; sum or average over the others"
            )
        return loss
