"""Designs photonic chips that can be made: a real field solve as the objective, a brush as the constraint, by SurCo.

A square between waveguides is to be filled with silicon and glass so that light turns a corner, changes its mode, or
is split by colour; every piece of either must be as thick as a round brush (brush_oracle.py). This is the second
problem of Ferber et al., "SurCo: Learning Linear Surrogates for Combinatorial Nonlinear Optimization Problems", ICML
2023, arXiv 2210.12547, in the geometry of the "ceviche challenges" (Schubert et al., arXiv 2201.12965), with smaller
designs of 20x20 pixels of 80 nm. What is measured is the share of the light that arrives, by a solve of Maxwell's
equations in the plane (field_solver.py), which is exact in its gradient as well.

All contenders may solve for the field of as many designs. Topology optimisation changes densities between glass and
silicon, and makes designs of them at every fifth solve, of which the best counts. Straight-through keeps to designs
that can be made and sends the gradient past the oracle. SurCo begins at random, or at what half the solves found by
topology optimisation.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: threads make sparse solves of this size slower

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import command
import numpy as np
import torch
from torch import Tensor

import difflayers as dl

try:
    from brush_oracle import BrushDesigns, disc
    from field_solver import LAYER, Channel, Device, Port, transmission
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"inverse_photonics.py: {error}; run: pip install 'difflayers[solvers,examples]'")

PIXELS = 20
LEFT, RIGHT, BOTTOM = (Port(side, 8, 13) for side in ("left", "right", "bottom"))
DEVICES = {
    "bend": (Channel(1270, LEFT, BOTTOM), Channel(1290, LEFT, BOTTOM)),
    "converter": (Channel(1270, LEFT, RIGHT, 0, 1), Channel(1290, LEFT, RIGHT, 0, 1)),
    "splitter": (Channel(1310, LEFT, Port("right", 2, 7)), Channel(1550, LEFT, Port("right", 13, 18))),
}


class Problem:
    """A device to be designed: the objective, the feasible set, and how often the field was solved for.

    Args:
        name: of `DEVICES`.
        brush: its diameter in pixels.
        workers: threads of the oracle.
        solved: called after every field solve.
    """

    def __init__(
        self, name: str, brush: int, workers: int | None = None, solved: Callable[[], object] = lambda: None
    ) -> None:
        self.device = Device(PIXELS, DEVICES[name])
        frame = self.device.frame(brush - 1)
        self.oracle = BrushDesigns(frame, brush, workers=workers)
        self.solves, self.solved = 0, solved

    def lost(self, designs: Tensor) -> Tensor:
        """The share of the light `[...]` that does not arrive, mean over the wavelengths, for designs `[..., n, n]`."""
        self.solves += designs.shape[:-2].numel()
        result = 1 - transmission(designs, self.device).mean(-1)
        for _ in range(designs.shape[:-2].numel()):
            self.solved()
        return result


def topology(problem: Problem, solves: int, generator: torch.Generator) -> Tensor:
    """Densities, blurred with the brush and pushed to 0 and 1 more and more; the best design near them."""
    brush = torch.zeros(1, 1, problem.oracle.diameter, problem.oracle.diameter, dtype=torch.float64)
    for i, j in disc(problem.oracle.diameter):
        brush[0, 0, i, j] = 1 / len(disc(problem.oracle.diameter))
    # the blur looks past the edge, where the waveguides are
    low, margin = (problem.oracle.diameter - 1) // 2, problem.oracle.margin
    frame = torch.from_numpy(problem.oracle.frame).double()
    near = slice(margin - low, margin + PIXELS + problem.oracle.diameter - 1 - low)
    logits = (0.5 * torch.randn(PIXELS, PIXELS, generator=generator, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.2)
    best, least = torch.empty(0), torch.tensor(torch.inf)
    for step in range(solves):
        push = 2 * 16 ** (step / solves)
        whole = frame.clone()
        whole[margin:-margin, margin:-margin] = logits.sigmoid()
        blurred = torch.nn.functional.conv2d(whole[near, near][None, None], brush)[0, 0]
        density = 0.5 + 0.5 * torch.tanh(push * (blurred - 0.5)) / np.tanh(push / 2)
        if step % 5 < 4 and step < solves - 1:
            optimizer.zero_grad()
            problem.lost(density).backward()
            optimizer.step()
            continue
        # every fifth solve is of a design that can be made: what becomes of the densities then is a matter of luck
        design = problem.oracle.solve(0.5 - density.detach())
        lost = problem.lost(design)
        if lost < least:
            best, least = design, lost
    return best


def straight_through(problem: Problem, solves: int, generator: torch.Generator) -> Tensor:
    """Adam on costs whose designs are evaluated, with the design's gradient; the best design of all."""
    costs = torch.randn(PIXELS, PIXELS, generator=generator, dtype=torch.float64)
    costs = torch.nn.functional.avg_pool2d(costs[None], 3, 1, 1)[0].requires_grad_()
    optimizer = torch.optim.Adam([costs], 0.05)
    layer = dl.SolverLayer(problem.oracle, rule=dl.rules.Identity())
    best, least = costs.detach(), torch.tensor(torch.inf)
    for _ in range(solves):
        optimizer.zero_grad()
        design = layer(costs)
        lost = problem.lost(design)
        if lost.detach() < least:
            best, least = design.detach(), lost.detach()
        lost.backward()
        optimizer.step()
    return best.round()


