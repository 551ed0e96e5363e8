"""Planes that fundamental matrices mistake for a scene."""

from itertools import combinations

import torch

import difflayers as dl
from difflayers.ransac import degeneracy


def scene(count, on_plane, off_plane, *, noise=0.0, seed=0):
    """Pairs on a plane first, then pairs off it, `[count, on_plane + off_plane, 4]` in pixels, and their model."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    rotation = torch.linalg.matrix_exp(0.1 * (lambda m: m - m.mT)(normal(count, 3, 3)))
    translation = torch.nn.functional.normalize(normal(count, 3), dim=-1)
    space = 4 * torch.rand(count, on_plane + off_plane, 3, generator=generator, dtype=torch.float64) - 2
    space[:, :on_plane, 2] = 0.3 * space[:, :on_plane, 0] - 0.2 * space[:, :on_plane, 1]
    space[..., 2] += 6
    other = space @ rotation.mT + translation.unsqueeze(1)
    points = torch.cat([space[..., :2] / space[..., 2:], other[..., :2] / other[..., 2:]], -1) * 800 + 500
    camera = torch.tensor([[800.0, 0.0, 500.0], [0.0, 800.0, 500.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    essential = dl.ransac.essential_from_pose(rotation, translation)
    model = dl.ransac.fundamental_from_essential(essential, camera, camera)
    return points + noise * normal(*points.shape), model


def test_every_five_of_seven_contain_a_triple():
    triples = [set(triple) for triple in degeneracy._TRIPLES.tolist()]
    assert all(any(triple <= set(five) for triple in triples) for five in combinations(range(7), 5))


def test_samples_with_five_on_a_plane_are_found_and_others_are_not():
    solver = dl.ransac.FundamentalMatrix()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    for on_plane in range(3, 8):
        # all F of six pairs on a plane and a seventh are singular: without noise the solver finds none of them
        points, _ = scene(100, on_plane, 7 - on_plane, seed=on_plane, noise=0.1 if on_plane > 5 else 0.0)
        models, valid, _ = solver.solve(points[:, order])
        plane, degenerate = degeneracy.plane_of_sample(
            models, points[:, order].unsqueeze(1), 1.0 if on_plane > 5 else 0.05
        )
        share = (degenerate & valid).any(-1).double().mean()
        if on_plane < 5:
            assert share < 0.1
            continue
        assert share > 0.9
        if on_plane == 5:
            error = dl.ransac.residuals.transfer(plane, points.unsqueeze(1))[degenerate & valid][:, :on_plane]
            assert (error < 0.1).all(-1).double().mean() > 0.9


def test_the_plane_is_completed_to_the_scene():
    points, _ = scene(6, 80, 40, noise=0.2)
    wrong = points[:, 110:, 2:].flip(0) + 40
    points[:, 110:, 2:] = wrong  # outliers among those off the plane
    solver = dl.ransac.FundamentalMatrix()
    sample = points[:, :7].clone()
    sample[:, 6] = points[:, 115]  # six on the plane and an outlier
    solutions = solver.solve(sample)
    models = torch.where(solutions.valid[..., None, None], solutions.models, solutions.models[:, :1])
    threshold = torch.full((6,), 1.0, dtype=torch.float64)
    expanded = sample.unsqueeze(1).expand(-1, 3, -1, -1)
    repaired = solver.repair(models, expanded, points, None, threshold, generator=torch.Generator().manual_seed(0))
    # three pairs too close together find no plane in noise: those models stay
    changed = (repaired != models).flatten(2).any(-1)
    assert changed.double().mean() > 0.6
    off = points[:, 80:110].unsqueeze(1)
    before = (solver.residual(models, off) < 2).double().mean(-1)[changed]
    after = (solver.residual(repaired, off) < 2).double().mean(-1)[changed]
    assert before.mean() < 0.5
    assert after.min() > 0.9
    on_plane = solver.residual(repaired, points[:, :80].unsqueeze(1))
    assert ((on_plane < 2).double().mean(-1)[changed] > 0.9).all()
    assert torch.linalg.svdvals(repaired)[..., 2].max() < 1e-12
    # points that are masked do not count
    mask = torch.ones(6, 120, dtype=torch.bool)
    mask[:, 80:] = False
    kept = solver.repair(models, expanded, points, mask, threshold)
    assert torch.equal(kept, models)


def test_good_samples_are_left_alone():
    points, truth = scene(20, 0, 60)
    solver = dl.ransac.FundamentalMatrix()
    models = truth.unsqueeze(1)
    threshold = torch.full((20,), 1.0, dtype=torch.float64)
    assert torch.equal(solver.repair(models, points[:, None, :7], points, None, threshold), models)
    assert dl.ransac.EssentialMatrix().repair(models, points[:, None, :5], points, None, threshold) is models


def test_nothing_off_the_plane_determines_nothing():
    points, _ = scene(2, 50, 0)
    plane = dl.ransac.Homography().solve(points[:, :4]).models[:, 0]
    model, score = degeneracy.complete_plane(plane, points, None, torch.tensor([1.0, 1.0]))
    assert (score == -torch.inf).all()
    assert model.isfinite().all()
