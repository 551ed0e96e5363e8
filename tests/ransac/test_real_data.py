"""RANSAC on the real problems of ../shared/data, which is not part of the package; skipped where it is not there."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import difflayers as dl

ROOT = Path(__file__).resolve().parents[2]
PLACES = [os.environ.get("DIFFLAYERS_DATA", ""), ROOT.parent / "shared/data", ROOT / "shared/data"]
FOLDER = next((Path(place) / "robust" for place in PLACES if place and (Path(place) / "robust").is_dir()), None)
pytestmark = pytest.mark.skipif(FOLDER is None, reason="the real data is absent: ../shared/data or $DIFFLAYERS_DATA")
R = dl.ransac


def load(name):
    return np.load(FOLDER / f"{name}.npz")


def estimate(solver, rows, threshold, seed=0, **settings):
    layer = R.RANSAC(solver, threshold=threshold, **settings).eval()
    return layer(torch.as_tensor(np.ascontiguousarray(rows)), generator=torch.Generator().manual_seed(seed))


def angle(a, b):
    """Between rotations `[3, 3]`, or directions `[3]`, in degrees."""
    cosine = (np.trace(a.T @ b) - 1) / 2 if a.ndim == 2 else a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))


def test_poses_of_the_castle():
    data = load("two_view_castle")
    k, offset, good = data["K"].astype(float), data["offset"], 0
    pairs = range(0, len(offset) - 1, 18)
    for pair in pairs:
        rows = slice(offset[pair], offset[pair + 1])
        points = data["xy16"][rows][data["ratio8"][rows] <= 0.95 * 255] / 16.0
        points = (points - np.tile(k[:2, 2], 2)) / np.tile([k[0, 0], k[1, 1]], 2)
        result = estimate(R.EssentialMatrix(), points, 1 / k[0, 0])
        assert result.status == R.RansacStatus.FOUND
        pose = R.recover_pose(result.model, torch.from_numpy(points), result.inliers)
        # every inlier is in front of both cameras, or where a point at infinity would be
        assert pose.in_front[result.inliers].double().mean() > 0.95
        turn = angle(pose.rotation.numpy(), data["R"][pair])
        good += max(turn, angle(pose.translation.numpy(), data["t"][pair])) < 5
    assert good >= 0.8 * len(pairs), f"{good} of {len(pairs)}"


def test_fundamental_matrices_of_the_castle():
    data = load("two_view_castle")
    k, offset, medians = data["K"].astype(float), data["offset"], []
    for pair in range(0, len(offset) - 1, 18):
        rows = slice(offset[pair], offset[pair + 1])
        points = torch.from_numpy(data["xy16"][rows][data["ratio8"][rows] <= 0.95 * 255] / 16.0)
        truth = R.essential_from_pose(torch.from_numpy(data["R"][pair]), torch.from_numpy(data["t"][pair]))
        camera = torch.from_numpy(k)
        truth = R.fundamental_from_essential(truth, camera, camera)
        true = R.FundamentalMatrix().residual(truth, points) < 1
        result = estimate(R.FundamentalMatrix(), points, 1.0)
        medians.append(R.FundamentalMatrix().residual(result.model, points)[true].median().item())
    # true matches are on the found epipolar lines in most pairs; some have few and are seen almost from one place
    assert np.median(medians) < 0.5
    assert np.mean(np.asarray(medians) < 1) >= 0.7


def test_homographies():
    data, errors = load("homography_pairs"), {}
    for name in sorted({key.split("/")[0] for key in data.files}):
        model = estimate(R.Homography(), data[f"{name}/xy"], 3.0).model.numpy()
        marked = data[f"{name}/vpts"]
        mapped = np.column_stack([marked[:, :2], np.ones(len(marked))]) @ model.T
        errors[name] = np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - marked[:, 2:], axis=1).mean()
    assert sum(error < 5 for error in errors.values()) >= len(errors) - 1, errors


def test_homographies_in_one_batch():
    data = load("homography_pairs")
    names = sorted({key.split("/")[0] for key in data.files})
    longest = max(len(data[f"{name}/xy"]) for name in names)
    points, mask = np.full((len(names), longest, 4), np.nan), np.zeros((len(names), longest), dtype=bool)
    for k, name in enumerate(names):
        rows = data[f"{name}/xy"]
        points[k, : len(rows)], mask[k, : len(rows)] = rows, True
    layer = R.RANSAC(R.Homography(), threshold=3.0).eval()
    result = layer(torch.from_numpy(points), mask=torch.from_numpy(mask), generator=torch.Generator().manual_seed(0))
    assert (result.status == R.RansacStatus.FOUND).all()
    assert not result.inliers[torch.from_numpy(~mask)].any()
    good = 0
    for k, name in enumerate(names):
        marked = data[f"{name}/vpts"]
        mapped = np.column_stack([marked[:, :2], np.ones(len(marked))]) @ result.model[k].numpy().T
        good += np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - marked[:, 2:], axis=1).mean() < 5
    assert good >= len(names) - 1


@pytest.mark.parametrize("permuted", [0.0, 0.8], ids=["as it is", "80 % more wrong"])
def test_rigid_transform(permuted):
    data = load("rigid_3d3d")
    rows, truth, random = data["xyz"].copy(), data["T"], np.random.default_rng(0)
    at = random.permutation(len(rows))[: round(permuted * len(rows))]
    rows[at, 3:] = rows[random.permutation(len(rows))[: len(at)], 3:]
    model = estimate(R.RigidTransform3D(), rows, 0.1).model.double().numpy()
    assert angle(model[:3, :3], truth[:3, :3]) < 4
    assert np.linalg.norm(model[:3, 3] - truth[:3, 3]) < 0.2


@pytest.mark.parametrize("inliers", [0.5, 0.2])
def test_camera_pose(inliers):
    data = load("pnp_2d3d")
    k, truth, true = data["K"], data["Rt"], data["q"]
    seen = np.column_stack([true[:, :2], np.ones(len(true))]) @ np.linalg.inv(k).T
    true = np.column_stack([seen[:, :2], true[:, 2:]])
    wrong = round(len(true) * (1 - inliers) / inliers)
    outliers = np.random.default_rng(0).uniform(true.min(0), true.max(0), (wrong, 5))
    result = estimate(R.AbsolutePose(), np.concatenate([true, outliers]), 1 / k[0, 0])
    model = result.model.numpy()
    assert angle(model[:, :3], truth[:, :3]) < 0.01  # without noise: what is wrong is an outlier or two
    assert result.inliers[: len(true)].all()
    assert result.inliers[len(true) :].double().mean() < 0.05


def test_stereo():
    data = load("stereo_motorcycle")
    rows, width = data["xy"].astype(float), data["size"].astype(float)
    points = (rows - np.tile(width / 2, 2)) / 994.978  # the centre does not matter for a rectified pair's geometry
    result = estimate(R.EssentialMatrix(), points, 1 / 994.978)
    pose = R.recover_pose(result.model, torch.from_numpy(points), result.inliers)
    assert angle(pose.rotation.numpy(), np.eye(3)) < 0.5
    assert angle(pose.translation.numpy(), np.array([-1.0, 0.0, 0.0])) < 3
    # x2 = x1 - disparity on the same row
    near = np.abs(rows[:, 1] - rows[:, 3]) < 1
    true = near & (np.abs(rows[:, 0] - rows[:, 2] - data["disp_at"]) < 2)
    assert result.inliers.numpy()[true].mean() > 0.9
