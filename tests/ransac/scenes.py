"""Scenes with known models."""

import torch


def rotations(count, *, generator):
    """Random rotation matrices `[count, 3, 3]`."""
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64, generator=generator))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q * torch.linalg.det(q)[:, None, None]


def poses(count, n, *, noise=0.0, seed=0, planar=False):
    """2D-3D matches `[count, n, 5]` and their poses `[count, 3, 4]`."""
    generator = torch.Generator().manual_seed(seed)
    rotation = rotations(count, generator=generator)
    space = torch.randn(count, n, 3, dtype=torch.float64, generator=generator)
    if planar:
        space[..., 2] = 0
    translation = 0.3 * torch.randn(count, 3, dtype=torch.float64, generator=generator) + torch.tensor([0, 0, 6.0])
    seen = space @ rotation.mT + translation.unsqueeze(1)
    image = seen[..., :2] / seen[..., 2:]
    image = image + noise * torch.randn(image.shape, dtype=torch.float64, generator=generator)
    return torch.cat([image, space], -1), torch.cat([rotation, translation.unsqueeze(-1)], -1)


def homographies(count, n, *, noise=0.0, seed=0):
    """Point pairs in pixels `[count, n, 4]` and their homographies `[count, 3, 3]` of unit norm."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
    h[:, 2, :2] *= 1e-3
    h[:, :2, 2] *= 300
    first = 1000 * torch.rand(count, n, 2, dtype=torch.float64, generator=generator)
    second = torch.cat([first, torch.ones(count, n, 1, dtype=torch.float64)], -1) @ h.mT
    second = second[..., :2] / second[..., 2:]
    second = second + noise * torch.randn(second.shape, dtype=torch.float64, generator=generator)
    return torch.cat([first, second], -1), h / h.flatten(1).norm(dim=1)[:, None, None]


def lines(count, n, inliers, *, noise=0.002, seed=0):
    """Points `[count, n, 2]` in the unit square, the first `inliers` of them near y = x / 2 + 0.2."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, n, 2, dtype=torch.float64, generator=generator)
    offset = noise * torch.randn(count, inliers, dtype=torch.float64, generator=generator)
    points[:, :inliers, 1] = 0.5 * points[:, :inliers, 0] + 0.2 + offset
    return points


def up_to_sign(models, reference):
    """Models `[..., *shape]` with the sign that makes their product with `reference` positive."""
    dims = tuple(range(-reference.dim() + 1, 0)) if reference.dim() > 1 else (-1,)
    return models * (models * reference).sum(dims, keepdim=True).sign()
