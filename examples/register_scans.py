"""Registers scans: finds the rigid motion between two point clouds from matches of which most are wrong.

Each row of a cloud pairs a point of one scan with its supposed place in another. Three matches give a motion; RANSAC
draws threes until three right ones have come with the confidence asked for, and refines the best motion. Printed are
the errors of rotation and translation against the truth, beside those of least squares over all matches, of RANSAC
without refinement, and of a similarity, whose scale is not known either. Distances are shares of the cloud's size.

--data is a folder with rigid_3d3d.npz (matches between two real scans with the true motion) and bunny_res3.ply (the
Stanford bunny, which is moved and given wrong matches here); without it, and for what is missing in it, shapes are
made up.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import command
import numpy as np
import torch
from torch import Tensor

import difflayers as dl

try:
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"register_scans.py: {error}; run: pip install 'difflayers[examples]'")

SOLVED = (5.0, 25.0)  # degrees, and percent of the size: those near are in the basin of any fine registration
RIGID, SIMILARITY = dl.ransac.RigidTransform3D(), dl.ransac.RigidTransform3D(scale=True)


class Cloud(NamedTuple):
    """Matches `[n, 6]`, rows (source, target); truth `[3, 4]` = [R | t]; inliers `[n]` bool; threshold; size."""

    name: str
    matches: Tensor
    truth: Tensor
    inliers: Tensor
    threshold: float
    size: float


def random_motion(size: float, generator: torch.Generator) -> Tensor:
    """Any rotation and a shift of the cloud's size, `[3, 4]`."""
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    q = q * r.diagonal().sign()
    q = q * torch.linalg.det(q)  # no reflection
    return torch.cat([q, size * torch.randn(3, 1, dtype=torch.float64, generator=generator)], -1)


def apart(points: Tensor) -> float:
    """The size of a cloud: the root mean square distance from its centre."""
    return float((points - points.mean(0)).square().sum(-1).mean().sqrt())


