"""Homography pairs, rigid 3D-3D and camera poses of the shared data: who solves what.

    python tests/benchmarks/bench_ransac_data.py --data ../shared/data/robust

Every method gets the same points and threshold, confidence 0.999 and at most 10,000 samples, and five runs with
other seeds or orders of the points; a problem counts as solved when at least three of them succeed. Homographies:
threshold 3 pixels, mean error of the hand-marked points below 5 pixels. Rigid: threshold 0.1, rotation within 4 degrees
and translation within 0.2 of the truth. Camera poses: the true matches among as many uniformly wrong ones as the share
of inliers asks for, noise 0.5 pixel, threshold 2 pixels; rotation within 1 degree and position within 2 % of the
distance. Milliseconds are CPU time on one thread, mean of the runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine

import difflayers as dl

SAMPLES, CONFIDENCE, RUNS = 10_000, 0.999, 5
Method = Callable[[np.ndarray, float, int], np.ndarray]


def ours(solver: dl.ransac.MinimalSolver) -> Method:
    """`RANSAC` with its default settings."""

    def estimate(rows: np.ndarray, threshold: float, seed: int) -> np.ndarray:
        layer = dl.ransac.RANSAC(solver, threshold=threshold, confidence=CONFIDENCE, max_iterations=SAMPLES).eval()
        with torch.no_grad():
            return layer(torch.from_numpy(rows), generator=torch.Generator().manual_seed(seed)).model.numpy()

    return estimate


def opencv_homography(flag: str) -> Method:
    """OpenCV's."""
    import cv2

    def estimate(rows: np.ndarray, threshold: float, seed: int) -> np.ndarray:
        cv2.setRNGSeed(seed)
        rows = np.random.default_rng(seed).permutation(rows)
        first, second = rows[:, :2].copy(), rows[:, 2:].copy()
        found, _ = cv2.findHomography(
            first, second, getattr(cv2, flag), threshold, maxIters=SAMPLES, confidence=CONFIDENCE
        )
        return np.full((3, 3), np.nan) if found is None else found

    return estimate


def poselib_homography() -> Method:
    """PoseLib's."""
    import poselib

    def estimate(rows: np.ndarray, threshold: float, seed: int) -> np.ndarray:
        options = {"max_iterations": SAMPLES, "success_prob": CONFIDENCE, "max_reproj_error": threshold, "seed": seed}
        return np.asarray(poselib.estimate_homography(rows[:, :2].copy(), rows[:, 2:].copy(), options)[0])

    return estimate


def kornia_homography() -> Method:
    """kornia's."""
    from kornia.geometry import RANSAC

    def estimate(rows: np.ndarray, threshold: float, seed: int) -> np.ndarray:
        points = torch.from_numpy(rows).float()
        layer = RANSAC("homography", inl_th=threshold, max_samples=SAMPLES, confidence=CONFIDENCE, seed=seed)
        return layer(points[:, :2].contiguous(), points[:, 2:].contiguous())[0].detach().double().numpy()

    return estimate


def opencv_pose(flag: str) -> Method:
    """OpenCV's; rows in normalised coordinates."""
    import cv2

    def estimate(rows: np.ndarray, threshold: float, seed: int) -> np.ndarray:
        rows = np.random.default_rng(seed).permutation(rows)
        done, turn, move, _ = cv2.solvePnPRansac(
            rows[:, 2:].copy(), rows[:, :2].copy(), np.eye(3), None, iterationsCount=SAMPLES,
            reprojectionError=threshold, confidence=CONFIDENCE, flags=getattr(cv2, flag),
        )  # fmt: skip
        return np.column_stack([cv2.Rodrigues(turn)[0], move]) if done else np.full((3, 4), np.nan)

    return estimate


def poselib_pose() -> Method:
    """PoseLib's; rows in normalised coordinates."""
    import poselib

    camera = {"model": "PINHOLE", "width": 2, "height": 2, "params": [1.0, 1.0, 0.0, 0.0]}

    def estimate(rows: np.ndarray, threshold: float, seed: int) -> np.ndarray:
        options = {"max_iterations": SAMPLES, "success_prob": CONFIDENCE, "max_reproj_error": threshold, "seed": seed}
        pose, _ = poselib.estimate_absolute_pose(rows[:, :2].copy(), rows[:, 2:].copy(), camera, options)
        return np.column_stack([pose.R, pose.t])

    return estimate


