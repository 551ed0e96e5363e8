"""The search: samples in rounds, local optimisation of the best, termination for each problem by itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .refiners import Refiner
from .samplers import Sampler
from .scorers import Scorer
from .scoring import scores
from .solver import MinimalSolver, Solutions

FIRST_ROUND, LAST_ROUND = 32, 512


class Problems(NamedTuple):
    """A batch of problems as the search sees it.

    Attributes:
        points: `[B, N, d]`, finite.
        mask: `[B, N]` bool, or None: all points are present.
        logits: `[B, N]`, -inf where a point must not be drawn.
        threshold: `[B]`.
    """

    points: Tensor
    mask: Tensor | None
    logits: Tensor
    threshold: Tensor

    def at(self, index: Tensor) -> Problems:
        """The problems with these indices."""
        return Problems(*(None if field is None else field[index] for field in self))


class Found(NamedTuple):
    """The best model of each problem so far: `[B, *model_shape]`, `[B]` (-inf: none yet), `[B]` samples drawn."""

    model: Tensor
    score: Tensor
    iterations: Tensor


def hypotheses_of(solver: MinimalSolver, sample: Tensor) -> Solutions:
    """The solutions of samples `[B, H, k, d]`, the degenerate and the implausible ones not valid."""
    solutions = Solutions(*solver.solve(sample))
    with torch.no_grad():
        shape = solutions.models.shape
        flat = solutions.models.detach().reshape(*shape[:3], -1)
        valid = solutions.valid & flat.isfinite().all(-1) & ~solver.degenerate(sample).unsqueeze(-1)
        valid &= solver.plausible(solutions.models.detach(), sample.detach().unsqueeze(2))
    keep = valid[(..., *(None,) * len(solver.model_shape))]
    return Solutions(torch.where(keep, solutions.models, 0), valid, solutions.condition)


def samples_needed(share: Tensor, size: int, confidence: float) -> Tensor:
    """How many samples contain one of inliers only with this confidence, if each point drawn is one with
    probability `share`: log(1 - confidence) / log(1 - share^size), inf for share = 0."""
    all_inliers = share.double().pow(size).clamp(max=1 - 1e-15)  # a share of 1 needs one sample, not 0 / -inf
    return math.log1p(-confidence) / torch.log1p(-all_inliers)


@torch.no_grad()
def search(
    solver: MinimalSolver,
    sampler: Sampler,
    scorer: Scorer,
    local: Refiner | None,
    problems: Problems,
    *,
    confidence: float,
    max_iterations: int,
    candidates: int,
    generator: torch.Generator | None,
) -> Found:
    """The best model of each problem.

    Each round draws samples for the problems that still need them and scores all their models; the best few are
    optimised locally. A problem is done when a sample of inliers only has been drawn with the confidence asked for,
    judged by the inliers of its best model, or at max_iterations.
    """
    batch, count, _ = problems.points.shape
    device, dtype = problems.points.device, problems.points.dtype
    model = torch.zeros((batch, *solver.model_shape), device=device, dtype=dtype)
    score = torch.full((batch,), -torch.inf, device=device, dtype=dtype)
    iterations = torch.zeros(batch, dtype=torch.int64, device=device)
    active, drawn, size = torch.arange(batch, device=device), 0, FIRST_ROUND
    chance = problems.logits.double().softmax(-1)
    while len(active) and drawn < max_iterations:
        size = min(size, max_iterations - drawn)
        now = problems.at(active) if len(active) < batch else problems
        samples = sampler.sample(now.logits, solver.sample_size, size, first=drawn, generator=generator)
        found = hypotheses_of(solver, sampler.gather(now.points, now.logits, samples))
        models, valid = found.models.flatten(1, 2), found.valid.flatten(1)
        of_models = scores(solver, scorer, models, now.points, now.mask, now.threshold, valid)
        best = of_models.topk(min(candidates, of_models.shape[1]), -1)
        chosen = models[torch.arange(len(active), device=device).unsqueeze(1), best.indices]
        top_score, top_model = best.values[:, 0], chosen[:, 0]
        if local is not None:
            refined = local.refine(solver, chosen, now.points, now.mask, now.threshold)
            finite = refined.flatten(2).isfinite().all(-1) & best.values.isfinite()
            of_refined = scores(solver, scorer, refined, now.points, now.mask, now.threshold, finite)
            value, at = of_refined.max(-1)
            better = value > top_score
            top_score = torch.where(better, value, top_score)
            best_refined = refined[torch.arange(len(active), device=device), at]
            top_model = torch.where(better[(..., *(None,) * len(solver.model_shape))], best_refined, top_model)
        improved = top_score > score[active]
        rows = active[improved]
        model[rows], score[rows] = top_model[improved], top_score[improved]
        drawn += size
        iterations[active] = drawn
        inliers = inliers_of(solver, model[active], now)
        share = torch.where(inliers, chance[active], 0).sum(-1)
        # the draws are without replacement: from few points, a set of inliers is rarer than share^k
        present = count if now.mask is None else now.mask.sum(-1)
        share = torch.where(share < 1, share - (solver.sample_size - 1) / (2 * present), share).clamp(min=0)
        needed = samples_needed(share, solver.sample_size, confidence)
        active = active[drawn < needed]
        size = min(2 * size, LAST_ROUND)
    return Found(model, score, iterations)


def inliers_of(solver: MinimalSolver, models: Tensor, problems: Problems) -> Tensor:
    """Which points `[B, N]` are within the threshold of the models `[B, *model_shape]`."""
    inliers = solver.residual(models, problems.points) < problems.threshold.unsqueeze(-1)
    return inliers if problems.mask is None else inliers & problems.mask
