"""Problems for the RANSAC benchmarks: synthetic two-view scenes, and the real pairs of a data folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT, FOCAL = 1024.0, 768.0, 800.0


class TwoView(NamedTuple):
    """Point pairs in pixels with the truth.

    Attributes:
        points: `[N, 4]`.
        clean: `[M, 4]`, noise-free true pairs; empty where there is none (real pairs).
        intrinsics: `[3, 3]` of both cameras.
        rotation, translation: x2 ~ K (R K^-1 x1 d + t), |t| = 1.
        homography: `[3, 3]` or None.
        noise: standard deviation in pixels.
        prior: `[N]`, Lowe's ratio of each match, or None.
    """

    points: np.ndarray
    clean: np.ndarray
    intrinsics: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    homography: np.ndarray | None
    noise: float
    prior: np.ndarray | None = None


def synthetic(kind: str, count: int, inliers: float, seed: int) -> TwoView:
    """A random scene ("pose") or plane ("plane") seen by two cameras; the other matches are uniform in both images.

    The noise is 0.5 pixel for even seeds and 1 pixel for odd ones.
    """
    random = np.random.default_rng(seed)
    noise = 0.5 if seed % 2 == 0 else 1.0
    intrinsics = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    axis = random.normal(size=3)
    rotation = _rotation(axis / np.linalg.norm(axis), np.deg2rad(random.uniform(5, 25)))
    translation = random.normal(size=3)
    translation /= np.linalg.norm(translation)
    wanted = round(count * inliers)
    normal, clean = np.array([0.0, 0.0, 1.0]), np.empty((0, 4))
    if kind == "plane":
        normal = _rotation(np.array([1.0, 0.0, 0.0]), random.uniform(-0.5, 0.5))[2]
        normal = _rotation(np.array([0.0, 1.0, 0.0]), random.uniform(-0.5, 0.5)) @ normal
    distance = 5.0
    homography = intrinsics @ (rotation + np.outer(translation, normal) / distance) @ np.linalg.inv(intrinsics)
    for _ in range(200):
        x = np.column_stack([random.uniform(0, WIDTH, 4 * wanted), random.uniform(0, HEIGHT, 4 * wanted)])
        ray = np.column_stack([(x - intrinsics[:2, 2]) / FOCAL, np.ones(len(x))])
        depth = distance / (ray @ normal) if kind == "plane" else random.uniform(3, 10, len(x))
        seen = (ray * depth[:, None]) @ rotation.T + translation
        with np.errstate(divide="ignore", invalid="ignore"):
            y = FOCAL * seen[:, :2] / seen[:, 2:] + intrinsics[:2, 2]
        good = (depth > 0.5) & (seen[:, 2] > 0.5) & (y > 0).all(1) & (y[:, 0] < WIDTH) & (y[:, 1] < HEIGHT)
        clean = np.concatenate([clean, np.column_stack([x, y])[good]])[:wanted]
        if len(clean) == wanted:
            break
    wrong = count - len(clean)
    size = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    points = np.concatenate([clean + noise * random.normal(size=clean.shape), random.uniform(size=(wrong, 4)) * size])
    points = points[random.permutation(count)]
    plane = homography if kind == "plane" else None
    return TwoView(points, clean, intrinsics, rotation, translation, plane, noise)


def real(folder: Path, name: str, *, every: int = 1, ratio: float = 0.95) -> Iterator[TwoView]:
    """The pairs of two_view_NAME.npz: matches with Lowe's ratio at most `ratio`, every so-many-th pair."""
    data = np.load(folder / f"two_view_{name}.npz")
    offset, matches, ratios = data["offset"], data["xy16"], data["ratio8"]
    for k in range(0, len(offset) - 1, every):
        rows = slice(offset[k], offset[k + 1])
        prior = ratios[rows] / 255.0
        keep = prior <= ratio
        points = matches[rows][keep] / 16.0
        t = data["t"][k] / np.linalg.norm(data["t"][k])
        yield TwoView(points, np.empty((0, 4)), data["K"].astype(float), data["R"][k], t, None, 0.2, prior[keep])


def pose_error(problem: TwoView, rotation: np.ndarray, translation: np.ndarray) -> float:
    """The larger of the angles of rotation and of direction of translation, in degrees; 180 where there is none."""
    if not (np.isfinite(rotation).all() and np.isfinite(translation).all() and np.linalg.norm(translation) > 0):
        return 180.0
    cosine = (np.trace(rotation @ problem.rotation.T) - 1) / 2
    direction = translation @ problem.translation / np.linalg.norm(translation)
    return float(np.rad2deg(max(np.arccos(np.clip(cosine, -1, 1)), np.arccos(np.clip(direction, -1, 1)))))


def fundamental_error(problem: TwoView, model: np.ndarray) -> float:
    """Mean symmetric distance of the noise-free pairs from their epipolar lines, in pixels."""
    if not np.isfinite(model).all():
        return np.inf
    first = np.column_stack([problem.clean[:, :2], np.ones(len(problem.clean))])
    second = np.column_stack([problem.clean[:, 2:], np.ones(len(problem.clean))])
    right, left = first @ model.T, second @ model
    value = np.abs((second * right).sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = value / np.hypot(right[:, 0], right[:, 1]) + value / np.hypot(left[:, 0], left[:, 1])
    return float(np.nan_to_num(distance / 2, nan=np.inf).mean())


def homography_error(problem: TwoView, model: np.ndarray) -> float:
    """Mean distance of the noise-free second points from where the model puts the first ones, in pixels."""
    if not np.isfinite(model).all():
        return np.inf
    mapped = np.column_stack([problem.clean[:, :2], np.ones(len(problem.clean))]) @ model.T
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - problem.clean[:, 2:], axis=1)
    return float(np.nan_to_num(distance, nan=np.inf).mean())


def auc(errors: list[float], limit: float) -> float:
    """The area under the recall curve up to `limit` degrees, exactly (trapezoids between the sorted errors)."""
    ordered = np.sort(np.asarray(errors))
    recall = np.arange(1, len(ordered) + 1) / len(ordered)
    inside = int(np.searchsorted(ordered, limit))
    x = np.concatenate([[0.0], ordered[:inside], [limit]])
    y = np.concatenate([[0.0], recall[:inside], [recall[inside - 1] if inside else 0.0]])
    return float(np.trapezoid(y, x) / limit)


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
