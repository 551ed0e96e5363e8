"""The essential matrix of two calibrated views."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from .. import _checks
from . import manifolds
from ._epipolar import EpipolarSolver, agree, eight_point, homogeneous, restored
from ._projections import nearest_essential
from .fundamental import ordered
from .solver import Solutions

__all__ = ["EssentialMatrix"]


class EssentialMatrix(EpipolarSolver):
    r"""$x_2^\top E x_1 = 0$, $E = [t]_\times R$, for calibrated pairs `(x1, y1, x2, y2)`; minimal sample 5.

    The points are in normalised coordinates, $K^{-1}$ times pixels; a sample has up to 10 solutions. The model is
    `[3, 3]` with singular values $1/\sqrt2, 1/\sqrt2, 0$ (unit Frobenius norm), its sign free; `decompose_essential`
    and `recover_pose` make the pose of it. `fit` is the weighted 8-point algorithm with the nearest essential matrix. A
    sample is degenerate when two pairs share a point of an image or four pairs are on a line in both; a model is
    plausible when one of its four poses has the whole sample in front of both cameras.

    Args:
        residual: "sampson" or "symmetric_epipolar", the functions of `difflayers.ransac.residuals`.

    Raises:
        ValueError: another residual; of a call, points that cannot be normalised coordinates (most of them more than
            84 degrees off the axis). A problem of that kind in a batch of others has no valid models.

    Cost, transforms:
        About 10 us a sample on the CPU forward and 6 us backward (float64 inside); backward only.

    References:
        Nister, "An efficient solution to the five-point relative pose problem", TPAMI 2004; Stewenius, Engels,
        Nister, "Recent developments on direct relative orientation", ISPRS 2006 (the plain PyTorch form).

    Example:
        >>> import torch, difflayers as dl
        >>> sample = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> solver = dl.ransac.EssentialMatrix()
        >>> models, valid, _ = solver.solve(sample)
        >>> bool((solver.residual(models[valid], sample) < 1e-9).all())
        True
    """

    sample_size, max_solutions = 5, 10
    problem = "essential"
    freedom = 5

    def solve(self, sample: Tensor) -> Solutions:
        """Samples `[..., 5, 4]` -> models `[..., 10, 3, 3]`."""
        if sample.numel() and _checks.contents_are_checked(sample):
            far = _far(sample.detach())
            if 2 * int(far.sum()) > far.numel():
                raise ValueError(
                    "difflayers.ransac.EssentialMatrix: points must be in normalised coordinates, got coordinates of "
                    f"mean size {float(sample.detach().abs().mean()):.3g}; multiply them by K^-1, or use "
                    "FundamentalMatrix"
                )
        return super().solve(sample)

    def tangent(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, 5, 3, 3]`: orthonormal directions within the essential matrices of unit norm."""
        u, _, v = torch.linalg.svd(models)
        a, b, c = u.unbind(-1)
        p, q, r = v.unbind(-2)  # E = (a p^T + b q^T) / sqrt 2
        outer = lambda left, right: left.unsqueeze(-1) * right.unsqueeze(-2)  # noqa: E731
        turn = (outer(a, q) - outer(b, p)) / 2**0.5
        return torch.stack([outer(a, r), outer(b, r), outer(c, p), outer(c, q), turn], 1)

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Steps `[..., 5]`; see `difflayers.ransac.manifolds`."""
        return manifolds.retract_essential(models, step)

    def reference(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The eigenvectors of the action matrix of multiplication by x, each corrected by Newton's method."""
        x1, x2 = homogeneous(sample[..., :2]), homogeneous(sample[..., 2:])
        design = (x2.unsqueeze(-1) * x1.unsqueeze(-2)).flatten(-2)
        _, singular, right = torch.linalg.svd(design, full_matrices=True)
        basis = right[:, 5:].unflatten(-1, (3, 3))
        gram = basis.unsqueeze(2) @ basis.mT.unsqueeze(1)  # E_a E_b^T
        trace = 2 * gram.unsqueeze(3) @ basis[:, None, None]
        trace -= gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None, None] * basis[:, None, None]
        minors = basis[:, None, :, None, 1].cross(basis[:, None, None, :, 2], -1)
        determinant = (basis[:, :, None, None, 0] * minors).sum(-1)
        terms = torch.cat([trace.flatten(4), determinant.unsqueeze(-1)], -1).flatten(1, 3)  # [B, 64, 10]
        cubics = terms.new_zeros(len(sample), 20, 10).index_add_(1, _MONOMIAL.to(sample.device), terms).mT
        reduced, info = torch.linalg.solve_ex(cubics[..., :10], cubics[..., 10:])
        solvable = (singular[:, 4] > 1e-12 * singular[:, 0]) & (info == 0) & reduced.isfinite().flatten(1).all(-1)
        action = torch.zeros_like(reduced)
        action[:, :6] = torch.where(solvable[:, None, None], -reduced[:, :6], 0)
        for row, column in enumerate((0, 1, 2, 6), start=6):  # x times x, y, z, 1 is x^2, xy, xz, x
            action[:, row, column] = 1
        roots, vectors = torch.linalg.eig(action)
        size = vectors[:, 9].abs()
        valid = (roots.imag == 0) & solvable.unsqueeze(-1) & (size > 1e-12)
        of_basis = vectors.real[:, 6:].mT  # x, y, z, 1
        models = (of_basis @ basis.flatten(2)).unflatten(-1, (3, 3))
        models = torch.where(valid[..., None, None], models, torch.eye(3).to(models))
        row, slot = valid.nonzero(as_tuple=True)
        if len(row):
            models[row, slot], valid[row, slot] = self._corrected(models[row, slot], sample[row])
        return ordered(models, valid)

    def _corrected(self, models: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        models = nearest_essential(models)
        x1, x2 = homogeneous(sample[..., :2]), homogeneous(sample[..., 2:])
        design = (x2.unsqueeze(-1) * x1.unsqueeze(-2)).flatten(-2)
        design = design / design.norm(dim=-1, keepdim=True)
        for _ in range(4):
            tangent = self.tangent(models, sample).flatten(2)
            step, _ = torch.linalg.solve_ex(design @ tangent.mT, -design @ models.flatten(1).unsqueeze(-1))
            step = step.nan_to_num(0, 0, 0).clamp(-1, 1)
            models = nearest_essential(models + (tangent.mT @ step).squeeze(-1).unflatten(-1, (3, 3)))
        return models, (design @ models.flatten(1).unsqueeze(-1)).flatten(1).norm(dim=-1) < 1e-9

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted 8-point algorithm: `[..., n, 4]`, `[..., n]` -> `[..., 3, 3]` and whether there is one.

        Needs 8 points of positive weight. Its gradient by points and weights is exact and never NaN.
        """
        matrix, first, second, valid = eight_point(points.double(), weights.double())
        result = nearest_essential(restored(matrix, first, second))
        return torch.where(valid[..., None, None], result, 0).to(points.dtype), valid

    def degenerate(self, sample: Tensor) -> Tensor:
        """Samples `[..., 5, 4]` with two points the same in either image, or four on a line in both, or most of them
        not in normalised coordinates."""
        far = 2 * _far(sample).flatten(-2).sum(-1) > 20
        return far | self.coincident(sample) | self.all_but_one_on_a_line(sample).all(-2).any(-1)

    def plausible(self, models: Tensor, sample: Tensor) -> Tensor:
        """Cheirality: one and the same of the four poses has each pair in front of both cameras."""
        side, depth = self.orientation(models, sample)
        return agree(side) & agree(depth)

    @torch.no_grad()
    def possible(self, models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor) -> Tensor:
        """Pairs in front of both cameras, for the pose that has the most inliers there; also those whose second point
        is within the threshold of where one at infinity would be: the sign of a large depth is noise."""
        from .two_view import recover_pose  # which needs this file

        limit = threshold.unsqueeze(-1)
        near = self.residual(models, points) < limit
        pose = recover_pose(models, points, near if mask is None else near & mask)
        seen = homogeneous(points[..., :2]) @ pose.rotation.mT
        away = (seen[..., :2] - points[..., 2:] * seen[..., 2:]).norm(dim=-1)
        return pose.in_front | (away <= limit * seen[..., 2])


def _far(points: Tensor) -> Tensor:
    """Which coordinates are more than 84 degrees off the axis, were they normalised."""
    return points.abs() > 10


# The monomial of x, y, z, 1 that each product of three of them is: the ten cubic ones first, in the order of
# x times (x2 xy xz y2 yz z2) and then y3 y2z yz2 z3; then those six, and x, y, z, 1.
_NAMES = ["000", "001", "002", "011", "012", "022", "111", "112", "122", "222",
          "003", "013", "023", "113", "123", "223", "033", "133", "233", "333"]  # fmt: skip
_MONOMIAL = torch.tensor([_NAMES.index("".join(map(str, sorted(indices)))) for indices in product(range(4), repeat=3)])
