"""The search: samples in rounds, local optimisation of the best, termination for each problem by itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .refiners import Refiner
from .result import Hypotheses
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
        mask = None if self.mask is None else self.mask[index]
        return Problems(self.points[index], mask, self.logits[index], self.threshold[index])

    def detach(self) -> Problems:
        """The same without gradient."""
        return Problems(self.points.detach(), self.mask, self.logits.detach(), self.threshold.detach())


class Found(NamedTuple):
    """The best model of each problem so far: `[B, *model_shape]`, `[B]` (-inf: none yet), `[B]` samples drawn."""

    model: Tensor
    score: Tensor
    iterations: Tensor

    @staticmethod
    def nothing(problems: Problems, solver: MinimalSolver) -> Found:
        """No model yet."""
        model = problems.points.new_zeros(len(problems.points), *solver.model_shape)
        score = model.new_full(model.shape[:1], -torch.inf)
        return Found(model, score, torch.zeros_like(score, dtype=torch.int64))


def hypotheses_of(solver: MinimalSolver, sample: Tensor) -> Solutions:
    """The solutions of samples `[B, H, k, d]`, the degenerate and the implausible ones not valid."""
    solved = solver.solve(sample)
    solutions = solved if isinstance(solved, Solutions) else Solutions(*solved)
    with torch.no_grad():
        flat = solutions.models.detach().flatten(3)
        valid = solutions.valid & flat.isfinite().all(-1) & ~solver.degenerate(sample).unsqueeze(-1)
        valid &= solver.plausible(solutions.models.detach(), sample.detach().unsqueeze(2))
    keep = valid[(..., *(None,) * len(solver.model_shape))]
    return Solutions(torch.where(keep, solutions.models, 0), valid, solutions.condition)


@torch.no_grad()
def search(
    solver: MinimalSolver,
    sampler: Sampler,
    scorer: Scorer,
    local: Refiner | None,
    problems: Problems,
    active: Tensor,
    *,
    confidence: float,
    max_iterations: int,
    candidates: int,
    keep: bool,
    generator: torch.Generator | None,
) -> tuple[Found, Hypotheses | None]:
    """The best model of each of the problems with indices `active`, and with keep=True all hypotheses of all problems.

    Each round draws samples for the problems that still need them and scores all their models; the best few are
    optimised locally. A problem is done when a sample of inliers only has been drawn with the confidence asked for,
    judged by the inliers of its best model, or at max_iterations.
    """
    total, wanted = len(problems.points), active
    best = Found.nothing(problems, solver)
    drawn, size, rounds = 0, FIRST_ROUND, []
    while len(active) and drawn < max_iterations:
        size = min(size, max_iterations - drawn)
        now = problems.at(active) if len(active) < total else problems
        samples = sampler.sample(now.logits, solver.sample_size, size, first=drawn, generator=generator)
        found = hypotheses_of(solver, sampler.gather(now.points, now.logits, samples))
        models, valid = found.models.flatten(1, 2), found.valid.flatten(1)
        of_models = scores(solver, scorer, models, now.points, now.mask, now.threshold, valid)
        if keep:
            rounds.append((active, drawn, Hypotheses(found.models, of_models.view_as(found.valid), found.valid,
                                                     found.valid, samples, None)))  # fmt: skip
        model, score = _best_of(solver, scorer, local, now, models, of_models, candidates)
        improved = score > best.score[active]
        rows = active[improved]
        best.model[rows], best.score[rows] = model[improved], score[improved]
        drawn += size
        best.iterations[active] = drawn
        found_one = (best.score[active] > -torch.inf).unsqueeze(-1)
        inliers = inliers_of(solver, best.model[active], now) & found_one
        active = active[drawn < sampler.needed(now.logits, inliers, solver.sample_size, confidence)]
        size = min(2 * size, LAST_ROUND)
    return Found(*(field[wanted] for field in best)), _assembled(rounds, total, drawn) if keep else None


def _best_of(
    solver: MinimalSolver, scorer: Scorer, local: Refiner | None, problems: Problems, models: Tensor,
    of_models: Tensor, candidates: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The best of the models `[B, H, *model_shape]` with these scores, after local optimisation of a few."""
    row = torch.arange(len(models), device=models.device)
    top = of_models.topk(min(candidates, of_models.shape[1]), -1)
    chosen = models[row.unsqueeze(1), top.indices]
    model, score = chosen[:, 0], top.values[:, 0]
    if local is None:
        return model, score
    refined = local.refine(solver, chosen, problems.points, problems.mask, problems.threshold)
    finite = refined.flatten(2).isfinite().all(-1) & top.values.isfinite()
    after, at = scores(solver, scorer, refined, problems.points, problems.mask, problems.threshold, finite).max(-1)
    better = after > score
    choose = better[(..., *(None,) * len(solver.model_shape))]
    return torch.where(choose, refined[row, at], model), torch.where(better, after, score)


def _assembled(rounds: list[tuple[Tensor, int, Hypotheses]], total: int, drawn: int) -> Hypotheses | None:
    """The hypotheses of all rounds side by side; slots of problems that were done earlier are not valid."""
    if not rounds:
        return None
    first = rounds[0][2]
    fields = []
    for name, empty in (("models", 0), ("scores", -torch.inf), ("valid", False), ("stable", False), ("samples", 0)):
        like = getattr(first, name)
        whole = like.new_full((total, drawn, *like.shape[2:]), empty)
        for active, start, hypotheses in rounds:
            part = getattr(hypotheses, name)
            whole[active, start : start + part.shape[1]] = part
        fields.append(whole)
    models, of_models, valid, stable, samples = fields
    return Hypotheses(models, of_models, valid, stable, samples, None)


def inliers_of(solver: MinimalSolver, models: Tensor, problems: Problems) -> Tensor:
    """Which points `[B, N]` are within the threshold of the models `[B, *model_shape]`."""
    inliers = solver.residual(models, problems.points) < problems.threshold.unsqueeze(-1)
    return inliers if problems.mask is None else inliers & problems.mask
