"""RANSAC as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks, protocols
from ..errors import DegenerateModelError, UnsupportedOperationError
from ._search import Problems, Settings, hypotheses_of, inliers_of, search
from .refiners import Refiner
from .refiners.base import default_refiner
from .result import Hypotheses, RansacResult, RansacStatus
from .samplers import GumbelTopK, Sampler
from .scorers import MSAC, Scorer
from .scoring import scores
from .solver import checked_solver

__all__ = ["RANSAC"]


class RANSAC(nn.Module):
    r"""Fits a model to points of which many are wrong, with gradients to the points and to their logits.

    Minimal samples are drawn, each gives hypotheses $m_h$, and each is scored on all points,
    $s_h = \sum_i s(r(m_h, x_i)^2 / \text{threshold}^2)$. The best one is refined.

    `.eval()` searches: rounds of samples, local optimisation of the best, and for each problem an end as soon as a
    sample of inliers only has been drawn with the confidence asked for. The returned model has the gradient of the
    refined optimum by the points. `.train()` draws exactly `hypotheses` samples, without local optimisation or early
    end, and returns all of them with their gradients: pathwise by the points through solver and score, and
    `log_prob` by the logits, from which `difflayers.ransac.expected_loss` makes an unbiased gradient of the expected
    loss. These are the only differences between the two.

    Args:
        model: what is fitted, a `MinimalSolver`: `Line2D()`, `Homography()`, `EssentialMatrix()`, your own.
        threshold: distance in the units of the points up to which a point is an inlier; a positive number, or a
            tensor that broadcasts to the batch, a parameter if it is to be learned.
        sampler: draws the samples; default `GumbelTopK()`, which without logits is uniform.
        scorer: scores the hypotheses; default `MSAC()`.
        refiner: improves the model found; "auto" takes the best one that the model can do, None none.
        local: improves the best candidates during the search (`.eval()` only); as `refiner`.
        confidence: of having drawn a sample of inliers only, in (0, 1).
        max_iterations: the most samples of a search.
        hypotheses: samples drawn in training.
        candidates: how many models of each round are optimised locally.
        min_inliers: a model with fewer is not returned; default one more than a minimal sample, if there are so many
            points. The default rejects what agrees with nothing, not what agrees by chance: the best of thousands of
            models has some inliers among random points, too (of 60, at a threshold of a hundredth to a thousandth of
            their range, 6 a line, 8 an essential, 10 a fundamental matrix). Where problems without a model occur, set
            it above what random points of your own number, range and threshold reach.
        keep_hypotheses: whether the result has all hypotheses; default in training only. Those of a search take
            O(max_iterations) memory and have no gradient.
        on_failure: "nan": a problem that cannot be solved has a NaN model and a status; "raise": that is an error.

    Returns:
        Of a call with points `[..., n, d]`, and optionally logits or probabilities `[..., n]` (how much each point is
        to be drawn; -inf or 0: never), mask `[..., n]` (True = present) and generator: `RansacResult`. Points that are
        not finite count as absent. The same seed gives the same result for the same batch; what is drawn for a problem
        depends on the others in it.

    Raises:
        TypeError: points, logits or probabilities are not floating-point tensors, mask is not bool, model is not a
            `MinimalSolver`.
        ValueError: shapes that do not fit, both logits and probabilities, NaN or +inf logits, probabilities that are
            negative or not finite, settings out of range.
        DegenerateModelError: with on_failure="raise", a problem has no model; the whole result is in `.result`.
        UnsupportedOperationError: under torch.func transforms and torch.export.

    Cost:
        O(samples x points) time; memory O(samples + points), as scores are computed without forming all residuals.

    Transforms:
        backward, DDP, checkpointing; torch.compile breaks the graph.

    References:
        Fischler, Bolles, "Random Sample Consensus", CACM 1981. Wei, Patel, Shekhovtsov, Matas, Barath, "Generalized
        Differentiable RANSAC", ICCV 2023, arXiv 2212.13185 (the idea; the gradient by the logits is another one, see
        `expected_loss`). Chum, Matas, Kittler, "Locally Optimized RANSAC", DAGM 2003.

    Example:
        >>> import torch, difflayers as dl
        >>> x = torch.linspace(0, 1, 20)
        >>> points = torch.stack([x, 2 * x + 1], -1)
        >>> points[::3, 1] = 5 - x[::3]  # a third of them is wrong
        >>> result = dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=0.05).eval()(points)
        >>> a, b, c = result.model
        >>> round(float(-a / b), 3), round(float(-c / b), 3), int(result.inliers.sum())
        (2.0, 1.0, 13)
    """

    def __init__(
        self,
        model: protocols.MinimalSolver,
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
        on_failure: str = "nan",
    ) -> None:
        super().__init__()
        name = "difflayers.ransac.RANSAC"
        self.model = checked_solver(name, "model", model)
        for label, value, kind in (("sampler", sampler, Sampler), ("scorer", scorer, Scorer)):
            if not isinstance(value, kind) and value is not None:
                raise TypeError(
                    f"{name}: argument '{label}' must be a difflayers.ransac.{kind.__name__}, "
                    f"got {value.__name__ if isinstance(value, type) else type(value).__name__}; pass an instance"
                )
        if isinstance(threshold, Tensor):
            value = _checks.positive_tensor(name, "threshold", threshold)
            if isinstance(value, nn.Parameter):
                self.threshold = value
            else:
                self.register_buffer("threshold", value)
        else:
            self.threshold = _checks.number(name, "threshold", threshold, above=0)
        self.sampler = GumbelTopK() if sampler is None else sampler
        self.scorer = MSAC() if scorer is None else scorer
        self.refiner = default_refiner(self.model, name, "refiner", refiner)
        self.local = default_refiner(self.model, name, "local", local)
        self.confidence = _checks.number(name, "confidence", confidence, above=0, below=1)
        self.max_iterations = _checks.integer(name, "max_iterations", max_iterations, minimum=1)
        self.hypotheses = _checks.integer(name, "hypotheses", hypotheses, minimum=1)
        self.candidates = _checks.integer(name, "candidates", candidates, minimum=1)
        self.min_inliers = None if min_inliers is None else _checks.integer(name, "min_inliers", min_inliers, minimum=1)
        self.keep_hypotheses = (
            None if keep_hypotheses is None else _checks.boolean(name, "keep_hypotheses", keep_hypotheses)
        )
        self.on_failure = _checks.choice(name, "on_failure", on_failure, ("nan", "raise"))

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
        if torch.compiler.is_dynamo_compiling():
            from .._untraced import call

            return call(self._forward, points, logits, probabilities, mask, generator)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            raise UnsupportedOperationError(
                "difflayers.ransac.RANSAC: a search depends on its points and cannot be traced by torch.export or "
                "torch.func; export what is before and after it, use .backward(), and leading dimensions for a batch"
            )
        return self._forward(points, logits, probabilities, mask, generator)

    def _forward(
        self,
        points: Tensor,
        logits: Tensor | None,
        probabilities: Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> RansacResult:
        given = logits is not None or probabilities is not None
        problems, enough, batch_shape = self._problems(points, logits, probabilities, mask)
        generator = _checks.generator("difflayers.ransac.RANSAC", generator, points.device)
        keep = self.training if self.keep_hypotheses is None else self.keep_hypotheses
        if self.training:
            model, score, iterations, kept = self._draw(problems, enough, given, generator)
        else:
            model, score, iterations, kept = self._search(problems, enough, keep, generator)
        model, score = self._refined(model, score, problems)
        result = self._result(problems, enough, batch_shape, model, score, iterations, kept if keep else None)
        if self.on_failure == "raise":
            _raise_failures(result)
        return result

    def _problems(
        self, points: Tensor, logits: Tensor | None, probabilities: Tensor | None, mask: Tensor | None
    ) -> tuple[Problems, Tensor, tuple[int, ...]]:
        """The checked arguments as a batch, which problems have enough points, and the batch's shape."""
        name, size = "difflayers.ransac.RANSAC", self.model.point_size
        points = _checks.tensor(name, "points", points)
        if points.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"{name}: argument 'points' must be float32 or float64, got {points.dtype}; use points.float()"
            )
        if points.dim() < 2 or points.shape[-1] != size:
            raise ValueError(
                f"{name}: argument 'points' must have shape [..., n, {size}] for {self.model!r}, "
                f"got {tuple(points.shape)}"
            )
        shape, n = points.shape[:-2], points.shape[-2]
        flat = points.reshape(-1, n, size) if n else points.new_zeros(shape.numel(), 0, size)
        batch = len(flat)
        present = flat.detach().isfinite().all(-1)
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"{name}: argument 'mask' must be a bool tensor (True = present), got {got}")
            present = present & _per_point(name, "mask", mask, points).reshape(batch, n)
        flat = torch.where(present.unsqueeze(-1), flat, 0)
        flat_logits = self._logits(points, logits, probabilities)
        flat_logits = flat.new_zeros(batch, n) if flat_logits is None else flat_logits.reshape(batch, n).to(flat.dtype)
        flat_logits = flat_logits.masked_fill(~present, -torch.inf)
        enough = (flat_logits.detach() > -torch.inf).sum(-1) >= self.model.sample_size
        # problems that cannot be sampled go along with equal logits, their hypotheses marked not valid
        flat_logits = torch.where(enough.unsqueeze(-1), flat_logits, 0)
        threshold: Any = self.threshold
        if isinstance(threshold, Tensor):
            try:
                threshold = threshold.to(flat).expand(shape).reshape(batch)
            except RuntimeError:
                raise ValueError(
                    f"{name}: argument 'threshold' must broadcast to the batch {tuple(shape)}, "
                    f"got {tuple(threshold.shape)}"
                ) from None
        else:
            threshold = flat.new_full((batch,), threshold)
        problems = Problems(flat, None if bool(present.all()) else present, flat_logits, threshold)
        return problems, enough, tuple(shape)

    @staticmethod
    def _logits(points: Tensor, logits: Tensor | None, probabilities: Tensor | None) -> Tensor | None:
        name = "difflayers.ransac.RANSAC"
        if logits is not None and probabilities is not None:
            raise ValueError(f"{name}: arguments 'logits' and 'probabilities' exclude each other, got both; pass one")
        if probabilities is not None:
            probabilities = _per_point(
                name, "probabilities", _checks.tensor(name, "probabilities", probabilities), points
            )
            checked = _checks.contents_are_checked(probabilities)
            if checked and not bool(((probabilities >= 0) & probabilities.isfinite()).all()):
                raise ValueError(
                    f"{name}: argument 'probabilities' must be finite and not negative; logits go into 'logits'"
                )
            positive = probabilities > 0
            return torch.where(positive, probabilities, 1.0).log().masked_fill(~positive, -torch.inf)
        if logits is None:
            return None
        logits = _per_point(name, "logits", _checks.tensor(name, "logits", logits), points)
        bad = logits.detach().isnan() | logits.detach().isposinf()
        if _checks.contents_are_checked(logits) and bool(bad.any()):
            raise ValueError(f"{name}: argument 'logits' must be finite or -inf, got {logits.detach()[bad][0].item()}")
        return logits.masked_fill(bad, -torch.inf)

    def _draw(
        self, problems: Problems, enough: Tensor, given: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Hypotheses]:
        """Exactly `hypotheses` samples of each problem, with gradients, and the best of each."""
        solver, (batch, n) = self.model, problems.logits.shape
        size = solver.sample_size
        count = self.hypotheses if n >= size else 0
        with torch.no_grad():
            samples = (
                self.sampler.sample(problems.logits.detach(), size, count, generator=generator)
                if batch and count
                else torch.zeros((batch, count, size), dtype=torch.int64, device=problems.logits.device)
            )
        found = hypotheses_of(
            solver, self.sampler.gather(problems.points, problems.logits, samples, generator=generator)
        )
        valid = found.valid & enough[:, None, None]
        flat = scores(
            solver, self.scorer, found.models.flatten(1, 2), problems.points, problems.mask, problems.threshold,
            valid.flatten(1),
        )  # fmt: skip
        stable = valid if found.condition is None else valid & (found.condition < solver.worst_condition)
        log_prob = self.sampler.log_prob(problems.logits, samples) if given else None
        kept = Hypotheses(found.models, flat.view_as(valid), valid, stable, samples, log_prob)
        if not count:
            model = problems.points.new_zeros(batch, *solver.model_shape)
            return model, model.new_full((batch,), -torch.inf), torch.zeros_like(enough, dtype=torch.int64), kept
        score, best = flat.detach().max(-1)
        model = found.models.flatten(1, 2)[torch.arange(batch, device=best.device), best]
        return model, score, torch.where(enough, count, 0), kept

    def _search(
        self, problems: Problems, enough: Tensor, keep: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Hypotheses | None]:
        """The best of as many samples as each problem needs; no gradient."""
        batch = len(problems.points)
        model = problems.points.new_zeros(batch, *self.model.model_shape)
        score = model.new_full((batch,), -torch.inf)
        iterations = torch.zeros(batch, dtype=torch.int64, device=model.device)
        at = enough.nonzero().squeeze(-1)
        settings = Settings(
            self.model,
            self.sampler,
            self.scorer,
            self.local,
            self.confidence,
            self.max_iterations,
            self.candidates,
            keep,
        )
        found, kept = search(settings, problems.detach(), at, generator)
        return (
            model.index_copy(0, at, found.model), score.index_copy(0, at, found.score),
            iterations.index_copy(0, at, found.iterations), kept,
        )  # fmt: skip

    def _refined(self, model: Tensor, score: Tensor, problems: Problems) -> tuple[Tensor, Tensor]:
        """The models refined on the points that they could have seen, where that does not make the score there worse;
        and their scores on all points."""
        if self.refiner is None or not len(model):
            return model, score
        exists = score.isfinite().unsqueeze(1)
        seen = self._seen(model.detach(), problems)
        refined = self.refiner.refine(self.model, model.unsqueeze(1), problems.points, seen, problems.threshold)
        with torch.no_grad():
            both = torch.cat([model.detach().unsqueeze(1), refined.detach()], 1)
            finite = both.flatten(2).isfinite().all(-1) & exists
            on_seen = scores(self.model, self.scorer, both, problems.points, seen, problems.threshold, finite)
            # the last local optimisation may have been here already; the refined model is the one with the gradient
            better = on_seen[:, 1] >= on_seen[:, 0] - 1e-4 * on_seen[:, 0].abs()
            better &= finite.all(-1)
            after = scores(self.model, self.scorer, both[:, 1:], *problems[:2], problems.threshold, finite[:, 1:])
        choose = better[(..., *(None,) * len(self.model.model_shape))]
        return torch.where(choose, refined.squeeze(1), model), torch.where(better, after.squeeze(1), score)

    def _seen(self, model: Tensor, problems: Problems) -> Tensor | None:
        """The mask of the points that are present and that the model could have seen."""
        seen = self.model.possible(model, *problems[:2], problems.threshold)
        seen = seen if problems.mask is None else seen & problems.mask
        return problems.mask if seen.all() else seen

    def _result(
        self, problems: Problems, enough: Tensor, batch_shape: tuple[int, ...], model: Tensor, score: Tensor,
        iterations: Tensor, kept: Hypotheses | None,
    ) -> RansacResult:  # fmt: skip
        with torch.no_grad():
            exists = score > -torch.inf
            inliers = inliers_of(self.model, model.detach(), problems) & exists.unsqueeze(-1)
            inliers &= self.model.possible(model.detach(), *problems[:2], problems.threshold)
            present = inliers.shape[1] if problems.mask is None else problems.mask.sum(-1)
            wanted: Any = self.min_inliers
            if wanted is None:
                wanted = torch.as_tensor(present, device=score.device).clamp(max=self.model.sample_size + 1)
            status = torch.full_like(iterations, RansacStatus.FOUND)
            status[inliers.sum(-1) < wanted] = RansacStatus.TOO_FEW_INLIERS
            status[~exists] = RansacStatus.DEGENERATE
            status[~enough] = RansacStatus.TOO_FEW_POINTS
            found = status == RansacStatus.FOUND
        model = torch.where(found[(..., *(None,) * len(self.model.model_shape))], model, torch.nan)

        def shaped(x: Tensor) -> Tensor:
            return x.reshape((*batch_shape, *x.shape[1:]))

        if kept is not None:
            log_prob = None if kept.log_prob is None else shaped(kept.log_prob)
            models, of_models, valid, stable, samples = map(shaped, kept[:5])
            kept = Hypotheses(models, of_models, valid, stable, samples, log_prob)
        return RansacResult(
            shaped(model), shaped(inliers & found.unsqueeze(-1)), shaped(torch.where(found, score, -torch.inf)),
            shaped(iterations), shaped(status), kept,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        parts = [f"model={self.model!r}", f"sampler={self.sampler!r}", f"refiner={self.refiner!r}"]
        return ", ".join([*parts, f"confidence={self.confidence:g}", f"max_iterations={self.max_iterations}"])


def _raise_failures(result: RansacResult) -> None:
    """Names the problems without a model."""
    status = result.status.flatten()
    rows = (status != RansacStatus.FOUND).nonzero().squeeze(-1).tolist()
    if rows:
        reason = RansacStatus(int(status[rows[0]])).name
        raise DegenerateModelError(
            f"difflayers.ransac.RANSAC: {len(rows)} of {len(status)} problems have no model, the first is row "
            f"{rows[0]} ({reason}); the others are in .result, and on_failure='nan' returns them with a status",
            rows,
            result,
        )


def _per_point(function: str, name: str, value: Tensor, points: Tensor) -> Tensor:
    """`value` expanded to one entry a point, `[..., n]`."""
    try:
        return value.expand(points.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"{function}: argument '{name}' must have one entry a point, shape {tuple(points.shape[:-1])} (or one that "
            f"broadcasts to it), got {tuple(value.shape)}"
        ) from None
