"""What the two relaxations by a row-stochastic matrix share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks
from .._choice import Temperature
from ._base import Subset

# theta [B, n], present [B, n] or None, m -> how well each element fits the last m positions of the ascending order:
# [B, m, n]
Fit = Callable[[Tensor, "Tensor | None", int], Tensor]


def last_rows(choice: Subset, fit: Fit, positions: int) -> Tensor:
    """The softmaxes over the elements for the last `positions` positions of the ascending order: [B, positions, n]."""
    if choice.rows.numel() == 0:
        return choice.rows.new_zeros(choice.size, positions, choice.n)
    scores = fit(choice.standardised(), choice.present, positions)
    if choice.present is None:
        return scores.softmax(2)
    scores = torch.where(choice.present[:, None], scores, -math.inf)
    from_best = torch.arange(positions, 0, -1, device=scores.device)[:, None]
    return torch.where(from_best <= choice.present.sum(1)[:, None, None], scores.softmax(2), 0.0)


def matrix(function: str, x: Tensor, temperature: Temperature, descending: bool, dim: int, fit: Fit) -> Tensor:
    """The whole matrix [..., n, n] in the dtype of x."""
    descending = _checks.boolean(function, "descending", descending)
    choice = Subset(function, x, 0, temperature, dim=dim, name="x")  # how many are the best does not matter here
    rows = last_rows(choice, fit, choice.n)
    if descending:
        rows = rows.flip(1)
    if not choice.checked:
        rows = torch.where(choice.good()[..., None], rows, torch.nan)
    return rows.reshape(*choice.lead, choice.n, choice.n).to(choice.dtype)
