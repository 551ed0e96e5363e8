"""The fundamental matrix of two views."""

from __future__ import annotations

import torch
from torch import Tensor

from . import degeneracy, manifolds
from ._epipolar import EpipolarSolver, _affine, agree, cofactors, eight_point, homogeneous, null_vector, restored
from ._projections import nearest_rank_two

__all__ = ["FundamentalMatrix"]


class FundamentalMatrix(EpipolarSolver):
    r"""$x_2^\top F x_1 = 0$ and $\det F = 0$ for point pairs `(x1, y1, x2, y2)`; minimal sample 7, up to 3 solutions.

    The model is `[3, 3]` of rank 2 and unit Frobenius norm, its sign free. `fit` is the weighted 8-point algorithm on
    normalised points with the nearest matrix of rank 2. A sample is degenerate when two pairs share a point of an
    image, or six of its seven points are on a line in either image; a model is plausible when it puts the whole sample
    on the same side of the epipoles (oriented epipolar constraint). Where most pairs are on a plane, the search takes
    pairs off it into account (`repair`); where all are, noise alone decides between the many models that fit them:
    compare with `Homography`, whose inliers are then as many.

    Args:
        residual: "sampson" or "symmetric_epipolar", the functions of `difflayers.ransac.residuals`.

    Raises:
        ValueError: another residual.

    Cost, transforms:
        About 1.5 us a sample on the CPU forward and 5 us backward (float64 inside); backward only.

    References:
        Hartley, Zisserman, "Multiple View Geometry in Computer Vision", 2003, sections 11.1 and 11.2;
        Chum, Werner, Matas, "Epipolar geometry estimation via RANSAC benefits from the oriented epipolar
        constraint", ICPR 2004.

    Example:
        >>> import torch, difflayers as dl
        >>> sample = torch.rand(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> solver = dl.ransac.FundamentalMatrix()
        >>> models, valid, _ = solver.solve(sample)
        >>> bool((solver.residual(models[valid], sample) < 1e-9).all())
        True
    """

    sample_size, max_solutions = 7, 3
    problem = "fundamental"
    freedom = 7

    def tangent(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, 7, 3, 3]`: directions within the matrices of rank 2 and unit norm; orthonormal for normalised points."""
        first, second = _normalisation(sample[..., :2]), _normalisation(sample[..., 2:])
        normal = torch.linalg.solve(second.mT, models) @ torch.linalg.inv(first)
        normal = normal / normal.flatten(1).norm(dim=-1)[:, None, None]
        across = torch.stack([normal.flatten(1), cofactors(normal).flatten(1)], 1)
        directions = torch.linalg.svd(across, full_matrices=True).Vh[:, 2:].unflatten(-1, (3, 3))
        raw = (second.mT @ normal @ first).flatten(1)
        moved = (second.mT.unsqueeze(1) @ directions @ first.unsqueeze(1)).flatten(2)
        unit = models.flatten(1).unsqueeze(-1)
        moved = moved - (moved @ unit) * unit.mT
        orientation = (raw * models.flatten(1)).sum(-1).sign() / raw.norm(dim=-1)
        return (moved * orientation[:, None, None]).unflatten(-1, (3, 3))

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Steps `[..., 7]`; see `difflayers.ransac.manifolds`."""
        return manifolds.retract_fundamental(models, step)

    def reference(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The cubic det(a F1 + F2) = 0 across the seven equations, its roots the eigenvalues of its companion."""
        first, second = _normalisation(sample[..., :2]), _normalisation(sample[..., 2:])
        x1, x2 = homogeneous(sample[..., :2]) @ first.mT, homogeneous(sample[..., 2:]) @ second.mT
        design = (x2.unsqueeze(-1) * x1.unsqueeze(-2)).flatten(-2)
        _, singular, right = torch.linalg.svd(design, full_matrices=True)
        f1, f2 = right[:, 7].unflatten(-1, (3, 3)), right[:, 8].unflatten(-1, (3, 3))
        swap = (torch.linalg.det(f1).abs() < torch.linalg.det(f2).abs())[:, None, None]
        f1, f2 = torch.where(swap, f2, f1), torch.where(swap, f1, f2)  # the leading coefficient is the larger one
        c1, c2 = cofactors(f1), cofactors(f2)
        lead = torch.linalg.det(f1)
        solvable = (singular[:, 6] > 1e-12 * singular[:, 0]) & (lead != 0)
        lead = torch.where(lead != 0, lead, 1.0)
        companion = torch.zeros_like(f1)
        companion[:, 1, 0] = companion[:, 2, 1] = 1
        companion[:, 0, 2] = -torch.linalg.det(f2) / lead
        companion[:, 1, 2] = -(c2 * f1).sum((-2, -1)) / lead
        companion[:, 2, 2] = -(c1 * f2).sum((-2, -1)) / lead
        roots = torch.linalg.eigvals(companion)
        models = roots.real[..., None, None] * f1.unsqueeze(1) + f2.unsqueeze(1)
        models = models / models.flatten(2).norm(dim=-1)[..., None, None]
        valid = (roots.imag == 0) & solvable.unsqueeze(-1) & (cofactors(models).flatten(2).norm(dim=-1) > 1e-10)
        return ordered(restored(models, first.unsqueeze(1), second.unsqueeze(1)), valid)

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted 8-point algorithm: `[..., n, 4]`, `[..., n]` -> `[..., 3, 3]` and whether there is one.

        Needs 8 points of positive weight. Its gradient by points and weights is exact and never NaN.
        """
        matrix, first, second, valid = eight_point(points.double(), weights.double())
        result = restored(nearest_rank_two(matrix), first, second)
        return torch.where(valid[..., None, None], result, 0).to(points.dtype), valid

    def degenerate(self, sample: Tensor) -> Tensor:
        """Samples `[..., 7, 4]` with two points the same, or six on a line, in either image."""
        return self.coincident(sample) | self.all_but_one_on_a_line(sample).any(-1).any(-1)

    def plausible(self, models: Tensor, sample: Tensor) -> Tensor:
        """The oriented epipolar constraint: e2 x x2 is a positive multiple of F x1 for all pairs, or a negative one."""
        return agree(self.orientation(models, sample)[0])

    @torch.no_grad()
    def possible(self, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor) -> Tensor:
        """Pairs on the side, by the oriented epipolar constraint, that most inliers are on; also those where one of the
        points is within the threshold of its epipole, where the side is noise."""
        side = self.orientation(models, points)[0].sign()
        near = self.residual(models, points) < threshold.unsqueeze(-1)
        most = torch.where(near if mask is None else near & mask, side, 0).sum(-1, keepdim=True)
        good = side * most >= 0
        for matrix, image in ((models.mT, points[..., :2]), (models, points[..., 2:])):
            epipole = null_vector(cofactors(matrix)).unsqueeze(-2)
            away = (epipole[..., :2] - image * epipole[..., 2:]).norm(dim=-1)
            good |= away <= threshold.unsqueeze(-1) * epipole[..., 2].abs()
        return good

    @torch.no_grad()
    def repair(
        self,
        models: Tensor,
        sample: Tensor,
        points: Tensor,
        mask: Tensor | None,
        threshold: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Models `[B, H, 3, 3]` of samples with five or more pairs on a plane are completed by two pairs off it
        (`degeneracy`), where that has the better MSAC score by Sampson distance."""
        plane, degenerate = degeneracy.plane_of_sample(models, sample, threshold.unsqueeze(-1))
        row, slot = degenerate.nonzero(as_tuple=True)
        if not len(row):
            return models
        chosen = None if mask is None else mask[row]
        of_row, limit = points[row], threshold[row]
        completed, score = degeneracy.complete_plane(plane[row, slot], of_row, chosen, limit, generator=generator)
        present = torch.ones_like(of_row[..., 0], dtype=torch.bool) if chosen is None else chosen
        before = degeneracy.msac(models[row, slot], of_row, present, limit.square().to(points).unsqueeze(-1))
        result = models.clone()
        result[row, slot] = torch.where((score > before)[:, None, None], completed, models[row, slot])
        return result


def _normalisation(points: Tensor) -> Tensor:
    """T `[V, 3, 3]`, which moves points `[V, k, 2]` to mean 0 and mean square coordinate 1."""
    mean = points.mean(-2)
    square = (points - mean.unsqueeze(-2)).square().mean((-2, -1))
    return _affine(mean, torch.where(square > 0, square, 1.0).rsqrt())


def ordered(models: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The valid ones of models `[B, S, 3, 3]` first, the others 0, and how many are valid."""
    order = valid.long().argsort(dim=1, descending=True, stable=True)
    models = torch.where(valid[..., None, None], models, 0)
    return models.gather(1, order[..., None, None].expand_as(models)), valid.sum(1)
