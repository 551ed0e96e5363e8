"""Times the minimal solvers of RANSAC, forward and with backward, against kornia and PoseLib.

    PYTHONPATH=directory/of/peers python tests/benchmarks/bench_ransac_solvers.py --out docs/benchmarks_solvers.md
    python tests/benchmarks/bench_ransac_solvers.py --quick

1024 samples in one call on one core, float64; processor time in microseconds per sample, the fastest of several rounds
in which all take turns. PoseLib solves one sample a call, in C++, through its Python binding: its times are of a loop
over the samples. What the solvers find is compared with the truth before anything is timed. Peers that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import machine
from torch import Tensor

import difflayers as dl

SAMPLES = 1024


class Problem(NamedTuple):
    """A solver of ours, exact samples `[B, k, d]` with their model `[B, *shape]`, and the peers' solvers.

    Attributes:
        batched: name -> function of samples that returns all models, NaN where there is none, in PyTorch.
        single: name -> function of one sample that returns nothing of interest.
    """

    solver: Any
    samples: Tensor
    truth: Tensor
    batched: dict[str, Callable[[Tensor], Tensor]]
    single: dict[str, Callable[[Any], object]]


def scenes(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Pairs `[count, size, 4]` in normalised coordinates, and their essential matrices."""
    generator = torch.Generator().manual_seed(size)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    rotation = torch.linalg.matrix_exp(0.3 * (lambda m: m - m.mT)(normal(count, 3, 3)))
    translation = torch.nn.functional.normalize(normal(count, 3), dim=-1)
    space = normal(count, size, 3) + torch.tensor([0.0, 0.0, 8.0])
    other = space @ rotation.mT + translation.unsqueeze(1)
    points = torch.cat([space[..., :2] / space[..., 2:], other[..., :2] / other[..., 2:]], -1)
    return points, dl.ransac.essential_from_pose(rotation, translation)


def essential() -> Problem:
    """The 5-point solvers."""
    points, truth = scenes(SAMPLES, 5)
    batched: dict[str, Callable[[Tensor], Tensor]] = {}
    single: dict[str, Callable[[Any], object]] = {}
    try:
        from kornia.geometry.epipolar import find_essential

        batched["kornia"] = lambda x: find_essential(x[..., :2], x[..., 2:]).view(len(x), 10, 3, 3)
    except ImportError:
        pass
    try:
        import poselib

        single["PoseLib"] = lambda sample: poselib.relpose_5pt(*sample)
    except ImportError:
        pass
    return Problem(dl.ransac.EssentialMatrix(), points, truth, batched, single)


