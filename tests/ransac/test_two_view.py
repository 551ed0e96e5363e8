"""Poses of essential matrices and back."""

import pytest
import torch

import difflayers as dl

from .two_view_scenes import CAMERA, apart, skew, views


def test_the_four_poses_give_the_essential_matrix():
    scene = views(200, 5)
    for essential in (scene.model, -2.5 * scene.model):
        rotations, translations = dl.ransac.decompose_essential(essential)
        assert (rotations @ rotations.mT - torch.eye(3)).abs().max() < 1e-13
        assert (torch.linalg.det(rotations) - 1).abs().max() < 1e-13
        assert (translations.norm(dim=-1) - 1).abs().max() < 1e-13
        back = dl.ransac.essential_from_pose(rotations, translations)
        assert apart(back, scene.model.unsqueeze(1)).max() < 1e-13
        # the first has the sign of what came in; (R, t), (R, -t), (R', t), (R', -t)
        assert (back[:, 0] * essential).sum((-2, -1)).min() > 0
        assert torch.equal(translations[:, 0], -translations[:, 1])
        assert torch.equal(rotations[:, 0], rotations[:, 1])
        turned = rotations[:, 2] @ rotations[:, 0].mT
        half_turn = 2 * translations[:, 0].unsqueeze(-1) * translations[:, 0].unsqueeze(-2) - torch.eye(3)
        assert (turned - half_turn).abs().max() < 1e-12


def test_the_nearest_essential_matrix_is_decomposed():
    noise = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = views(20, 5).model + 0.05 * noise
    left, _, right = torch.linalg.svd(matrix)
    expected = left @ torch.tensor([1.0, 1.0, 0.0]).diag().double() @ right / 2**0.5
    rotations, translations = dl.ransac.decompose_essential(matrix)
    assert apart(dl.ransac.essential_from_pose(rotations[:, 3], translations[:, 3]), expected).max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recover_pose_finds_the_pose(dtype):
    scene = views(100, 20, seed=1)
    pose = dl.ransac.recover_pose(-scene.model.to(dtype), scene.points.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert pose.rotation.dtype == dtype
    assert (pose.rotation - scene.rotation).abs().max() < tolerance
    assert (pose.translation - scene.translation).abs().max() < tolerance
    assert pose.in_front.all()


def test_recover_pose_counts_the_masked_pairs_only_and_broadcasts():
    scene = views(3, 12, seed=2)
    away = torch.cat([-scene.points[..., :2], scene.points[..., 2:]], -1).flip(1)
    points = torch.cat([scene.points, away, away], 1)
    mask = torch.arange(36) < 12
    pose = dl.ransac.recover_pose(scene.model.unsqueeze(1), points.unsqueeze(1), mask)
    assert pose.rotation.shape == (3, 1, 3, 3)
    assert pose.in_front.shape == (3, 1, 36)
    assert (pose.translation[:, 0] - scene.translation).abs().max() < 1e-12
    one = dl.ransac.recover_pose(scene.model[0], scene.points)  # one matrix, several sets of points
    assert one.translation.shape == (3, 3)


def test_gradients_are_exact_although_two_singular_values_are_equal():
    scene = views(2, 6, seed=3)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 4, 12, generator=generator, dtype=torch.float64)

    def poses(essential):
        rotations, translations = dl.ransac.decompose_essential(essential)
        return (torch.cat([rotations.flatten(2), translations], -1) * weight).sum((-2, -1))

    off = scene.model + 0.02 * torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    for essential in (scene.model, off):
        assert torch.autograd.gradcheck(poses, essential.clone().requires_grad_())

    def pose(essential):
        result = dl.ransac.recover_pose(essential, scene.points)
        return result.rotation, result.translation

    assert torch.autograd.gradcheck(pose, scene.model.clone().requires_grad_())
    rotation, translation = scene.rotation.clone().requires_grad_(), 3 * scene.translation
    assert torch.autograd.gradcheck(dl.ransac.essential_from_pose, (rotation, translation.requires_grad_()))
    camera = torch.tensor([[1.2, 0.1, 0.3], [0.0, 1.1, 0.2], [0.0, 0.0, 1.0]], dtype=torch.float64).requires_grad_()
    second = (camera.detach() * 0.9).requires_grad_()
    inputs = (scene.model.clone().requires_grad_(), camera, second)
    assert torch.autograd.gradcheck(dl.ransac.fundamental_from_essential, inputs)


def test_what_is_not_finite_or_zero_gives_no_error_and_no_nan_gradient():
    essential = views(3, 5).model.clone()
    essential[1] = torch.nan
    essential.requires_grad_()
    rotations, translations = dl.ransac.decompose_essential(essential)
    assert rotations[1].isnan().all()
    assert translations[1].isnan().all()
    (gradient,) = torch.autograd.grad(rotations[::2].sum() + translations[::2].sum(), essential)
    assert gradient.isfinite().all()
    zero = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    rotations, translations = dl.ransac.decompose_essential(zero)
    (gradient,) = torch.autograd.grad(rotations.sum() + translations.sum(), zero)
    assert gradient.isfinite().all()
    still = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    none = dl.ransac.essential_from_pose(torch.eye(3).double(), still)
    (gradient,) = torch.autograd.grad(none.sum(), still)
    assert (none == 0).all()
    assert gradient.isfinite().all()


def test_fundamental_from_essential():
    scene, seen = views(5, 8, seed=4), views(5, 8, seed=4, pixels=True)
    assert apart(dl.ransac.fundamental_from_essential(scene.model, CAMERA, CAMERA), seen.model).max() < 1e-13
    essential = dl.ransac.essential_from_pose(scene.rotation, scene.translation)
    expected = skew(scene.translation) @ scene.rotation / 2**0.5
    torch.testing.assert_close(essential, expected, rtol=0, atol=1e-14)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"'essential' must have shape \[..., 3, 3\], got \(3,\)"):
        dl.ransac.decompose_essential(torch.zeros(3))
    with pytest.raises(ValueError, match=r"'points' must have shape \[..., n, 4\]"):
        dl.ransac.recover_pose(torch.eye(3), torch.zeros(5, 3))
    with pytest.raises(TypeError, match="'rotation' must have a floating-point dtype"):
        dl.ransac.essential_from_pose(torch.eye(3).long(), torch.zeros(3))


def test_recover_pose_agrees_with_opencv():
    cv2 = pytest.importorskip("cv2")
    scene = views(20, 30, seed=5)
    ours = dl.ransac.recover_pose(scene.model, scene.points)
    for row in range(20):
        first, second = (image.numpy() for image in scene.points[row].split(2, -1))
        _, rotation, translation, _ = cv2.recoverPose(scene.model[row].numpy(), first, second)
        torch.testing.assert_close(ours.rotation[row], torch.from_numpy(rotation), rtol=0, atol=1e-8)
        torch.testing.assert_close(ours.translation[row], torch.from_numpy(translation)[:, 0], rtol=0, atol=1e-8)
