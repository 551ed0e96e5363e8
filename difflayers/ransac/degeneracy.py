"""Fundamental matrices of a plane: how to tell, and how to complete them."""

from __future__ import annotations

import torch
from torch import Tensor

from ._epipolar import cofactors, homogeneous, null_vector
from ._projections import smallest_eigenvector
from .residuals import squared

__all__ = ["complete_plane", "plane_of_sample"]

# every five of seven points contain one of these triples
_TRIPLES = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 1, 6], [3, 4, 6], [2, 5, 6]])
_PAIRS, _CHUNK = 256, 1 << 22


@torch.no_grad()
def plane_of_sample(fundamental: Tensor, sample: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""Whether five or more of the seven pairs that made F are on one plane, and that plane's homography.

    F is then right for the plane and arbitrary off it, yet often has many inliers. Three pairs and F determine a
    homography, $H = [e']_\times F - e' (M^{-1} b)^\top$ with e' the epipole of the second image, the rows of M the
    three x1 and $b_i = (x_2 \times [e']_\times F x_1) \cdot (x_2 \times e') / |x_2 \times e'|^2$; five triples cover
    all fives of seven. The right F of a sample with five pairs on a plane and two others is found, too.

    Args:
        fundamental: `[..., 3, 3]`.
        sample: `[..., 7, 4]`, the pairs (x1, y1, x2, y2) that F was made of.
        threshold: a pair is on the plane when its transfer error is below twice this; a number or `[...]`.

    Returns:
        Homographies `[..., 3, 3]` of unit Frobenius norm, and whether five pairs are on their plane, `[...]`. No
        gradient.

    Cost, transforms:
        O(1) a sample; no gradient.

    References:
        Chum, Werner, Matas, "Two-view geometry estimation unaffected by a dominant plane", CVPR 2005, section 3.

    Example:
        >>> import torch, difflayers as dl
        >>> solver = dl.ransac.FundamentalMatrix()
        >>> sample = torch.rand(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> sample[:6, 2:] = sample[:6, :2] * torch.tensor([1.5, 0.5]) + 0.2  # six of seven on a plane
        >>> models, valid, _ = solver.solve(sample)
        >>> dl.ransac.degeneracy.plane_of_sample(models[valid], sample, 1e-3)[1].all()
        tensor(True)
    """
    dtype = fundamental.dtype
    fundamental, sample = fundamental.double(), sample.double()
    epipole = null_vector(cofactors(fundamental))
    aligned = torch.linalg.cross(*torch.broadcast_tensors(epipole.unsqueeze(-1), fundamental), dim=-2)
    x1, x2 = homogeneous(sample[..., :2]), homogeneous(sample[..., 2:])
    across = torch.linalg.cross(*torch.broadcast_tensors(x2, epipole.unsqueeze(-2)))
    length2 = across.square().sum(-1)
    moved = torch.linalg.cross(*torch.broadcast_tensors(x2, x1 @ aligned.mT))
    offset = (moved * across).sum(-1) / torch.where(length2 > 0, length2, 1.0)
    triples = _TRIPLES.to(sample.device)
    solved, _ = torch.linalg.solve_ex(x1[..., triples, :], offset[..., triples].unsqueeze(-1))  # [..., 5, 3, 1]
    planes = aligned.unsqueeze(-3) - epipole[..., None, :, None] * solved.mT
    planes = planes / planes.flatten(-2).norm(dim=-1)[..., None, None]
    limit = 4 * torch.as_tensor(threshold, dtype=torch.float64, device=sample.device).square()[..., None, None]
    on_plane = (squared("transfer", planes, sample.unsqueeze(-3)) < limit).sum(-1)
    most, best = on_plane.max(-1)
    chosen = planes.gather(-3, best[..., None, None, None].expand(*best.shape, 1, 3, 3)).squeeze(-3)
    degenerate = (most >= 5) & chosen.flatten(-2).isfinite().all(-1)
    return torch.where(degenerate[..., None, None], chosen, torch.eye(3).to(chosen)).to(dtype), degenerate


@torch.no_grad()
def complete_plane(
    homography: Tensor,
    points: Tensor,
    mask: Tensor | None,
    threshold: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The fundamental matrix of a plane's homography and the pairs off the plane (plane and parallax).

    Two pairs off the plane determine the epipole, where their lines $x_2 \times H x_1$ meet, and $F = [e']_\times H$.
    Of 256 random couples the one with the best MSAC score by Sampson distance is kept, after H was fitted to all pairs
    on its plane.

    Args:
        homography: `[R, 3, 3]`.
        points: `[R, N, 4]`, rows (x1, y1, x2, y2), finite.
        mask: `[R, N]` bool, True = present; None: all are.
        threshold: `[R]`, the distance of inliers.
        generator: of the couples.

    Returns:
        `[R, 3, 3]` of unit Frobenius norm and rank 2, and its score `[R]`: -inf where fewer than two pairs are off the
        plane, so that nothing determines the epipole. No gradient.

    Cost, transforms:
        O(256 N) time a row, memory bounded by chunks of rows; no gradient.

    References:
        Chum, Werner, Matas, "Two-view geometry estimation unaffected by a dominant plane", CVPR 2005, section 4.

    Example:
        >>> import torch, difflayers as dl
        >>> generator = torch.Generator().manual_seed(0)
        >>> points = torch.rand(1, 20, 4, generator=generator, dtype=torch.float64)
        >>> points[..., 2:] = points[..., :2]
        >>> points[:, :6, 2] += torch.linspace(0.1, 0.6, 6)  # nearer things move along the rows
        >>> model, score = dl.ransac.degeneracy.complete_plane(
        ...     torch.eye(3, dtype=torch.float64).unsqueeze(0), points, None, torch.tensor([1e-3]), generator=generator)
        >>> score
        tensor([20.], dtype=torch.float64)
    """
    models, score = torch.zeros_like(homography), points.new_full(points.shape[:1], -torch.inf)
    size = max(1, _CHUNK // (_PAIRS * max(1, points.shape[1])))
    for rows in torch.arange(len(points), device=points.device).split(size):
        part = None if mask is None else mask[rows]
        models[rows], score[rows] = _completed(homography[rows], points[rows], part, threshold[rows], generator)
    return models, score


def _completed(
    plane: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    limit = threshold.square().to(points).unsqueeze(-1)
    present = torch.ones_like(points[..., 0], dtype=torch.bool) if mask is None else mask
    for _ in range(2):
        error = squared("transfer", plane, points)
        plane = _fitted_plane(plane, points, (error < 4 * limit) & present)
    off = (squared("transfer", plane, points) > 9 * limit) & present
    enough = off.sum(-1) >= 2
    chance = torch.where(enough.unsqueeze(-1), off, True).to(points.dtype)
    index = torch.multinomial(chance, 2 * _PAIRS, replacement=True, generator=generator)
    x1, x2 = homogeneous(points[..., :2]), homogeneous(points[..., 2:])
    lines = x2.cross(x1 @ plane.mT, -1)
    first, second = lines.gather(1, index.unsqueeze(-1).expand(-1, -1, 3)).chunk(2, 1)
    epipole = torch.nn.functional.normalize(
        torch.nn.functional.normalize(first, dim=-1).cross(torch.nn.functional.normalize(second, dim=-1), -1), dim=-1
    )
    models = torch.linalg.cross(*torch.broadcast_tensors(epipole.unsqueeze(-1), plane.unsqueeze(1)), dim=-2)
    length = models.flatten(2).norm(dim=-1)
    models = models / torch.where(length > 0, length, 1.0)[..., None, None]
    score, best = msac(models, points.unsqueeze(1), present.unsqueeze(1), limit.unsqueeze(1)).max(-1)
    chosen = models[torch.arange(len(points), device=points.device), best]
    return chosen, torch.where(enough & (length.amax(-1) > 0), score, -torch.inf)


def msac(models: Tensor, points: Tensor, present: Tensor, limit: Tensor) -> Tensor:
    """Sums over present points of 1 - r^2 / limit where positive, r the Sampson distance."""
    each = (1 - squared("sampson", models, points) / limit).clamp(min=0)
    return torch.where(present, each, 0).sum(-1)


def _fitted_plane(plane: Tensor, points: Tensor, inliers: Tensor) -> Tensor:
    """The homographies `[R, 3, 3]` of least algebraic error on the inliers `[R, N]`; as they were, where four are
    too few."""
    x1, x2 = points[..., :2].double(), points[..., 2:].double()
    weight = inliers.double().unsqueeze(-1)
    total = weight.sum(1, keepdim=True).clamp(min=1)
    maps = []
    for image in (x1, x2):
        mean = (weight * image).sum(1, keepdim=True) / total
        spread = (weight * (image - mean).square()).sum((1, 2), keepdim=True) / (2 * total)
        scale = torch.where(spread > 0, spread, 1.0).rsqrt()
        maps.append((mean, scale))
    first, second = ((image - mean) * scale for image, (mean, scale) in zip((x1, x2), maps, strict=True))
    x, zero = homogeneous(first), torch.zeros_like(first[..., :1]).expand(-1, -1, 3)
    u, v = second.unsqueeze(-1).unbind(-2)
    moments = torch.zeros(len(points), 9, 9, dtype=torch.float64, device=points.device)
    for row in (torch.cat([x, zero, -u * x], -1), torch.cat([zero, x, -v * x], -1)):
        moments += (row * weight).mT @ row
    vector, unique = smallest_eigenvector(moments)
    to_first, to_second = (_affine(mean, scale) for mean, scale in maps)
    fitted = torch.linalg.solve(to_second, vector.unflatten(-1, (3, 3)) @ to_first)
    fitted = fitted / fitted.flatten(1).norm(dim=-1)[:, None, None]
    good = unique & (inliers.sum(-1) > 4) & fitted.flatten(1).isfinite().all(-1)
    return torch.where(good[:, None, None], fitted.to(plane.dtype), plane)


def _affine(mean: Tensor, scale: Tensor) -> Tensor:
    """x -> scale (x - mean) as `[R, 3, 3]`, of mean `[R, 1, 2]` and scale `[R, 1, 1]`."""
    matrix = torch.eye(3, dtype=mean.dtype, device=mean.device).repeat(len(mean), 1, 1)
    matrix[:, :2] *= scale
    matrix[:, :2, 2] = -(scale * mean).squeeze(1)
    return matrix