def fundamental() -> Problem:
    """The 7-point solvers, in pixels."""
    points, truth = scenes(SAMPLES, 7)
    camera = torch.tensor([[800.0, 0.0, 500.0], [0.0, 800.0, 400.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    points = points * 800 + camera[:2, 2].repeat(2)
    batched: dict[str, Callable[[Tensor], Tensor]] = {}
    try:
        from kornia.geometry.epipolar import find_fundamental

        batched["kornia"] = lambda x: find_fundamental(x[..., :2], x[..., 2:], method="7POINT").view(len(x), 3, 3, 3)
    except ImportError:
        pass
    truth = dl.ransac.fundamental_from_essential(truth, camera, camera)
    return Problem(dl.ransac.FundamentalMatrix(), points, truth, batched, {})


def homography() -> Problem:
    """The 4-point solvers, in pixels."""
    generator = torch.Generator().manual_seed(4)
    truth = torch.eye(3, dtype=torch.float64) + 0.3 * torch.randn(SAMPLES, 3, 3, generator=generator).double()
    truth[:, 2, :2] *= 0.001
    truth[:, 2, 2] = 1
    first = 1000 * torch.rand(SAMPLES, 4, 2, generator=generator, dtype=torch.float64)
    second = torch.cat([first, torch.ones(SAMPLES, 4, 1)], -1) @ truth.mT
    points = torch.cat([first, second[..., :2] / second[..., 2:]], -1)
    truth = truth / truth.flatten(1).norm(dim=1)[:, None, None]
    batched: dict[str, Callable[[Tensor], Tensor]] = {}
    try:
        from kornia.geometry.homography import find_homography_dlt

        batched["kornia"] = lambda x: find_homography_dlt(x[..., :2], x[..., 2:], solver="lu").unsqueeze(1)
    except ImportError:
        pass
    return Problem(dl.ransac.Homography(), points, truth, batched, {})


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "essential matrix, 5 points": essential,
    "fundamental matrix, 7 points": fundamental,
    "homography, 4 points": homography,
}


def found(models: Tensor, truth: Tensor) -> float:
    """The share of samples one of whose models `[B, S, *shape]` is the truth to 1e-6, up to scale and sign."""
    models, truth = models.detach().flatten(2), truth.flatten(1).unsqueeze(1)
    unit = models / models.norm(dim=-1, keepdim=True)
    distance = torch.minimum((unit - truth).norm(dim=-1), (unit + truth).norm(dim=-1))
    return (distance.nan_to_num(torch.inf).amin(1) < 1e-6).double().mean().item()


def rays(samples: Tensor) -> list[Any]:
    """The samples as PoseLib takes them: two arrays of unit vectors each."""
    three = torch.cat([samples.unflatten(-1, (2, 2)), torch.ones(*samples.shape[:-1], 2, 1)], -1)
    unit = torch.nn.functional.normalize(three, dim=-1).transpose(1, 2)
    return [tuple(image.numpy().copy() for image in sample) for sample in unit]


def fastest(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Microseconds per sample of each contender's fastest round. Processor time, as the machine may be shared: all run
    on one thread."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], (time.process_time() - start) / SAMPLES * 1e6)
    return best


def rows(name: str, problem: Problem, rounds: int) -> list[str]:
    """A line of the table for each contender."""
    solver, samples = problem.solver, problem.samples
    ours: dict[str, Callable[[Tensor], Tensor]] = {
        "difflayers": lambda x: solver.solve(x).models  # 0 where there is none
    }
    batched = ours | problem.batched
    share = {key: found(solve(samples), problem.truth) for key, solve in batched.items()}
    if share["difflayers"] < 0.999:
        raise SystemExit(f"{name}: only {share['difflayers']:.4f} of the samples are solved; there is nothing to time")
    leaf = samples.clone().requires_grad_()
    weight = torch.randn(solver.model_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def trained(solve: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> object:
            models = solve(leaf)
            return torch.autograd.grad((torch.nan_to_num(models) * weight).sum(), leaf)

        return run

    listed = rays(samples) if problem.single else []
    forward: dict[str, Callable[[], object]] = {
        key: (lambda solve=solve: solve(samples)) for key, solve in batched.items()
    }
    for key, solve in problem.single.items():
        forward[key] = lambda solve=solve: [solve(sample) for sample in listed]
    times = fastest(forward, rounds)
    both = fastest({key: trained(solve) for key, solve in batched.items()}, rounds)
    lines = []
    for key in forward:
        cells = [name, key]
        for column in (times, both):
            known = key in column
            cells += [f"{column[key]:.2f}", f"{column[key] / column['difflayers']:.2f}"] if known else ["", ""]
        cells.append(f"{share[key]:.4f}" if key in share else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def verdicts(lines: list[str]) -> str:
    """Whether the 5-point solver reaches its bars, from its lines of the table."""
    cells = {row[2]: row for row in ([c.strip() for c in line.split("|")] for line in lines) if row[1:2] == [
        "essential matrix, 5 points"]}  # fmt: skip
    said = []
    if "kornia" in cells:
        times = float(cells["kornia"][6])
        bar, aim = ("reached" if times >= limit else "**missed**" for limit in (1, 5))
        said.append(f"5 points, forward + backward, {times:.1f} times as fast as kornia: bar {bar}, aim {aim}.")
    if "PoseLib" in cells:
        times = 1 / float(cells["PoseLib"][4])
        said.append(f"Forward {times:.2f} times PoseLib's time: {'reached' if times <= 3 else '**missed**'}.")
    return " ".join(said)


def main() -> None:
    """Prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file for the table; default: print it")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    peers = []
    for peer in ("kornia", "poselib"):
        try:
            peers.append(f"{peer} {version(peer)}")
        except PackageNotFoundError:
            print(f"{peer} is not installed", file=sys.stderr)
    lines = [
        *(f"- {line}" for line in [*machine(), *peers]), "",
        "| problem | by | forward us/sample | ratio | forward + backward us/sample | ratio | solved |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, make in PROBLEMS.items():
        lines += rows(name, make(), 3 if arguments.quick else 20)
    lines += ["", verdicts(lines)]
    text = "\n".join(lines) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
