"""Matches between pairs of images, with their true poses: real ones from a folder, or synthetic ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import difflayers as dl

INLIER_PIXELS = 1.0  # a match this close to its true epipolar lines is an inlier
FOCAL, WIDTH, HEIGHT = 1380.0, 1536, 1024  # of the synthetic cameras: those of the real ones


class Pairs(NamedTuple):
    """Pairs of images with as many matches each.

    Attributes:
        points: `[pairs, n, 4]`, rows (x1, y1, x2, y2) on the plane z = 1 of the cameras.
        ratios: `[pairs, n]`, Lowe's ratio: the distance to the best descriptor by that to the second best.
        inliers: `[pairs, n]` bool, by the true pose.
        rotations, translations: `[pairs, 3, 3]` and `[pairs, 3]`, x2 ~ R x1 d + t.
        focal: pixels of one unit of the points.
    """

    points: Tensor
    ratios: Tensor
    inliers: Tensor
    rotations: Tensor
    translations: Tensor
    focal: float

    def part(self, which: slice) -> Pairs:
        """Some of the pairs."""
        points, ratios, inliers, rotations, translations, focal = self
        return Pairs(points[which], ratios[which], inliers[which], rotations[which], translations[which], focal)


def load_pairs(folder: Path, scene: str) -> Pairs:
    """The pairs of `two_view_SCENE.npz`.

    Raises:
        OSError: the file is missing or is not what it should be.
    """
    path = folder / f"two_view_{scene}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with np.load(path) as data:
            camera, offset = data["K"].astype(float), data["offset"]
            pixels, ratios = data["xy16"] / 16.0, data["ratio8"] / 255.0
            rotations, translations = data["R"], data["t"]
    except (ValueError, KeyError) as error:
        raise OSError(f"{path} is not a file of image pairs: {error}") from None
    sizes = set(np.diff(offset).tolist())
    if len(sizes) != 1:
        raise OSError(f"{path} has pairs with different numbers of matches, {sorted(sizes)}; one number is wanted")
    focal = np.tile([camera[0, 0], camera[1, 1]], 2)
    shape = (len(offset) - 1, sizes.pop())
    points = torch.from_numpy((pixels - np.tile(camera[:2, 2], 2)) / focal).float().view(*shape, 4)
    pose = torch.from_numpy(rotations).float(), torch.from_numpy(translations).float()
    return _with_truth(points, torch.from_numpy(ratios).float().view(shape), *pose, float(focal.mean()))


def synthetic_pairs(count: int, n: int, seed: int) -> Pairs:
    """Random scenes, 5 to 50 % of whose matches are true, the others anywhere; true ones have the lower ratios."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    size = torch.tensor([WIDTH, HEIGHT]) / FOCAL
    skew = torch.zeros(count, 3, 3)
    angles = 0.15 * normal(count, 3)
    skew[:, [2, 0, 1], [1, 2, 0]], skew[:, [1, 2, 0], [2, 0, 1]] = angles, -angles
    rotations = torch.linalg.matrix_exp(skew)
    translations = normal(count, 3)
    translations = translations / translations.norm(dim=-1, keepdim=True)
    # a scene is a few surfaces of different slant, so that neighbours move alike, as in photographs
    first = (uniform(count, n, 2) - 0.5) * size
    surface = torch.randint(4, (count, n, 1), generator=generator).expand(-1, -1, 3)
    planes = torch.cat([0.4 * normal(count, 4, 2), 3 + 5 * uniform(count, 4, 1)], -1).gather(1, surface)
    depth = (planes[..., 2:] + (planes[..., :2] * first).sum(-1, keepdim=True) * 3).clamp(min=1.5)
    rays = torch.cat([first, torch.ones_like(depth)], -1)
    seen = depth * rays @ rotations.mT + translations.unsqueeze(1)
    second = seen[..., :2] / seen[..., 2:].clamp(min=0.1) + 0.3 / FOCAL * normal(count, n, 2)
    inside = (second.abs() < size / 2).all(-1) & (seen[..., 2] > 0.1)
    true = inside & (uniform(count, n) < 0.05 + 0.45 * uniform(count, 1))
    second = torch.where(true.unsqueeze(-1), second, (uniform(count, n, 2) - 0.5) * size)
    ratios = torch.where(true, 0.97 * uniform(count, n) ** 0.4, 0.97 * uniform(count, n) ** 0.12)
    return _with_truth(torch.cat([first, second], -1), ratios, rotations, translations, FOCAL)


def _with_truth(points: Tensor, ratios: Tensor, rotations: Tensor, translations: Tensor, focal: float) -> Pairs:
    true = dl.ransac.essential_from_pose(rotations, translations)
    inliers = dl.ransac.EssentialMatrix().residual(true, points) < INLIER_PIXELS / focal
    return Pairs(points, ratios, inliers, rotations, translations, focal)


Estimate = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def peers(samples: int) -> dict[str, Estimate]:
    """The relative-pose estimators of other packages, (points `[n, 4]`, focal) -> (R, t), NaN where there is none.

    Those that are not installed are named and left out.
    """
    found: dict[str, Estimate] = {}
    for package, make in (("cv2", _opencv), ("poselib", _poselib)):
        try:
            found |= make(samples)
        except ImportError:
            print(f"{package} is not installed and is left out.")
    return found


def _opencv(samples: int) -> dict[str, Estimate]:
    import cv2

    def with_method(method: int) -> Estimate:
        def estimate(points: Tensor, focal: float) -> tuple[Tensor, Tensor]:
            pixels = focal * points.double().numpy()
            first, second = np.ascontiguousarray(pixels[:, :2]), np.ascontiguousarray(pixels[:, 2:])
            camera = np.diag([focal, focal, 1.0])
            model, mask = cv2.findEssentialMat(
                first, second, camera, method=method, prob=0.999, threshold=1.0, maxIters=samples
            )
            if model is None:
                return torch.full((3, 3), torch.nan), torch.full((3,), torch.nan)
            _, rotation, translation, _ = cv2.recoverPose(model[:3], first, second, camera, mask=mask)
            return torch.from_numpy(rotation).float(), torch.from_numpy(translation[:, 0]).float()

        return estimate

    kinds = {"OpenCV USAC_MAGSAC": cv2.USAC_MAGSAC, "OpenCV USAC_ACCURATE": cv2.USAC_ACCURATE}
    return {name: with_method(method) for name, method in kinds.items()}


def _poselib(samples: int) -> dict[str, Estimate]:
    import poselib

    def estimate(points: Tensor, focal: float) -> tuple[Tensor, Tensor]:
        pixels = focal * points.double().numpy()
        camera = {"model": "PINHOLE", "width": WIDTH, "height": HEIGHT, "params": [focal, focal, 0, 0]}
        settings = {"max_iterations": samples, "success_prob": 0.999, "max_epipolar_error": 1.0}
        pose, _ = poselib.estimate_relative_pose(pixels[:, :2], pixels[:, 2:], camera, camera, settings)
        return torch.tensor(pose.R).float(), torch.tensor(pose.t).float()

    return {"PoseLib": estimate}