def surco(problem: Problem, solves: int, generator: torch.Generator, prepared: bool = False) -> Tensor:
    """SurCo, from random costs or from the design of a topology optimisation with half of the solves."""
    start = topology(problem, solves // 2, generator) if prepared else None
    # Identity: better than the default rule, or equal, on seeds 10 to 12
    result = dl.SurCo(problem.oracle, rule=dl.rules.Identity(), starts=2).solve(
        problem.lost,
        start=start,
        evaluations=solves - solves // 2 if prepared else solves,
        oracle_calls=3 * solves,  # for the run time's sake, where it finds the same designs again
        generator=generator,
        dtype=torch.float64,
    )
    if result.status == "interrupted":  # it returns its best; here Ctrl-C ends the whole comparison
        raise KeyboardInterrupt
    return result.solution


METHODS = {
    "topology optimisation": topology,
    "straight-through": straight_through,
    "SurCo": surco,
    "topology, then SurCo": partial(surco, prepared=True),
}


def draw(found: dict[str, dict[str, Tensor]], problems: dict[str, Problem], path: Path) -> None:
    """Designs, and the light in them at the first wavelength."""
    figure = Figure(figsize=(2.6 * len(METHODS), 5.4 * len(found)), layout="constrained")
    grid = figure.subplots(2 * len(found), len(METHODS), squeeze=False)
    for rows, (name, designs) in zip(grid.reshape(len(found), 2, -1), found.items(), strict=True):
        device = problems[name].device
        for column, (method, design) in zip(rows.T, designs.items(), strict=True):
            shown = (slice(LAYER, -LAYER),) * 2  # without the absorbing layer
            field = np.abs(device.fields(design.numpy(), 0)[0])[shown]
            share = device.transmissions(design.numpy())[0].mean()
            whole = device.whole(design.numpy())[shown]
            column[0].imshow(whole, cmap="Greys", interpolation="nearest")
            column[0].set_title(f"{name}: {method}\n{share:.1%}", fontsize=9)
            column[1].imshow(field, cmap="magma", vmax=float(np.quantile(field, 0.995)))
            column[1].contour(whole, [0.5], colors="white", linewidths=0.4)
            for axes in column:
                axes.set_axis_off()
    figure.savefig(path, dpi=110)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(__file__, __doc__, seed="of all noise", quick={"devices": ["bend"], "solves": 6})
    add = parser.add_argument
    add("--devices", nargs="+", choices=DEVICES, default=["bend", "converter"], help="what to design")
    add("--solves", type=int, default=50, help="designs that each method may solve the field for")
    add("--brush", type=int, default=3, help="diameter in pixels of 80 nm, 2 to 5; from 4 on the oracle is slow")
    add("--workers", type=int, default=2, help="threads of the oracle")
    options = parser.options(argv)
    if options.solves < 4 or options.workers < 1 or not 2 <= options.brush <= 5:
        parser.error("--solves must be at least 4, --workers at least 1, --brush 2 to 5")
    return options


def run(options: Namespace) -> Path:
    """Designs, prints the table, draws the picture."""
    found: dict[str, dict[str, Tensor]] = {}
    problems: dict[str, Problem] = {}
    print(f"{'device':11}{'method':24}{'light that arrives':>18}{'dB':>8}{'solves':>8}{'seconds':>9}")
    for name in dict.fromkeys(options.devices):
        found[name] = {}
        for method, design in METHODS.items():
            begun, generator = time.perf_counter(), torch.Generator().manual_seed(options.seed)
            with tqdm(total=options.solves, desc=f"{name}: {method}", disable=None, leave=False) as bar:
                problem = problems[name] = Problem(name, options.brush, options.workers, bar.update)
                found[name][method] = design(problem, options.solves, generator)
            seconds = time.perf_counter() - begun
            assert problem.oracle.feasible(found[name][method])
            assert problem.solves <= options.solves
            share = problem.device.transmissions(found[name][method].numpy())[0].mean()
            print(
                f"{name:11}{method:24}{100 * share:16.1f} %{10 * np.log10(share):8.2f}{problem.solves:8}{seconds:9.1f}",
                flush=True,
            )
    draw(found, problems, options.out / "inverse_photonics.png")
    return options.out / "inverse_photonics.png"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
