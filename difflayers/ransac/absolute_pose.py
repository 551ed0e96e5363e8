"""The pose of a calibrated camera from points in space and their images."""

from __future__ import annotations

import torch
from torch import Tensor

from . import manifolds, residuals
from ._implicit_solve import ImplicitSolver
from ._triangles import on_a_line

__all__ = ["AbsolutePose"]


class AbsolutePose(ImplicitSolver):
    r"""$\lambda (u, v, 1)^\top = R X + t$ for points `(u, v, X, Y, Z)`; minimal sample 3.

    u and v are coordinates on the plane z = 1: $K^{-1}$ applied to pixels. The model is `[3, 4]`, $[R \mid t]$. The
    residual is the distance of (u, v) from the image of X, infinite for points behind the camera.

    The fit to more points minimises the distances in space from the rays; its starts are the smallest eigenvectors of
    that quadratic form of R (Terzakis, Lourakis, "A Consistently Fast and Globally Optimal Solution to the
    Perspective-n-Point Problem", ECCV 2020).
    A sample is degenerate when its points in space are on one line.

    Cost, transforms:
        O(1) a sample, in C++ on the CPU (float64 inside); backward only, by the implicit function theorem. A fit: one
        pass over the points and an eigendecomposition of 9 x 9; no gradient of its own.

    References:
        Haralick, Lee, Ottenberg, Noelle, "Review and Analysis of Solutions of the Three Point Perspective Pose
        Estimation Problem", IJCV 1994 (Grunert's quartic, the plain PyTorch form).

    Example:
        >>> import torch, difflayers as dl
        >>> space = torch.tensor([[0.0, 0.0, 4.0], [1.0, 0.0, 5.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
        >>> sample = torch.cat([space[:, :2] / space[:, 2:], space], -1)  # seen by a camera at the origin
        >>> models, valid, _ = dl.ransac.AbsolutePose().solve(sample)
        >>> bool((models[valid] - torch.eye(3, 4)).abs().amax((1, 2)).min() < 1e-9)
        True
    """

    sample_size, point_size, model_shape, max_solutions = 3, 5, (3, 4), 4
    problem = "pose"
    freedom = 6
    kernel = "reprojection"

    def residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Distances `[..., n]` in the plane z = 1."""
        return residuals.reprojection(models, points)

    def squared_residual(self, models: Tensor, points: Tensor) -> Tensor:
        """Squared distances; inf behind the camera."""
        return residuals.squared("reprojection", models, points)

    def residual_vector(self, models: Tensor, points: Tensor) -> Tensor:
        """The image of X less (u, v), `[..., n, 2]`; inf behind the camera."""
        x, y, z = (points[..., 2:] @ models[..., :3].mT + models[..., None, :, 3]).unbind(-1)
        in_front = z > 0
        depth = torch.where(in_front, z, 1.0)
        apart = torch.stack([x / depth, y / depth], -1) - points[..., :2]
        return torch.where(in_front.unsqueeze(-1), apart, torch.inf)

    def retract(self, models: Tensor, step: Tensor) -> Tensor:
        """Steps `[..., 6]` of rotation and translation."""
        return manifolds.retract_motion(models, step)

    def equations(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, 6]`: x - u z and y - v z of each point as the camera sees it."""
        x, y, z = (sample[..., 2:] @ models[..., :3].mT + models[..., None, :, 3]).unbind(-1)
        return torch.cat([x - sample[..., 0] * z, y - sample[..., 1] * z], -1)

    def tangent(self, models: Tensor, sample: Tensor) -> Tensor:
        """`[V, 6, 3, 4]`: turns about the points' middle and moves, in units of about equal effect."""
        seen = sample[..., 2:] @ models[..., :3].mT + models[..., None, :, 3]
        middle = seen.mean(-2, keepdim=True)
        radius = (seen - middle).square().sum((-2, -1)).div(3).sqrt()
        depth = middle.squeeze(-2).norm(dim=-1)
        about = torch.cat([models[..., :3], models[..., 3:] - middle.mT], -1)
        turns = _skew_basis(models) @ about.unsqueeze(1) * (depth / radius)[:, None, None, None]
        moves = torch.zeros_like(turns)
        moves[:, range(3), range(3), 3] = depth.unsqueeze(-1)
        return torch.cat([turns, moves], 1)

    def degenerate(self, sample: Tensor) -> Tensor:
        """Points in space on one line (or equal), or rays that coincide."""
        image = sample[..., :2]
        coincide = (image == image.roll(1, -2)).all(-1).any(-1)
        return coincide | on_a_line(sample[..., 2:])

    def reference(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Grunert's quartic by the eigenvalues of its companion matrix."""
        image, space = sample[..., :2], sample[..., 2:]
        ray = torch.nn.functional.normalize(torch.cat([image, torch.ones_like(image[..., :1])], -1), dim=-1)
        second, third = ray.roll(-1, 1), ray.roll(-2, 1)
        cosine = (second * third).sum(-1)  # of the two rays other than the i-th
        square = (space.roll(-1, 1) - space.roll(-2, 1)).square().sum(-1)
        q, r = (square[:, 0] - square[:, 2]) / square[:, 1], square[:, 2] / square[:, 1]
        n = torch.stack([1 + q, -2 * q * cosine[:, 1], q - 1], -1)
        d = torch.stack([2 * cosine[:, 2], -2 * cosine[:, 0]], -1)
        side = torch.stack([1 - r, 2 * r * cosine[:, 1], -r], -1)
        p = _times(_times(d, d), side) + _times(n, n)
        p[:, :4] -= 2 * cosine[:, 2:] * _times(n, d)
        leading = torch.where(p[:, 4:].abs() > 1e-14 * p.abs().amax(-1, keepdim=True), p[:, 4:], torch.nan)
        companion = torch.diag_embed(torch.ones_like(p[:, :3]), -1)
        companion[:, :, 3] = -p[:, :4] / leading
        safe = companion.isfinite().all(-1).all(-1)
        roots = torch.linalg.eigvals(torch.where(safe[:, None, None], companion, 0))
        v = roots.real
        opposite = 1 + v * v - 2 * v * cosine[:, 1:2]
        valid = safe.unsqueeze(-1) & (roots.imag.abs() < 1e-6 * (1 + v.abs())) & (v > 0) & (opposite > 0)
        v, opposite = torch.where(valid, v, 1.0), torch.where(valid, opposite, 1.0)
        first = (square[:, 1:2] / opposite).sqrt()
        u = (n[:, :1] + (n[:, 1:2] + n[:, 2:] * v) * v) / (d[:, :1] + d[:, 1:] * v)
        distance = torch.stack([first, first * u, first * v], -1)
        distance, close = _polished(distance, cosine.unsqueeze(1), square.unsqueeze(1))
        valid &= close
        # equal roots are one solution
        apart = (distance.unsqueeze(2) - distance.unsqueeze(1)).abs().sum(-1) / distance.sum(-1).abs().unsqueeze(1)
        earlier = torch.ones_like(apart, dtype=torch.bool).tril(-1) & valid.unsqueeze(1)
        valid &= ~((apart < 1e-9) & earlier).any(-1)
        seen = distance.unsqueeze(-1) * ray.unsqueeze(1)
        world, corner_ok = _frame(space)
        axes, seen_ok = _frame(seen)
        rotation = axes @ world.unsqueeze(1).mT
        translation = seen[..., 0, :] - (rotation @ space[:, None, 0, :, None]).squeeze(-1)
        models = torch.cat([rotation, translation.unsqueeze(-1)], -1)
        valid &= corner_ok.unsqueeze(-1) & seen_ok & models.flatten(2).isfinite().all(-1)
        order = (~valid).to(torch.int8).argsort(dim=1, stable=True)
        models = models.gather(1, order[..., None, None].expand_as(models))
        counts = valid.sum(-1)
        keep = torch.arange(4, device=sample.device) < counts.unsqueeze(-1)
        return torch.where(keep[..., None, None], models, 0.0), counts

    def fit(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted: `[..., n, 5]`, `[..., n]` -> `[..., 3, 4]`; at least 4 points of positive weight. No gradient:
        refiners differentiate at the optimum."""
        with torch.no_grad():
            return _nearest_rays(points, weights)


def _skew_basis(like: Tensor) -> Tensor:
    """`[3, 3, 3]`: the matrices of v -> e_i x v."""
    basis = like.new_zeros(3, 3, 3)
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        basis[i, k, j], basis[i, j, k] = 1, -1
    return basis


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product of polynomials `[B, i]` and `[B, j]`, lowest power first."""
    product = a.new_zeros(len(a), a.shape[1] + b.shape[1] - 1)
    for i in range(a.shape[1]):
        product[:, i : i + b.shape[1]] += a[:, i : i + 1] * b
    return product


def _polished(distance: Tensor, cosine: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method on d_j^2 + d_k^2 - 2 d_j d_k cos_i = square_i, and which rows arrive at positive distances."""
    scale = square.sum(-1)
    for _ in range(6):
        a, b = distance.roll(-1, -1), distance.roll(-2, -1)
        value = a * a + b * b - 2 * a * b * cosine - square
        jacobian = torch.zeros(*distance.shape, 3, dtype=distance.dtype, device=distance.device)
        for i in range(3):
            jacobian[..., i, (i + 1) % 3] = 2 * (a - b * cosine)[..., i]
            jacobian[..., i, (i + 2) % 3] = 2 * (b - a * cosine)[..., i]
        step, info = torch.linalg.solve_ex(jacobian, value)
        distance = torch.where(
            (info == 0).unsqueeze(-1) & step.isfinite().all(-1, keepdim=True), distance - step, distance
        )
    a, b = distance.roll(-1, -1), distance.roll(-2, -1)
    error = (a * a + b * b - 2 * a * b * cosine - square).abs().amax(-1)
    return distance, (error < 1e-10 * scale) & (distance > 0).all(-1)


def _frame(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Right-handed axes (columns) of triangles `[..., 3, 3]`, and whether they have an area."""
    side, other = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    normal = torch.linalg.cross(side, other)
    a, b, area = side.norm(dim=-1), other.norm(dim=-1), normal.norm(dim=-1)
    ok = area > 1e-10 * a * b
    side = side / torch.where(ok, a, 1.0).unsqueeze(-1)
    normal = normal / torch.where(ok, area, 1.0).unsqueeze(-1)
    return torch.stack([side, torch.linalg.cross(normal, side), normal], -1), ok


def _nearest_rays(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The pose of least weighted squared distances from the rays, over several starts."""
    dtype = points.dtype
    points, weights = points.double(), weights.double()
    total = weights.sum(-1, keepdim=True)
    share = weights / torch.where(total > 0, total, 1.0)
    ray = torch.nn.functional.normalize(torch.cat([points[..., :2], torch.ones_like(points[..., :1])], -1), dim=-1)
    middle = (share.unsqueeze(-1) * points[..., 2:]).sum(-2, keepdim=True)
    space = points[..., 2:] - middle
    size = (share.unsqueeze(-1) * space.square()).sum((-2, -1), keepdim=True).sqrt()
    space = space / torch.where(size > 0, size, 1.0)
    identity = torch.eye(3, dtype=torch.float64, device=points.device)
    across = identity - ray.unsqueeze(-1) * ray.unsqueeze(-2)  # projects onto the plane across the ray
    each = share[..., None, None] * across
    # R X = (X^T kron I) vec(R), vec by columns
    lifted = (space[..., None, :, None] * identity[:, None, :]).flatten(-2)  # shape: [..., n, 3, 9]
    inner = each.sum(-3)
    linear = (each @ lifted).sum(-3)
    ok = (weights > 0).sum(-1) >= 4
    inner = torch.where(ok[..., None, None], inner, identity)
    to_translation = -torch.linalg.solve_ex(inner, linear)[0].nan_to_num(0.0, 0.0, 0.0)
    form = (lifted.mT @ each @ lifted).sum(-3) + linear.mT @ to_translation
    form = (form + form.mT) / 2
    _, vectors = torch.linalg.eigh(torch.where(form.isfinite(), form, 0.0))
    starts = vectors[..., :4].mT
    starts = torch.cat([starts, -starts], -2).unflatten(-1, (3, 3)).mT
    u, _, vh = torch.linalg.svd(starts)
    flip = torch.ones_like(starts[..., 0])
    flip[..., 2] = torch.linalg.det(u @ vh)
    rotation = (u * flip.unsqueeze(-2)) @ vh
    basis = _skew_basis(rotation)
    form = form.unsqueeze(-3)
    for _ in range(15):
        vec = rotation.mT.flatten(-2)
        along = (basis @ rotation.unsqueeze(-3)).mT.flatten(-2)  # shape: [..., starts, 3, 9]
        gradient = (along @ form @ vec.unsqueeze(-1)).squeeze(-1)
        # Gauss-Newton with the form's own curvature, damped: the form is positive semidefinite
        normal = along @ form @ along.mT + 1e-9 * identity
        step = -torch.linalg.solve(normal, gradient)
        length = step.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        step = step * (length.clamp(max=0.5) / length)
        rotation = torch.linalg.matrix_exp((step[..., None, None] * basis).sum(-3)) @ rotation
    vec = rotation.mT.flatten(-2).unsqueeze(-1)
    cost = (vec.mT @ form @ vec).squeeze(-1).squeeze(-1)
    translation = (to_translation.unsqueeze(-3) @ vec).squeeze(-1)
    # the middle of the points, which is 0 now, must lie in front of the camera
    cost = torch.where(translation[..., 2] > 0, cost, torch.inf)
    best = cost.argmin(-1)[..., None, None, None]
    rotation = rotation.take_along_dim(best, -3).squeeze(-3)
    translation = translation.take_along_dim(best.squeeze(-1), -2).squeeze(-2) * size.squeeze(-1)
    translation = translation - (rotation @ middle.mT).squeeze(-1)
    models = torch.cat([rotation, translation.unsqueeze(-1)], -1)
    ok = ok & cost.amin(-1).isfinite() & models.flatten(-2).isfinite().all(-1)
    return torch.where(ok[..., None, None], models, 0.0).to(dtype), ok