def spoiled(name: str, points: Tensor, share: float, seed: int, options: Namespace) -> Cloud:
    """A shape moved at random, `share` of its matches right up to noise, the others with any other point."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(points), (options.matches,), generator=generator)
    source, size = points.double()[chosen], apart(points.double())
    truth = random_motion(size, generator)
    target = source @ truth[:, :3].T + truth[:, 3]
    wrong = torch.rand(options.matches, generator=generator) >= share
    target = torch.where(wrong.unsqueeze(-1), target[torch.randperm(len(target), generator=generator)], target)
    noise = options.noise * size
    target = target + noise * torch.randn(target.shape, dtype=torch.float64, generator=generator)
    matches = torch.cat([source, target], -1).float()
    # 3.8 of a coordinate's standard deviations: 0.2 % of the true ones are farther
    threshold = max(3.8 * noise, 1e-3 * size)
    return Cloud(name, matches, truth, RIGID.residual(truth, matches.double()) < threshold, threshold, size)


def read_ply(path: Path) -> Tensor:
    """The vertices `[n, 3]` of an ASCII ply file whose first element they are, x, y, z first."""
    with path.open(encoding="ascii", errors="replace") as file:
        head: list[str] = []
        for line in file:
            head.append(line.strip())
            if head[0] != "ply" or head[-1] == "end_header" or len(head) > 100:
                break
        elements = [line.split() for line in head if line.startswith("element ")]
        if "format ascii 1.0" not in head or head[-1] != "end_header" or not elements or elements[0][1] != "vertex":
            raise OSError(f"{path} is not an ASCII ply file of vertices")
        try:
            count = int(elements[0][2])
            rows = [[float(value) for value in line.split()[:3]] for _, line in zip(range(count), file, strict=False)]
            return torch.tensor(rows).view(count, 3)
        except (ValueError, RuntimeError) as error:
            raise OSError(f"{path} does not have the vertices that it promises: {error}") from None


def spring(count: int) -> Tensor:
    """A made-up shape: a tube wound into a spring, thicker at one end, so that it fits onto itself in one way only."""
    along = torch.linspace(0, 1, count)
    turn, around = 6 * torch.pi * along, 2399.96 * along * torch.pi
    radius = 0.15 + 0.25 * along
    x, y = (1 + radius * around.cos()) * turn.cos(), (1 + radius * around.cos()) * turn.sin()
    return torch.stack([x, 2.5 * along + radius * around.sin(), y], -1)


def clouds(options: Namespace) -> list[Cloud]:
    """The problems: a shape with few and with very few right matches, and the real scans if they are there."""
    shape, name, found = spring(2000), "spring", []
    if options.data:
        scans, bunny = options.data / "rigid_3d3d.npz", options.data / "bunny_res3.ply"
        if not scans.is_file() and not bunny.is_file():
            raise FileNotFoundError(f"{options.data} has neither rigid_3d3d.npz nor bunny_res3.ply")
        if scans.is_file():
            found.append(read_scans(scans, options.threshold))
        if bunny.is_file():
            shape, name = read_ply(bunny), "bunny"
    shares = (options.inliers, options.inliers / 3)
    seeds = (options.seed, options.seed + 1)
    made = zip(shares, seeds, strict=True)
    return found + [spoiled(f"{name}, {100 * share:.2g} % right", shape, share, seed, options) for share, seed in made]


def read_scans(path: Path, threshold: float) -> Cloud:
    """The matches between two real scans."""
    try:
        with np.load(path) as data:
            matches, truth = torch.from_numpy(data["xyz"]).float(), torch.from_numpy(data["T"])[:3].double()
    except (ValueError, KeyError) as error:
        raise OSError(f"{path} is not a file of matches: {error}") from None
    inliers = RIGID.residual(truth, matches.double()) < threshold
    return Cloud("two scans", matches, truth, inliers, threshold, apart(matches[:, :3].double()))


class Found(NamedTuple):
    """A motion `[3, 4]`, which matches fit it, the samples drawn, and the milliseconds."""

    model: Tensor
    inliers: Tensor
    samples: int
    milliseconds: float


def ransac(cloud: Cloud, options: Namespace, solver: dl.ransac.RigidTransform3D, **settings: Any) -> Found:
    layer = dl.ransac.RANSAC(
        solver, threshold=cloud.threshold, confidence=options.confidence, max_iterations=options.samples, **settings
    ).eval()
    begun = time.perf_counter()
    result = layer(cloud.matches, generator=torch.Generator().manual_seed(options.seed))
    spent = 1e3 * (time.perf_counter() - begun)
    return Found(result.model.double(), result.inliers, int(result.iterations), spent)


def least_squares(cloud: Cloud) -> Found:
    """All matches alike."""
    begun = time.perf_counter()
    model, _ = RIGID.fit(cloud.matches.double(), torch.ones(len(cloud.matches), dtype=torch.float64))
    spent = 1e3 * (time.perf_counter() - begun)
    return Found(model, RIGID.residual(model, cloud.matches.double()) < cloud.threshold, 0, spent)


def errors(cloud: Cloud, model: Tensor) -> tuple[float, float]:
    """Degrees, and how far the centre of the cloud is from where it should be, as a percentage of its size."""
    scale = torch.linalg.det(model[:, :3]).abs() ** (1 / 3)
    angle = dl.ransac.pose_error(model[:, :3] / scale, model[:, 3], cloud.truth[:, :3], cloud.truth[:, 3]).rotation
    centre = cloud.matches[:, :3].double().mean(0)
    off = (model - cloud.truth)[:, :3] @ centre + (model - cloud.truth)[:, 3]
    return float(angle), 100 * float(off.norm()) / cloud.size


def draw(found: list[tuple[Cloud, Found]], path: Path) -> None:
    """Each cloud's source and target, before and after the motion that was found, seen along z."""
    figure = Figure(figsize=(4.4 * len(found), 7.6), layout="constrained")
    for column, (cloud, result) in zip(figure.subplots(2, len(found), squeeze=False).T, found, strict=True):
        source, target = cloud.matches[:, :3].double(), cloud.matches[:, 3:]
        moved = source @ result.model[:, :3].T + result.model[:, 3]
        degrees, _ = errors(cloud, result.model)
        after = f"after: {degrees:.2f} degrees off, {int(result.inliers.sum())} matches fit"
        for axes, points, title in zip(column, (source, moved), (f"{cloud.name}: before", after), strict=True):
            axes.scatter(*target[:, :2].T, s=2, c="#8c959f", label="target", lw=0)
            axes.scatter(*points[:, :2].T, s=2, c="#0969da", label="source", lw=0)
            axes.set(aspect="equal", xticks=[], yticks=[])
            axes.set_title(title, fontsize=10)
            axes.spines[:].set_visible(False)
        column[0].legend(frameon=False, markerscale=4, fontsize=8)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__, __doc__, seed="of the motions, the noise and the samples", quick={"runs": 2}, takes="a second"
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of rigid_3d3d.npz and bunny_res3.ply, or one of them")
    add("--inliers", type=float, default=0.2, help="share of right matches of the made problem; a third of it later")
    add("--noise", type=float, default=0.01, help="of its right matches, in sizes of the shape, standard deviation")
    add("--matches", type=int, default=2000, help="matches of the made problem")
    add("--threshold", type=float, default=0.1, help="distance of inliers of the real scans, in their units")
    add("--confidence", type=float, default=0.999, help="with which three right matches are to have been drawn")
    add("--samples", type=int, default=100_000, help="the most samples of a search")
    add("--runs", type=int, default=5, help="searches with different seeds, for the mean")
    options = parser.options(argv)
    if min(options.matches, options.samples, options.runs) < 1 or options.matches < 10:
        parser.error("--samples and --runs must be positive, and --matches at least 10")
    if not (0 < options.inliers <= 1 and 0 < options.confidence < 1):
        parser.error("--inliers must be in (0, 1], and --confidence between 0 and 1")
    if not (0 <= options.noise < 1 and 0 < options.threshold < float("inf")):
        parser.error("--noise must be in [0, 1), and --threshold positive")
    return options


