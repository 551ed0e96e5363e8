"""The robust estimators that the RANSAC benchmarks compare: ours and the peers that are installed.

A method takes a `TwoView` and a threshold in pixels and returns (R, t) for "E" and a 3 x 3 matrix for "F" and "H".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ransac_problems import TwoView

import difflayers as dl

Method = Callable[[TwoView, float], Any]
NOTHING = np.full((3, 3), np.nan)
SAMPLES, CONFIDENCE = 10_000, 0.999


def normalised(problem: TwoView) -> np.ndarray:
    """The points on the plane z = 1."""
    k = problem.intrinsics
    return (problem.points - np.tile(k[:2, 2], 2)) / np.tile([k[0, 0], k[1, 1]], 2)


def _ours(kind: str, **settings: Any) -> Method:
    name = {"E": "EssentialMatrix", "F": "FundamentalMatrix", "H": "Homography"}[kind]
    solver = getattr(dl.ransac, name)()

    def estimate(problem: TwoView, threshold: float) -> Any:
        points = normalised(problem) if kind == "E" else problem.points
        scale = (problem.intrinsics[0, 0] + problem.intrinsics[1, 1]) / 2 if kind == "E" else 1.0
        layer = dl.ransac.RANSAC(
            solver, threshold=threshold / scale, confidence=CONFIDENCE, max_iterations=SAMPLES, **settings
        ).eval()
        rows = torch.from_numpy(points).float()
        with torch.no_grad():
            result = layer(rows, generator=torch.Generator().manual_seed(0))
            if kind != "E":
                return result.model.double().numpy()
            rotation, translation = dl.ransac.recover_pose(result.model, rows, result.inliers)[:2]
            return rotation.double().numpy(), translation.double().numpy()

    return estimate


def _opencv(kind: str, method: str) -> Method:
    import cv2

    flag = getattr(cv2, method)

    def estimate(problem: TwoView, threshold: float) -> Any:
        first, second = problem.points[:, :2].copy(), problem.points[:, 2:].copy()
        if kind == "H":
            model, _ = cv2.findHomography(first, second, flag, threshold, maxIters=SAMPLES, confidence=CONFIDENCE)
            return NOTHING if model is None else model
        if kind == "F":
            model, _ = cv2.findFundamentalMat(first, second, flag, threshold, CONFIDENCE, SAMPLES)
            return NOTHING if model is None else model[:3]
        model, mask = cv2.findEssentialMat(
            first, second, problem.intrinsics, method=flag, prob=CONFIDENCE, threshold=threshold, maxIters=SAMPLES
        )
        if model is None:
            return NOTHING, NOTHING[0]
        _, rotation, translation, _ = cv2.recoverPose(model[:3], first, second, problem.intrinsics, mask=mask)
        return rotation, translation[:, 0]

    return estimate


def _poselib(kind: str) -> Method:
    import poselib

    options = {"max_iterations": SAMPLES, "min_iterations": 100, "success_prob": CONFIDENCE}

    def estimate(problem: TwoView, threshold: float) -> Any:
        first, second = problem.points[:, :2], problem.points[:, 2:]
        settings = {**options, "max_epipolar_error": threshold, "max_reproj_error": threshold}
        if kind == "H":
            return np.asarray(poselib.estimate_homography(first, second, settings)[0])
        if kind == "F":
            return np.asarray(poselib.estimate_fundamental(first, second, settings)[0])
        k = problem.intrinsics
        camera = {"model": "PINHOLE", "width": 2000, "height": 2000, "params": [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]}
        pose = poselib.estimate_relative_pose(first, second, camera, camera, settings)[0]
        return np.asarray(pose.R), np.asarray(pose.t)

    return estimate


def _kornia(kind: str) -> Method:
    from kornia.geometry import RANSAC

    name = {"H": "homography", "F": "fundamental", "E": "essential"}[kind]

    def estimate(problem: TwoView, threshold: float) -> Any:
        points = torch.from_numpy(normalised(problem) if kind == "E" else problem.points).float()
        scale = (problem.intrinsics[0, 0] + problem.intrinsics[1, 1]) / 2 if kind == "E" else 1.0
        layer = RANSAC(name, inl_th=threshold / scale, max_samples=SAMPLES, confidence=CONFIDENCE, seed=0)
        model, mask = layer(points[:, :2].contiguous(), points[:, 2:].contiguous())
        if kind != "E":
            return model.detach().double().numpy()
        rotation, translation = dl.ransac.recover_pose(model.detach(), points, mask.bool())[:2]
        return rotation.double().numpy(), translation.double().numpy()

    return estimate


def methods(kind: str, names: list[str] | None = None) -> dict[str, Method]:
    """Ours and the installed peers for "E", "F" or "H", by name."""
    makers: dict[str, Callable[[], Method]] = {
        "difflayers": lambda: _ours(kind),
        "OpenCV USAC_MAGSAC": lambda: _opencv(kind, "USAC_MAGSAC"),
        "OpenCV USAC_ACCURATE": lambda: _opencv(kind, "USAC_ACCURATE"),
        "PoseLib": lambda: _poselib(kind),
        "kornia": lambda: _kornia(kind),
    }
    found = {}
    for name, maker in makers.items():
        if names is None or name in names:
            try:
                found[name] = maker()
            except ImportError as error:
                print(f"{name} is left out: {error}")
    return found
