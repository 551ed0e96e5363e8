"""Points near a model that its cameras could not have seen: no inliers, and without part in the refinement."""

import pytest
import torch
from scipy.spatial.transform import Rotation

import difflayers as dl

R = dl.ransac
LIMIT = torch.tensor([1e-3], dtype=torch.float64)


def scene(count, seed=0, *, depth=(2.0, 6.0)):
    """A pose, first points and their depths."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.from_numpy(Rotation.from_rotvec([0.05, -0.2, 0.1]).as_matrix())
    t = torch.tensor([0.8, 0.1, -0.3], dtype=torch.float64)
    t = t / t.norm()
    first = torch.rand(count, 2, dtype=torch.float64, generator=generator) - 0.5
    z = depth[0] + (depth[1] - depth[0]) * torch.rand(count, 1, dtype=torch.float64, generator=generator)
    return rotation, t, first, z


def pairs(rotation, t, first, z):
    seen = z * torch.cat([first, torch.ones(len(first), 1, dtype=torch.float64)], 1) @ rotation.T + t
    return torch.cat([first, seen[:, :2] / seen[:, 2:]], 1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", ["essential", "fundamental"])
def test_pairs_behind_the_cameras(kind, sign):
    rotation, t, first, z = scene(40)
    model = sign * R.essential_from_pose(rotation, t)
    front, behind = pairs(rotation, t, first, z), pairs(rotation, t, first[:15], -z[:15])
    points = torch.cat([front, behind])[None]
    solver = R.EssentialMatrix() if kind == "essential" else R.FundamentalMatrix()
    assert solver.residual(model[None], points).max() < 1e-12  # both are on their epipolar lines
    possible = solver.possible(model[None], points, None, LIMIT)
    assert possible[0, :40].all()
    if kind == "essential":
        assert not possible[0, 40:].any()
        # the mask decides which side most are on
        mask = torch.ones(1, 55, dtype=torch.bool)
        mask[0, :30] = False
        assert not solver.possible(model[None], points, mask, LIMIT)[0, :40].any()


def test_one_negative_depth_is_against_the_oriented_constraint():
    rotation, _, first, z = scene(40)
    t = torch.tensor([0.8, 0.1, 0.3], dtype=torch.float64)
    model, good = R.essential_from_pose(rotation, t), pairs(rotation, t, first, z)
    # behind the first camera, but not as far as the second one is
    wrong = pairs(rotation, t, first[:15], torch.full_like(z[:15], -0.05))
    points = torch.cat([good, wrong])[None]
    assert R.FundamentalMatrix().residual(model[None], points).max() < 1e-12
    possible = R.FundamentalMatrix().possible(model[None], points, None, LIMIT)
    assert possible[0, :40].all()
    assert not possible[0, 40:].any()


def test_points_at_infinity_are_possible_whatever_noise_makes_of_their_depth():
    rotation, t, first, z = scene(60)
    far = pairs(rotation, t, first[:20], torch.full((20, 1), 1e7, dtype=torch.float64))
    far[:, 2:] += 1e-4 * torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points = torch.cat([pairs(rotation, t, first, z), far])[None]
    model = R.essential_from_pose(rotation, t)[None]
    assert not R.recover_pose(model, points).in_front[0, 60:].all()  # by noise some are behind
    assert R.EssentialMatrix().possible(model, points, None, LIMIT).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_pairs_behind_the_cameras_do_not_pull_the_model(dtype):
    rotation, t, first, z = scene(300)
    front = pairs(rotation, t, first, z)
    behind = pairs(rotation, t, first[:60], -z[:60])
    # near their lines, but all to one side of them: refined on all, the model would move
    generator = torch.Generator().manual_seed(5)
    front[:, 2:] += 2e-4 * torch.randn(300, 2, dtype=torch.float64, generator=generator)
    behind[:, 3] += 8e-4
    points = torch.cat([front, behind]).to(dtype)
    layer = R.RANSAC(R.EssentialMatrix(), threshold=1e-3).eval()
    result = layer(points, generator=torch.Generator().manual_seed(0))
    alone = layer(points[:300], generator=torch.Generator().manual_seed(0))
    assert not result.inliers[300:].any()
    assert result.inliers[:300].double().mean() > 0.95
    difference = torch.minimum((result.model - alone.model).norm(), (result.model + alone.model).norm())
    assert difference < 1e-4


def test_other_models_take_every_point():
    points = torch.rand(2, 7, 2)
    assert R.Line2D().possible(torch.rand(2, 3), points, None, torch.ones(2)).all()
