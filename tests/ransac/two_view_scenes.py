"""Random points in front of two cameras."""

from typing import NamedTuple

import torch

import difflayers as dl

CAMERA = torch.tensor([[800.0, 0.0, 500.0], [0.0, 820.0, 400.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


class Views(NamedTuple):
    points: torch.Tensor  # [B, n, 4], normalised coordinates or pixels
    model: torch.Tensor  # [B, 3, 3], essential or fundamental
    rotation: torch.Tensor
    translation: torch.Tensor


def views(count, n, *, seed=0, pixels=False, planar=False, noise=0.0):
    """Scenes of n points 4 to 8 in front of the first camera; those that the second one has behind it are left out."""
    generator = torch.Generator().manual_seed(seed)
    draws = 4 * count + 8

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    turn = torch.nn.functional.normalize(normal(draws, 3), dim=-1) * torch.rand(draws, 1, generator=generator)
    rotation = torch.linalg.matrix_exp(skew(turn))
    translation = torch.nn.functional.normalize(normal(draws, 3), dim=-1)
    space = torch.rand(draws, n, 3, generator=generator, dtype=torch.float64) * 4 + torch.tensor([-2.0, -2.0, 4.0])
    if planar:
        space[..., 2] = 6 + 0.3 * space[..., 0] - 0.2 * space[..., 1]
    other = space @ rotation.mT + translation.unsqueeze(1)
    front = (other[..., 2] > 0.5).all(-1).nonzero().squeeze(-1)[:count]
    assert len(front) == count
    points = torch.cat([space[..., :2] / space[..., 2:], other[..., :2] / other[..., 2:]], -1)[front]
    rotation, translation = rotation[front], translation[front]
    model = skew(translation) @ rotation / 2**0.5
    if pixels:
        points = torch.cat([image @ CAMERA[:2, :2].T + CAMERA[:2, 2] for image in points.split(2, -1)], -1)
        inverse = torch.linalg.inv(CAMERA)
        model = inverse.T @ model @ inverse
        model = model / model.flatten(1).norm(dim=-1)[:, None, None]
    return Views(points + noise * normal(count, n, 4), model, rotation, translation)


def skew(vector):
    """[v]_x."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def apart(models, truth):
    """The distance of unit matrices, whatever their signs."""
    models, truth = models.flatten(-2), truth.flatten(-2)
    return torch.minimum((models - truth).norm(dim=-1), (models + truth).norm(dim=-1))


def nearest(solutions, truth):
    """The distance of the nearest valid solution from the truth, `[B]`."""
    return apart(solutions.models, truth.unsqueeze(1)).masked_fill(~solutions.valid, torch.inf).amin(-1)


def solver_of(name):
    return {"essential": dl.ransac.EssentialMatrix, "fundamental": dl.ransac.FundamentalMatrix}[name]()


def samples(name, count, *, seed=0):
    """Exact minimal samples, and their model."""
    solver = solver_of(name)
    return solver, views(count, solver.sample_size, seed=seed, pixels=name == "fundamental")