def plain_rigid() -> Method:
    """Plain RANSAC in NumPy, as none of the peers has a robust rigid transform: a thousand samples of three points,
    inlier count, a least-squares fit to the inliers."""

    def kabsch(rows: np.ndarray) -> np.ndarray:
        source, target = rows[..., :3], rows[..., 3:]
        a, b = source.mean(-2, keepdims=True), target.mean(-2, keepdims=True)
        u, _, v = np.linalg.svd(np.swapaxes(target - b, -1, -2) @ (source - a))
        v[..., 2, :] *= np.linalg.det(u @ v)[..., None]
        rotation = u @ v
        return np.concatenate([rotation, np.swapaxes(b - a @ np.swapaxes(rotation, -1, -2), -1, -2)], -1)

    def distance(model: np.ndarray, rows: np.ndarray) -> np.ndarray:
        moved = rows[:, :3] @ np.swapaxes(model[..., :3], -1, -2) + np.swapaxes(model[..., 3:], -1, -2)
        return np.linalg.norm(moved - rows[:, 3:], axis=-1)

    def estimate(rows: np.ndarray, threshold: float, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        models = kabsch(rows[random.integers(0, len(rows), (1000, 3))].astype(float))
        best = max(models, key=lambda model: int((distance(model, rows) < threshold).sum()))
        return kabsch(rows[distance(best, rows) < threshold].astype(float))

    return estimate


def available(makers: dict[str, Callable[[], Method]]) -> dict[str, Method]:
    """Those whose package is installed."""
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def angle(rotation: np.ndarray, truth: np.ndarray) -> float:
    """Between two rotations, in degrees."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(rotation.T @ truth) - 1) / 2, -1, 1))))


class Problem:
    """Points, a threshold and the errors of a model, each in units of its limit: solved below 1."""

    def __init__(self, name: str, rows: np.ndarray, threshold: float, errors: Callable[[np.ndarray], float]) -> None:
        self.name, self.rows, self.threshold, self.errors = name, rows, threshold, errors


def homographies(folder: Path) -> list[Problem]:
    """The pairs of Lebeda et al. 2012."""
    data = np.load(folder / "homography_pairs.npz")
    problems = []
    for name in sorted({key.split("/")[0] for key in data.files}):
        marked = data[f"{name}/vpts"]

        def errors(model: np.ndarray, marked: np.ndarray = marked) -> float:
            mapped = np.column_stack([marked[:, :2], np.ones(len(marked))]) @ model.T
            return float(np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - marked[:, 2:], axis=1).mean() / 5)

        problems.append(Problem(name, data[f"{name}/xy"], 3.0, errors))
    return problems


def rigid(folder: Path) -> list[Problem]:
    """The scan, and the same with fewer inliers: true matches are replaced by wrong pairings."""
    data = np.load(folder / "rigid_3d3d.npz")
    rows, truth = data["xyz"].astype(float), data["T"]

    def errors(model: np.ndarray) -> float:
        turn, move = angle(model[:3, :3], truth[:3, :3]), float(np.linalg.norm(model[:3, 3] - truth[:3, 3]))
        return max(turn / 4, move / 0.2)

    problems = [Problem("as it is", rows, 0.1, errors)]
    for wrong in (0.5, 0.8, 0.9):
        random, other = np.random.default_rng(0), rows.copy()
        at = random.permutation(len(rows))[: round(wrong * len(rows))]
        other[at, 3:] = rows[random.permutation(len(rows))[: len(at)], 3:]
        problems.append(Problem(f"{wrong:.0%} of the matches permuted", other, 0.1, errors))
    return problems


def poses(folder: Path) -> list[Problem]:
    """The camera pose with 10 to 50 % inliers, in normalised coordinates."""
    data = np.load(folder / "pnp_2d3d.npz")
    k, truth, true = data["K"], data["Rt"], data["q"]
    focal = float(k[0, 0] + k[1, 1]) / 2
    seen = np.column_stack([true[:, :2], np.ones(len(true))]) @ np.linalg.inv(k).T
    true = np.column_stack([seen[:, :2], true[:, 2:]])
    centre = -truth[:, :3].T @ truth[:, 3]
    distance = np.linalg.norm(true[:, 2:] - centre, axis=1).mean()

    def errors(model: np.ndarray) -> float:
        away = np.linalg.norm(-model[:, :3].T @ model[:, 3] - centre) / distance
        return max(angle(model[:, :3], truth[:, :3]) / 1.0, float(away) / 0.02)

    problems = []
    for share in (0.5, 0.3, 0.2, 0.1):
        random = np.random.default_rng(0)
        wrong = round(len(true) * (1 - share) / share)
        of = random.uniform(true.min(0), true.max(0), (wrong, 5))
        noisy = true + np.pad(random.normal(size=(len(true), 2)) * 0.5 / focal, ((0, 0), (0, 3)))
        problems.append(Problem(f"{share:.0%} inliers", np.concatenate([noisy, of]), 2 / focal, errors))
    return problems


def table(problems: list[Problem], found: dict[str, Method]) -> tuple[list[str], list[str]]:
    """Lines of a Markdown table, and the names of problems that a peer solves and we do not."""
    lines = ["| problem | points | " + " | ".join(found) + " |", "|" + "---|" * (len(found) + 2)]
    solved, total, missed = dict.fromkeys(found, 0), dict.fromkeys(found, 0.0), []
    for problem in problems:
        cells, done = [], {}
        for name, method in found.items():
            method(problem.rows, problem.threshold, 0)
            start, errors = time.process_time(), []
            for seed in range(RUNS):
                with np.errstate(all="ignore"):
                    errors.append(problem.errors(method(problem.rows, problem.threshold, seed + 1)))
            spent = (time.process_time() - start) / RUNS * 1e3
            successes = sum(error < 1 for error in errors)
            done[name] = successes >= 3
            solved[name] += done[name]
            total[name] += spent
            cells.append(f"{successes}/{RUNS}, {np.median(errors):.2f}, {spent:.1f}")
        if any(done.values()) and not done["difflayers"]:
            missed.append(problem.name)
        lines.append(f"| {problem.name} | {len(problem.rows)} | " + " | ".join(cells) + " |")
    count = len(problems)
    cells = [f"**{solved[name]} of {count}**, {total[name] / count:.1f}" for name in found]
    return [*lines, "| solved, mean ms | | " + " | ".join(cells) + " |"], missed


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of homography_pairs.npz and the others")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("\n".join(f"- {line}" for line in machine()), end="\n\n")
    print("Each cell: successes, median error in units of its limit, ms.")
    missed = []
    for title, make, makers in (
        ("Homography pairs", homographies, {
            "difflayers": lambda: ours(dl.ransac.Homography()),
            "OpenCV USAC_MAGSAC": lambda: opencv_homography("USAC_MAGSAC"),
            "OpenCV USAC_ACCURATE": lambda: opencv_homography("USAC_ACCURATE"),
            "PoseLib": poselib_homography, "kornia": kornia_homography,
        }),
        ("Rigid 3D-3D", rigid, {
            "difflayers": lambda: ours(dl.ransac.RigidTransform3D()), "plain RANSAC in NumPy": plain_rigid,
        }),
        ("Camera pose from 2D-3D", poses, {
            "difflayers": lambda: ours(dl.ransac.AbsolutePose()),
            "OpenCV AP3P": lambda: opencv_pose("SOLVEPNP_AP3P"), "PoseLib": poselib_pose,
        }),
    ):  # fmt: skip
        problems, found = make(options.data), available(dict[str, Any](makers))
        lines, lost = table(problems, found)
        missed += lost
        print(f"\n### {title}\n\n" + "\n".join(lines), flush=True)
    verdict = f"missed: {', '.join(missed)}" if missed else "reached"
    print(f"\nSuccess on every problem that any of the peers solves: {verdict}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
