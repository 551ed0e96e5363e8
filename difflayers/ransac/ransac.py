"""RANSAC as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._search import Problems, hypotheses_of, inliers_of, search
from .refiners import LeastSquares, Refiner
from .result import Hypotheses, RansacResult, RansacStatus
from .samplers import Sampler, Uniform
from .scorers import MSAC, Scorer
from .scoring import scores
from .solver import MinimalSolver

__all__ = ["RANSAC"]


class RANSAC(nn.Module):
    r"""Fits a model to points of which many are wrong, with gradients to points and logits.

    TODO(docstring)
    """

    def __init__(
        self,
        model: MinimalSolver,
        *,
        threshold: float | Tensor,
        sampler: Sampler | None = None,
        scorer: Scorer | None = None,
        refiner: Refiner | str | None = "auto",
        local: Refiner | str | None = "auto",
        confidence: float = 0.999,
        max_iterations: int = 10_000,
        hypotheses: int = 128,
        candidates: int = 4,
        min_inliers: int | None = None,
        keep_hypotheses: bool | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.threshold = threshold
        self.sampler = sampler or Uniform()
        self.scorer = scorer or MSAC()
        self.refiner = self._default(refiner)
        self.local = self._default(local)
        self.confidence = confidence
        self.max_iterations = max_iterations
        self.hypotheses = hypotheses
        self.candidates = candidates
        self.min_inliers = min_inliers
        self.keep_hypotheses = keep_hypotheses

    def _default(self, refiner: Any) -> Refiner | None:
        if refiner != "auto":
            return refiner
        can_fit = type(self.model).fit is not MinimalSolver.fit
        return LeastSquares() if can_fit else None

    def forward(
        self,
        points: Tensor,
        logits: Tensor | None = None,
        *,
        probabilities: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> RansacResult:
        """The model of the points `[..., n, d]`."""
        solver, size = self.model, self.model.sample_size
        batch_shape, n = points.shape[:-2], points.shape[-2]
        flat = points.reshape(-1, n, points.shape[-1])
        batch = len(flat)
        present = flat.detach().isfinite().all(-1)
        if mask is not None:
            present &= mask.expand(points.shape[:-1]).reshape(batch, n)
        flat = torch.where(present.unsqueeze(-1), flat, 0)
        if probabilities is not None:
            logits = probabilities.log()
        given = logits is not None
        flat_logits = flat.new_zeros(batch, n) if logits is None else logits.expand(points.shape[:-1]).reshape(batch, n)
        flat_logits = flat_logits.masked_fill(~present, -torch.inf)
        enough = (flat_logits > -torch.inf).sum(-1) >= size
        threshold = (
            torch.as_tensor(self.threshold, dtype=flat.dtype, device=flat.device).expand(batch_shape).reshape(-1)
        )
        problems = Problems(flat, None if bool(present.all()) else present, flat_logits, threshold)

        model = flat.new_zeros(batch, *solver.model_shape)
        score = flat.new_full((batch,), -torch.inf)
        iterations = torch.zeros(batch, dtype=torch.int64, device=flat.device)
        kept: Hypotheses | None = None
        at = enough.nonzero().squeeze(-1)
        if len(at):
            now = problems if len(at) == batch else problems.at(at)
            if self.training:
                kept = self._draw(now, given, generator)
                best_score, best = kept.scores.detach().flatten(1).max(-1)
                best_model = kept.models.flatten(1, 2)[torch.arange(len(at), device=flat.device), best]
                drawn = torch.full_like(at, self.hypotheses)
            else:
                detached = Problems(*(None if field is None else field.detach() for field in now))
                best_model, best_score, drawn = search(
                    solver, self.sampler, self.scorer, self.local, detached, confidence=self.confidence,
                    max_iterations=self.max_iterations, candidates=self.candidates, generator=generator,
                )  # fmt: skip
            best_model, best_score = self._refined(best_model, best_score, now)
            model, score = model.index_copy(0, at, best_model), score.index_copy(0, at, best_score)
            iterations = iterations.index_copy(0, at, drawn)

        with torch.no_grad():
            exists = score > -torch.inf
            inliers = inliers_of(solver, model.detach(), problems) & exists.unsqueeze(-1)
            supported = inliers.sum(-1) >= (size if self.min_inliers is None else self.min_inliers)
            status = torch.full_like(iterations, RansacStatus.FOUND)
            status[~supported] = RansacStatus.TOO_FEW_INLIERS
            status[~exists] = RansacStatus.DEGENERATE
            status[~enough] = RansacStatus.TOO_FEW_POINTS
            found = status == RansacStatus.FOUND
        model = torch.where(found[(..., *(None,) * len(solver.model_shape))], model, torch.nan)
        shape = lambda x: x.reshape(*batch_shape, *x.shape[1:])  # noqa: E731
        return RansacResult(
            shape(model), shape(inliers & found.unsqueeze(-1)), shape(torch.where(found, score, -torch.inf)),
            shape(iterations), shape(status), kept,
        )  # fmt: skip

    def _draw(self, problems: Problems, given: bool, generator: torch.Generator | None) -> Hypotheses:
        solver = self.model
        with torch.no_grad():
            samples = self.sampler.sample(problems.logits, solver.sample_size, self.hypotheses, generator=generator)
        found = hypotheses_of(solver, self.sampler.gather(problems.points, problems.logits, samples))
        of_models = scores(
            solver, self.scorer, found.models.flatten(1, 2), problems.points, problems.mask, problems.threshold,
            found.valid.flatten(1),
        )  # fmt: skip
        stable = found.valid if found.condition is None else found.valid & (found.condition < solver.worst_condition)
        log_prob = self.sampler.log_prob(problems.logits, samples) if given else None
        return Hypotheses(found.models, of_models.view_as(found.valid), found.valid, stable, samples, log_prob)

    def _refined(self, model: Tensor, score: Tensor, problems: Problems) -> tuple[Tensor, Tensor]:
        """The models refined where that makes the score better."""
        if self.refiner is None:
            return model, score
        better_model = self.refiner.refine(self.model, model.unsqueeze(1), *problems[:2], problems.threshold).squeeze(1)
        with torch.no_grad():
            finite = better_model.flatten(1).isfinite().all(-1) & score.isfinite()
            after = scores(
                self.model, self.scorer, better_model.unsqueeze(1), *problems[:2], problems.threshold,
                finite.unsqueeze(1),
            ).squeeze(1)  # fmt: skip
            better = after > score
        choose = better[(..., *(None,) * len(self.model.model_shape))]
        return torch.where(choose, better_model, model), torch.where(better, after, score)