def run(options: Namespace) -> Path:
    """Registers, prints the table, draws the picture."""
    header = f"{'':28}{'degrees':>9}{'shift %':>9}{'inliers':>9}{'samples':>9}{'ms':>7}{'solved':>9}"
    drawn: list[tuple[Cloud, Found]] = []
    seeds = range(options.seed, options.seed + options.runs)
    for cloud in clouds(options):
        count = int(cloud.inliers.sum())
        print(
            f"{cloud.name}: {len(cloud.matches)} matches, {count} of them ({100 * count / len(cloud.matches):.1f} %) "
            f"within {cloud.threshold:.3g} of the truth\n{header}"
        )

        def report(name: str, found: list[Found], cloud: Cloud = cloud) -> None:
            off = torch.tensor([errors(cloud, result.model) for result in found])
            solved = int((off < torch.tensor(SOLVED)).all(-1).sum())
            off = off.nan_to_num(180).median(0).values
            inliers, samples, spent = (
                sum(values) / len(found)
                for values in zip(*((int(r.inliers.sum()), r.samples, r.milliseconds) for r in found), strict=True)
            )
            print(
                f"{name:28}{off[0]:9.2f}{off[1]:9.2f}{inliers:9.0f}{samples:9.0f}{spent:7.0f}"
                f"{f'{solved}/{len(found)}':>9}",
                flush=True,
            )

        report("least squares, all matches", [least_squares(cloud)])
        kinds = {
            "RANSAC, not refined": (RIGID, {"refiner": None, "local": None}),
            "RANSAC": (RIGID, {}),
            "RANSAC, MAGSAC++ score": (RIGID, {"scorer": dl.ransac.MAGSAC()}),
            "RANSAC, unknown scale": (SIMILARITY, {}),
        }
        for name, (solver, settings) in kinds.items():
            results = [
                ransac(cloud, Namespace(**{**vars(options), "seed": seed}), solver, **settings)
                for seed in tqdm(seeds, desc=name, leave=False, disable=None)
            ]
            report(name, results)
            if name == "RANSAC":
                drawn.append((cloud, results[0]))
        better = int(drawn[-1][1].inliers.sum())
        if better > 1.2 * count:
            print(
                f"The motion that was found fits {better} matches, the true one {count}: the truth is not that exact."
            )
        print()
    print(
        f"Median errors and mean inliers, samples and time of {options.runs} runs; solved: less than {SOLVED[0]:g} "
        f"degrees and\n{SOLVED[1]:g} % of the size off."
    )
    path = options.out / "register_scans.png"
    draw(drawn, path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
