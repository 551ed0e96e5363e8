"""The shift that makes the sigmoids of scores sum to k: a one-dimensional root per row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _random

ITERATIONS = 60  # the most; 3 to 6 are usual
TRACED_ITERATIONS = 8  # where a loop cannot end early


def saturation(dtype: torch.dtype) -> float:
    """The distance from the threshold beyond which a score may as well be at this distance.

    exp(-100) is nothing beside 1 in float64, and its reciprocal squared does not overflow.
    """
    return 100.0 if dtype == torch.float64 else 30.0


def near(theta: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """theta relative to the middle of the two scores between which the threshold lies, neither far away: [B, n]."""
    limit = saturation(theta.dtype)
    middle = inside / 2 + outside / 2
    return (theta - middle.detach()).clamp(-limit, limit)


def split(theta: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k-th largest, the next one ([B, 1] each), and which k are the largest ([B, n] bool); 0 < k < n."""
    values, indices = theta.detach().topk(k + 1, dim=1)
    best = torch.zeros_like(theta, dtype=torch.bool).scatter(1, indices[:, :k], True)
    return values[:, k - 1 : k], values[:, k:], best


@torch.no_grad()
def threshold(theta: Tensor, k: int) -> Tensor:
    """[B, 1] lambda with sum_i sigmoid(theta_i - lambda) = k, without gradient.

    Args:
        theta: [B, n], finite.
        k: in (0, n).
    """
    theta = theta.detach()
    inside, outside, best = split(theta, k)
    return inside / 2 + outside / 2 + _root(near(theta, inside, outside), best, k)


@torch.no_grad()
def _root(theta: Tensor, best: Tensor, k: int) -> Tensor:
    """Newton's method on log(what the others have) - log(what the best lack), which falls with slope in (-2, 0).

    At the root the two are equal. Neither suffers from cancellation, however wide the gap at the threshold is.
    A bracket that shrinks at every step catches the steps that go astray.
    """
    n = theta.shape[1]
    sign = torch.where(best, -1.0, 1.0).to(theta.dtype)
    inside = torch.where(best, theta, math.inf).amin(1, keepdim=True)
    outside = torch.where(best, -math.inf, theta).amax(1, keepdim=True)
    low, high = outside - math.log(k), inside + math.log(n - k)
    root = (inside + outside) / 2
    may_stop = theta.device.type == "cpu" and not _random.transformed()
    for _ in range(ITERATIONS if may_stop else TRACED_ITERATIONS):
        wrong = torch.sigmoid(sign * (theta - root))  # how much each element is on the wrong side
        slopes = wrong * (1 - wrong)
        lack, have = (wrong * best).sum(1, keepdim=True), (wrong * ~best).sum(1, keepdim=True)
        slope = (slopes * best).sum(1, keepdim=True) / lack + (slopes * ~best).sum(1, keepdim=True) / have
        difference = (have / lack).log()
        low, high = torch.where(difference > 0, root, low), torch.where(difference > 0, high, root)
        step = difference / slope
        moved = root + step
        root = torch.where((moved >= low) & (moved <= high), moved, (low + high) / 2)
        if may_stop and not bool((step.abs() > 1e-13 * (1 + root.abs())).any()):
            break
    return root


def newton(theta: Tensor, best: Tensor, root: Tensor) -> Tensor:
    """One step from `root`, as differentiable PyTorch: right to one more derivative than `root` was, and exact."""
    wrong = torch.sigmoid(torch.where(best, root - theta, theta - root))
    excess = torch.where(best, -wrong, wrong).sum(1, keepdim=True)
    return root + excess / (wrong * (1 - wrong)).sum(1, keepdim=True)
