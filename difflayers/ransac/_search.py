"""The search: samples in rounds, local optimisation of the best, termination for each problem by itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .refiners import Refiner
from .result import Hypotheses
from .samplers import Sampler, Uniform
from .scorers import Scorer
from .scoring import scores
from .solver import MinimalSolver, Solutions

FIRST_ROUND, LAST_ROUND = 32, 1024  # samples; rounds double in between
WORTHWHILE = 0.5  # of the best score so far: what a model must have to be optimised locally
TESTED = 4  # models that are tested for plausibility for each candidate
RESAMPLED, RESAMPLINGS = 64, 10  # samples of a model's own inliers, and how often in a row
GAIN = 1e-3  # by how much of the score resampling must improve a model to go on


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
    solutions = solved(solver, sample)
    with torch.no_grad():
        valid = solutions.valid & ~solver.degenerate(sample).unsqueeze(-1)
        valid &= solver.plausible(solutions.models.detach(), sample.detach().unsqueeze(2))
    return Solutions(torch.where(_per_model(valid, solver), solutions.models, 0), valid, solutions.condition)


def solved(solver: MinimalSolver, sample: Tensor) -> Solutions:
    """The solutions of samples `[B, H, k, d]`; what is not finite is not valid."""
    found = _solutions(solver, sample)
    finite = found.models.detach().flatten(3).isfinite().all(-1)
    if sample.requires_grad and torch.is_grad_enabled() and not bool(finite.all()):
        # a model that is not finite would turn the gradient, 0, into NaN: another sample stands in for its own
        good = finite.all(-1)
        finite = finite & good.unsqueeze(-1)
        stand_in = sample.detach()[good][0] if bool(good.any()) else None
        if stand_in is None:
            nothing = (0 * sample.flatten(2).sum(-1))[(..., None, *(None,) * len(solver.model_shape))]
            return Solutions(nothing.expand(found.models.shape), finite, None)
        found = _solutions(solver, torch.where(good[..., None, None], sample, stand_in))
    return Solutions(found.models, found.valid & finite, found.condition)


def _solutions(solver: MinimalSolver, sample: Tensor) -> Solutions:
    found = solver.solve(sample)
    return found if isinstance(found, Solutions) else Solutions(*found)


class Settings(NamedTuple):
    """What a search is made of; see `RANSAC`."""

    solver: MinimalSolver
    sampler: Sampler
    scorer: Scorer
    local: Refiner | None
    confidence: float
    max_iterations: int
    candidates: int
    keep: bool


@torch.no_grad()
def search(
    settings: Settings, problems: Problems, active: Tensor, generator: torch.Generator | None
) -> tuple[Found, Hypotheses | None]:
    """The best model of each of the problems with indices `active`, and with keep=True all hypotheses of all problems.

    Each round draws samples for the problems that still need them and scores all their models; the best few are
    optimised locally. A problem is done when a sample of inliers only has been drawn with the confidence asked for,
    judged by the inliers of its best model, or at max_iterations.
    """
    solver, total, wanted = settings.solver, len(problems.points), active
    best = Found.nothing(problems, solver)
    drawn, size, rounds = 0, FIRST_ROUND, []
    while len(active) and drawn < settings.max_iterations:
        size = min(size, settings.max_iterations - drawn)
        now = problems.at(active) if len(active) < total else problems
        samples = settings.sampler.sample(now.logits, solver.sample_size, size, first=drawn, generator=generator)
        sample = settings.sampler.gather(now.points, now.logits, samples)
        if settings.keep:
            found = hypotheses_of(solver, sample)
            of_all = _scores(settings, found.models.flatten(1, 2), now, found.valid.flatten(1))
            parts = found.models, of_all.view_as(found.valid), found.valid, found.valid, samples
            rounds.append((active, drawn, Hypotheses(*parts, None)))
        else:
            found, of_all = solved(solver, sample), None
        model, score = _best_of_round(settings, now, sample, found, of_all, best.score[active], generator)
        if settings.local is not None:
            model, score = _resampled(settings, now, model, score, best.score[active], drawn + size, generator)
        improved = score > best.score[active]
        rows = active[improved]
        best.model[rows], best.score[rows] = model[improved], score[improved]
        drawn += size
        best.iterations[active] = drawn
        found_one = (best.score[active] > -torch.inf).unsqueeze(-1)
        inliers = inliers_of(solver, best.model[active], now) & found_one
        needed = settings.sampler.needed(now.logits, inliers, solver.sample_size, settings.confidence)
        left = needed[drawn < needed] - drawn
        active = active[drawn < needed]
        # no more than the problem that is furthest from its end still needs
        size = (
            min(2 * size, LAST_ROUND, max(FIRST_ROUND, math.ceil(min(float(left.max()), LAST_ROUND))))
            if len(left)
            else 0
        )
    return Found(*(field[wanted] for field in best)), _assembled(rounds, total, drawn) if settings.keep else None


def _best_of_round(
    settings: Settings, problems: Problems, sample: Tensor, found: Solutions, of_models: Tensor | None, so_far: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The best model `[B, *model_shape]` of a round and its score, after local optimisation of a few candidates.

    Only models that score at least a share of the best one so far are worth that; and as few models are, only the
    best are tested for degenerate samples and impossible cameras.
    """
    solver, slots = settings.solver, found.valid.shape[2]
    row = torch.arange(len(sample), device=sample.device)
    models = found.models.flatten(1, 2)
    enough = WORTHWHILE * so_far.clamp(min=0)
    if of_models is None:
        of_models = _scores(settings, models, problems, found.valid.flatten(1), enough)
    top = of_models.topk(min(TESTED * settings.candidates, of_models.shape[1]), -1)
    chosen = models[row.unsqueeze(1), top.indices]
    of_chosen = sample[row.unsqueeze(1), top.indices // slots]
    good = (top.values >= enough.unsqueeze(1)) & ~solver.degenerate(of_chosen)
    good &= solver.plausible(chosen, of_chosen)
    top = torch.where(good, top.values, -torch.inf).topk(min(settings.candidates, top.values.shape[1]), -1)
    chosen = chosen.take_along_dim(_per_model(top.indices, solver), 1)
    model, score = chosen[:, 0], top.values[:, 0]
    # candidates are sorted by score: beyond the most that any problem has there are none
    count = int(top.values.isfinite().sum(-1).max())
    if settings.local is None or count == 0:
        return model, score
    chosen, worth = chosen[:, :count], top.values[:, :count].isfinite()
    of_chosen = of_chosen.take_along_dim(top.indices[:, :count, None, None], 1)
    chosen = solver.repair(chosen, of_chosen, *problems[:2], problems.threshold, generator=generator)
    refined = settings.local.refine(solver, chosen, *problems[:2], problems.threshold)
    after, at = _scores(settings, refined, problems, worth & refined.flatten(2).isfinite().all(-1)).max(-1)
    better = after > score
    return torch.where(_per_model(better, solver), refined[row, at], model), torch.where(better, after, score)


def _resampled(
    settings: Settings,
    problems: Problems,
    model: Tensor,
    score: Tensor,
    so_far: Tensor,
    drawn: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The models `[B, *model_shape]` that are the best so far, improved by samples of their own inliers as long as that
    goes on; not those with so many inliers that a search without logits would end with them.

    Among the inliers of a model that is partly right, more points are good than among all: with 20 % inliers a sample
    of 7 good points is not to be expected in 10,000, but one of 5 is, and its inliers lead to the rest. (Inner RANSAC:
    Chum, Matas, Kittler, "Locally Optimized RANSAC", DAGM 2003, with minimal samples.)
    """
    solver, size = settings.solver, settings.solver.sample_size
    for _ in range(RESAMPLINGS):
        with_inliers = inliers_of(solver, model, problems) & (problems.logits > -torch.inf)
        # By their number, not by how likely they are to be drawn: that one good sample was drawn ends a search, but of
        # points that a guide draws again and again it may be a poor one.
        needed = Uniform().needed(problems.logits, with_inliers, size, settings.confidence)
        at = ((with_inliers.sum(-1) > size) & (score > so_far) & (needed > drawn)).nonzero().squeeze(-1)
        if not len(at):
            break
        inner = problems.at(at)
        logits = torch.zeros_like(inner.logits).masked_fill(~with_inliers[at], -torch.inf)
        samples = Uniform().sample(logits, size, RESAMPLED, generator=generator)
        sample = Sampler.gather(settings.sampler, inner.points, logits, samples)
        better, value = _best_of_round(settings, inner, sample, solved(solver, sample), None, score[at], generator)
        improved = value > score[at] * (1 + GAIN)
        rows = at[improved]
        if not len(rows):
            break
        model, score = model.index_copy(0, rows, better[improved]), score.index_copy(0, rows, value[improved])
    return model, score


def _scores(
    settings: Settings, models: Tensor, problems: Problems, valid: Tensor, at_least: Tensor | None = None
) -> Tensor:
    points, mask, _, threshold = problems
    return scores(settings.solver, settings.scorer, models, points, mask, threshold, valid, at_least)


def _per_model(values: Tensor, solver: MinimalSolver) -> Tensor:
    """`[...]` -> `[..., 1, 1]`, to broadcast with models `[..., *model_shape]`."""
    return values[(..., *(None,) * len(solver.model_shape))]


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
